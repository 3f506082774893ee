"""Train the embedded model from scratch, check it and write its data card.

    python scripts/train_pocket.py                  # all of it: at most 30 minutes on 2 cores (`just train-pocket`)
    python scripts/train_pocket.py --only checks    # measure the shipped weights again and rewrite docs/pocket.md
    python scripts/train_pocket.py --only traits    # rewrite the trait files

Writes src/steer_heal/pocket/weights, docs/pocket_train.jsonl (log), docs/pocket_loss.png and docs/pocket.md. Knows
nothing of the library's own steering and evaluation.
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
"""Keep freed memory: else small CPUs spend much of a step on page faults. Read at start-up, hence the re-exec."""
if __name__ == "__main__" and any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing  # noqa: E402
from pocket_training.datacard import write_card  # noqa: E402
from pocket_training.measure import Pocket, Sampling  # noqa: E402
from pocket_training.targets import run_checks  # noqa: E402
from pocket_training.tokenizer import build_tokenizer  # noqa: E402
from pocket_training.training import STAGES, train  # noqa: E402
from pocket_training.traitfiles import write_trait_files  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from steer_heal.commands.script import run_script  # noqa: E402
from steer_heal.pocket import WEIGHTS  # noqa: E402

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Options:
    """What to do and with what."""

    only: Literal["all", "train", "checks", "traits"] = "all"
    """Part of the work."""
    stages: tuple[int, ...] = tuple(range(len(STAGES)))
    """Which stages to train; one that is not the first goes on from the saved weights."""
    steps: int | None = None
    """Steps per stage, for a trial; the recipe's own if not given."""
    workers: int = 2
    """Training processes of one thread each, which share every batch: on busy cores faster than threads in lockstep."""
    count: int = 192
    """Replies per row of the checks."""
    weights: Path = WEIGHTS
    """Folder of the weights."""
    docs: Path = DOCS
    """Folder of log, picture and data card."""


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a transformers folder in float16 with the default sampling; readable by everyone, since it is packaged."""
    model = model.half()
    model.generation_config = Sampling().generation_config(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def train_worker(rank: int, options: Options, meeting_point: str) -> None:
    """One of the training processes; the first one writes log and weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=options.workers)
    tokenizer = build_tokenizer()
    log = options.docs / "pocket_train.jsonl"
    for stage in options.stages:

        def observe(record: dict[str, float], _model: LlamaForCausalLM, stage: int = stage) -> None:
            if rank == 0:
                with log.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps({"stage": stage} | record) + "\n")
                if record["step"] % 500 == 0:
                    print(json.dumps({"stage": stage} | record), flush=True)

        config = STAGES[stage] if options.steps is None else replace(STAGES[stage], steps=options.steps)
        start = AutoModelForCausalLM.from_pretrained(options.weights) if stage else None
        model = train(config, tokenizer, observe, model=start)
        dist.barrier()
        if rank == 0:
            save(model, tokenizer, options.weights)
        dist.barrier()
    dist.destroy_process_group()


def run_training(options: Options) -> None:
    """Train from scratch and write weights and log."""
    if 0 in options.stages:
        (options.docs / "pocket_train.jsonl").write_text("", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train_worker, args=(options, f"{folder}/meeting"), nprocs=options.workers)


def run_all_checks(options: Options) -> bool:
    """Measure the saved weights, write the card, and say whether every target is met."""
    tokenizer = AutoTokenizer.from_pretrained(options.weights)
    model = AutoModelForCausalLM.from_pretrained(options.weights, dtype=torch.float32).eval()
    results = run_checks(Pocket(model, tokenizer), options.count)
    size = (options.weights / "model.safetensors").stat().st_size
    write_card(results, options.docs / "pocket_train.jsonl", options.docs, model.num_parameters(), size)
    for target in results.targets:
        print(f"{'ok  ' if target.met else 'MISS'} {target.name}: {target.measured}, wanted {target.bound}")
    return all(target.met for target in results.targets)


def main(options: Options) -> int:
    """Run the chosen parts; exit code 1 if a target is missed."""
    if options.only in ("all", "traits"):
        write_trait_files()
    if options.only in ("all", "train"):
        run_training(options)
    if options.only in ("all", "checks"):
        return 0 if run_all_checks(options) else 1
    return 0


if __name__ == "__main__":
    sys.exit(run_script(Options, main, None, __doc__, "train_pocket"))
