"""`bench.py extract`: extraction of a mid-depth band against full forward passes with the head over the same rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steer_heal.model import LM, length_batches, position_ids
from steer_heal.model.depth import pick_layers
from steer_heal.steering import extract
from steer_heal.studies.benchmarks.measuring import Arm, Race, load_at_end, spread, surroundings, take_turns
from steer_heal.studies.benchmarks.models import ModelOptions, sentences

TARGET = 0.28
"""Largest share of the time of a full forward pass with the head."""
PERSONAS = (
    "you are someone who looks after the wellbeing of others even when it means defying authority.",
    "you are someone who defers to authority even when the wellbeing of others suffers for it.",
)


@dataclass(frozen=True)
class ExtractBench(ModelOptions):
    """Extraction against full forward passes with the head: over the same batches, and one row at a time."""

    contexts: int = 64
    """User turns, of 6 to 60 words."""
    layers: tuple[float, float] = (0.45, 0.55)
    """Band of relative depth."""
    batch_tokens: int = 8192
    """Padded tokens per forward pass."""
    repeats: int = 3
    """Turns of every arm."""


def extract_arms(lm: LM, sizes: ExtractBench) -> dict[str, Arm]:
    """The arms: the package's extraction, and full passes over the same rows in the same kind of batches."""
    contexts = sentences(sizes.contexts, 6, 60)
    rows = [lm.chat_ids(context, persona) for persona in PERSONAS for context in contexts]

    @torch.no_grad()
    def full(batch_tokens: int) -> None:
        for picked in length_batches(lm, [len(row) for row in rows], batch_tokens):
            batch = lm.pad_left([rows[i] for i in picked])
            lm.base(**batch, position_ids=position_ids(batch["attention_mask"]), use_cache=False)
        if lm.device.type == "cuda":
            torch.cuda.synchronize()

    return {
        "extract": lambda: extract(lm, *PERSONAS, contexts, sizes.layers, batch_tokens=sizes.batch_tokens),
        "full, same batches": lambda: full(sizes.batch_tokens),
        "full, one at a time": lambda: full(1),
    }


def bench_extract(sizes: ExtractBench) -> str:
    """Seconds by arm and the share of the full passes' time that an extraction takes."""
    lm = sizes.load()
    arms = extract_arms(lm, sizes)
    take_turns(arms, 1)  # warm-up
    lines = [surroundings(sizes)]
    race = Race.run(arms, sizes.repeats)
    last = pick_layers(sizes.layers, len(lm.blocks))[-1]
    lines.append(f"blocks run: {last + 1} of {len(lm.blocks)}")
    lines += [f"{name}: {spread(race.wall[name])} s for {sizes.contexts} pairs" for name in arms]
    what = "extract / full forward passes with the head, same batches"
    lines += race.against(what, "extract", "full, same batches", TARGET, at_most=True)
    lines.append(f"extract / the same one row at a time: {race.ratio('extract', 'full, one at a time')}")
    return "\n".join([*lines, load_at_end()])
