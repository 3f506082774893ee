"""`bench.py gpu`: what the library asks of a GPU, on one random model: sampling, a heal's step, a whole round.

With --device cpu and --preset tiny it runs anywhere, and its figures mean nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise

import torch

from steer_heal.config import RunConfig
from steer_heal.healing import HealConfig
from steer_heal.healing.lora import target_names
from steer_heal.ledger.clock import duration
from steer_heal.loop.rounds import run_rounds
from steer_heal.model import LM, text_config
from steer_heal.studies.benchmarks.generate import GenerateBench, bench_generate
from steer_heal.studies.benchmarks.heal import step_arms
from steer_heal.studies.benchmarks.measuring import Race, load_at_end, peak_here, take_turns
from steer_heal.studies.benchmarks.models import random_rows
from steer_heal.texts.completion import Completion

STEP, MEMORY = 1.25, 1.1
"""Most that a step's gradient with the barrier may take of plain nll's time, and a step of TRL's memory."""
MIB = 2**20


@dataclass(frozen=True)
class GpuBench(GenerateBench):
    """Steered sampling by every engine that is installed, a heal's step with the barrier, a whole round by stage."""

    preset: str = "4b"
    """4b: a 4 B-parameter layout; small or tiny: to try it."""
    device: str = "cuda"
    """cuda, or cpu to try it."""
    texts: int = 96
    """Training texts of the round."""
    reply: int = 256
    """Tokens of each text, and of the longest row of a step."""


def bench_gpu(sizes: GpuBench) -> str:
    """The three parts, one after the other."""
    engines = ("compiled", *(["vllm"] if find_spec("vllm") else []))
    parts = [bench_generate(replace(sizes, engines=engines))]
    lm = sizes.load(endless=True)
    parts += [bench_step(lm, sizes), bench_round(lm, sizes), load_at_end()]
    return "\n\n".join(parts)


def bench_step(lm: LM, sizes: GpuBench) -> str:
    """Time and peak memory of one optimiser step's gradient: with the barrier, plain nll, and TRL's trainer."""
    config = HealConfig(tau=0.0)
    rows = random_rows(config.batch_size, 32, sizes.reply, text_config(lm.base).vocab_size)
    with step_arms(lm, rows, config) as arms:
        take_turns(arms, 1)  # warm-up
        lines = Race.run(arms, sizes.repeats).against(
            "gradient of one step, kl_rev / nll", "kl_rev", "nll", STEP, at_most=True
        )
        peaks = {name: peak(lm.device, arms[name]) for name in ("kl_rev", "nll")}
    if find_spec("trl"):
        peaks["TRL"] = peak(lm.device, lambda: trl_step(lm, rows, config))
        share = peaks["kl_rev"] / max(peaks["TRL"], 1e-9)
        reached = "reached" if share <= MEMORY else "MISSED"
        lines.append(f"memory of a step, kl_rev / TRL's SFT: {share:.2f}; target at most {MEMORY}: {reached}")
    told = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in peaks.items())
    return "\n".join([*lines, f"peak memory of a step over the loaded model: {told}"])


def peak(device: torch.device, arm: Callable[[], object]) -> float:
    """MiB that one run of the arm takes at its peak, over what was held before."""
    if device.type != "cuda":
        return peak_here(arm)["mib"]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    arm()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


def trl_step(lm: LM, rows: list[Completion], config: HealConfig) -> None:
    """One step of TRL's SFT on the same rows with a LoRA on the same modules; its nll goes in chunks where it can."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer

    given = [
        {
            "input_ids": [*row.prompt_ids, *row.token_ids],
            "completion_mask": [0] * len(row.prompt_ids) + [1] * len(row.token_ids),
        }
        for row in rows
    ]
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=target_names(lm, config)[0])
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": folder,
            "max_steps": 1,
            "per_device_train_batch_size": len(rows),
            "max_length": None,
            "gradient_checkpointing": False,
            "bf16": lm.dtype == torch.bfloat16,
            "use_cpu": lm.device.type == "cpu",
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        model = get_peft_model(lm.base, lora)
        try:
            trainer = SFTTrainer(
                model, SFTConfig(**options), train_dataset=Dataset.from_list(given), processing_class=lm.tokenizer
            )
            trainer.train()
        finally:
            model.unload()


def bench_round(lm: LM, sizes: GpuBench) -> str:
    """Seconds of a whole round of the run by stage, on a random model: nothing of its texts is dropped or judged."""
    config = RunConfig(
        n_rounds=1, n_min=sizes.texts, walk_batch=sizes.texts, max_new_tokens=sizes.reply, eval_items=24,
        eval_replies=24, filter="none", gate="watch", controls="none", replay=0.0, replay_anchors=0.0,
        engine="compiled",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        result = run_rounds(replace(config, out=out), lm=lm)
        events = [(e["stage"], e["time"]) for e in result.run.ledger.events()]
    result.run.stack.clear()
    spent: dict[str, float] = {}
    for (_, before), (stage, at) in pairwise(events):
        spent[stage] = spent.get(stage, 0.0) + at - before
    whole = sum(spent.values())
    shares = "\n".join(f"  {stage} {s:.1f} s, {s / whole:.0%}" for stage, s in spent.items() if s > 0.005 * whole)
    return (
        f"a round of {sizes.texts} texts of {sizes.reply} tokens, its baselines included: {duration(whole)}\n{shares}"
    )
