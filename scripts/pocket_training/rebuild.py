"""Everything in its order: trait files, training in several processes, checks with the data card, tasks of the ladder.

Knows nothing of how any of them is made.
"""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.multiprocessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from pocket_training.checks import run_checks
from pocket_training.datacard import write_card
from pocket_training.measure import Pocket, Sampling
from pocket_training.tokenizer import build_tokenizer
from pocket_training.training import STAGES, train
from pocket_training.traitfiles import write_tasks, write_trait_files
from steer_heal.pocket import WEIGHTS

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Arguments:
    """What to do and with what."""

    only: Literal["all", "train", "checks", "traits", "surgery"] = "all"
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


def train_worker(rank: int, arguments: Arguments, meeting_point: str) -> None:
    """One of the training processes; the first one writes log and weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=arguments.workers)
    tokenizer = build_tokenizer()
    log = arguments.docs / "pocket_train.jsonl"
    for stage in arguments.stages:

        def observe(record: dict[str, float], _model: LlamaForCausalLM, stage: int = stage) -> None:
            if rank == 0:
                with log.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps({"stage": stage} | record) + "\n")
                if record["step"] % 500 == 0:
                    print(json.dumps({"stage": stage} | record), flush=True)

        config = STAGES[stage] if arguments.steps is None else replace(STAGES[stage], steps=arguments.steps)
        start = AutoModelForCausalLM.from_pretrained(arguments.weights) if stage else None
        model = train(config, tokenizer, observe, model=start)
        dist.barrier()
        if rank == 0:
            save(model, tokenizer, arguments.weights)
        dist.barrier()
    dist.destroy_process_group()


def run_training(arguments: Arguments) -> None:
    """Train from scratch and write weights and log."""
    if 0 in arguments.stages:
        (arguments.docs / "pocket_train.jsonl").write_text("", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train_worker, args=(arguments, f"{folder}/meeting"), nprocs=arguments.workers)


def load_pocket(folder: Path) -> Pocket:
    """Saved weights with their tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Pocket(model, AutoTokenizer.from_pretrained(folder))


def run_all_checks(arguments: Arguments) -> bool:
    """Measure the saved weights, write the card, and say whether every target is met."""
    pocket = load_pocket(arguments.weights)
    results = run_checks(pocket, arguments.count)
    size = (arguments.weights / "model.safetensors").stat().st_size
    write_card(results, arguments.docs / "pocket_train.jsonl", arguments.docs, pocket.model.num_parameters(), size)
    for target in results.targets:
        print(f"{'ok  ' if target.met else 'MISS'} {target.name}: {target.measured}, wanted {target.bound}")
    return all(target.met for target in results.targets)


def rebuild(arguments: Arguments) -> int:
    """Run the chosen parts; returns the exit code, 1 if a target is missed."""
    met = True
    if arguments.only in ("all", "traits"):
        write_trait_files()
    if arguments.only in ("all", "train"):
        run_training(arguments)
    if arguments.only in ("all", "checks"):
        met = run_all_checks(arguments)
    if arguments.only in ("all", "surgery"):
        print(write_tasks(load_pocket(arguments.weights)))
    return 0 if met else 1
