"""Which rows train and which are held out, which make up a step, what each weighs, and the learning rate's course;
how a step fits the memory.

Knows nothing of models and losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from steer_heal.errors import InputError
from steer_heal.healing.barriers.chunked import LEAST_CHUNK, default_chunk, loss_bytes
from steer_heal.healing.config import HealConfig
from steer_heal.healing.lora import seeded
from steer_heal.texts.completion import Completion

MIN_ROWS = 4
"""Fewest completions of a heal that keeps some of them out of training."""
POOL_STEPS = 4
"""Optimiser steps whose rows are sorted by length together: less padding, still a new mixture each epoch."""
ROOM = 0.8
"""Share of the free memory that a step is planned for; gradients of activations and fragments take some too."""


@dataclass(frozen=True)
class Fit:
    """How a step's passes fit the memory.

    Attributes:
        checkpointing: whether the blocks are recomputed in the backward pass.
        rows: completions per forward pass.
        chunk: positions of the loss over the vocabulary at a time.
    """

    checkpointing: bool
    rows: int
    chunk: int


def fit(config: HealConfig, kept: float, recomputed: float, free: float, vocabulary: int) -> Fit:
    """The choice for bytes that are free: checkpointing where a pass would not fit, then fewer rows, then less loss.

    Args:
        kept: bytes that a row keeps for its backward pass. recomputed: the same under checkpointing.
    """
    room, chunk, rows = ROOM * free, default_chunk(vocabulary), config.batch_size
    auto = config.gradient_checkpointing == "auto" and rows * kept + loss_bytes(chunk, vocabulary) > room
    on = auto or config.gradient_checkpointing == "on"
    per_row = recomputed if on else kept
    rows = max(1, int(min(rows, (room - loss_bytes(LEAST_CHUNK, vocabulary)) / per_row)))
    while chunk > LEAST_CHUNK and rows * per_row + loss_bytes(chunk, vocabulary) > room:
        chunk = max(LEAST_CHUNK, chunk // 2)
    return Fit(on, rows, chunk)


def split_rows(completions: Sequence[Completion], config: HealConfig, round: int = 0) -> tuple[list[int], list[int]]:
    """(training rows, held-out rows), drawn prompt by prompt so that held-out rows rarely share a prompt with training.

    Raises InputError for too few rows.
    """
    n = len(completions)
    if not config.heldout:
        return list(range(n)), []
    if n < MIN_ROWS:
        raise InputError(
            f"{n} completions are too few to heal on and hold some out: give at least {MIN_ROWS}, or heldout 0"
        )
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, completion in enumerate(completions):
        by_prompt.setdefault(completion.prompt_ids, []).append(i)
    groups = list(by_prompt.values())
    order = torch.randperm(len(groups), generator=seeded(config.seed, round, "heldout")).tolist()
    rows = [i for g in order for i in groups[g]]
    cut = max(1, int(n * config.heldout))
    return sorted(rows[cut:]), sorted(rows[:cut])


def step_rows(
    train: Sequence[int], completions: Sequence[Completion], config: HealConfig, generator: torch.Generator
) -> Iterator[list[int]]:
    """Rows of each optimiser step of one epoch: shuffled, sorted by length within pools, steps shuffled again."""
    size = config.batch_size * config.grad_accum
    shuffled = [train[i] for i in torch.randperm(len(train), generator=generator).tolist()]
    groups = []
    for start in range(0, len(shuffled), size * POOL_STEPS):
        pool = shuffled[start : start + size * POOL_STEPS]
        pool.sort(key=lambda i: len(completions[i].prompt_ids) + len(completions[i].token_ids))
        groups += [pool[i : i + size] for i in range(0, len(pool), size)]
    for i in torch.randperm(len(groups), generator=generator).tolist():
        yield groups[i]


def row_factors(lengths: Sequence[int], row_weights: str, weights: Sequence[float] | None = None) -> list[float]:
    """Factor of each row's token-mean nll; their mean over all rows is 1, whatever a step is made of.

    A token mean gives every row the same weight, so that a token of a short reply, its end too, weighs more.
    `inv_sqrt` weights token SUMS by 1/sqrt(n), that is token means by sqrt(n); `tokens` weights token sums alike.
    `weights` multiply on top.
    """
    power = {"none": 0.0, "inv_sqrt": 0.5, "tokens": 1.0}[row_weights]
    weights = [w * n**power for n, w in zip(lengths, weights or [1.0] * len(lengths), strict=True)]
    return [w * len(weights) / sum(weights) for w in weights]


def lr_factor(step: int, total: int, warmup: float) -> float:
    """Linear rise over the first `warmup` share of the steps (never 0), then a cosine to 0."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
