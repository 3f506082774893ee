"""Where a heal moved the model's states: mean states before and after, against the vector that steered its texts.

Knows nothing of training and rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steer_heal.model import LM, length_batches
from steer_heal.steering.recording import record, template_suffix
from steer_heal.steering.vector import SteeringVector

MeanStates = Mapping[int, Float[Tensor, " width"]]


@dataclass(frozen=True)
class StateShift:
    """Mean shift of the states over the vector's blocks, as one flat vector s, against the flat vector v.

    `cosine`: of s with v, None where nothing moved. `dose`: <s, v> / |v|^2, the dose of steering that would move the
    mean states as far along v.
    """

    cosine: float | None
    dose: float


def mean_states(
    lm: LM,
    contexts: Sequence[str],
    system: str | None,
    blocks: Sequence[int],
    position: str = "last",
    batch_tokens: int | None = None,
) -> dict[int, Float[Tensor, " width"]]:
    """Mean over user turns of the states that `extract` reads, under one system prompt; float64."""
    suffix = 0 if position == "last" else template_suffix(lm)
    rows = [lm.chat_ids(context, system or None) for context in contexts]
    total = {i: torch.zeros(lm.width, dtype=torch.float64) for i in blocks}
    for batch in length_batches(lm, [len(row) for row in rows], batch_tokens):
        states = record(lm, [rows[i] for i in batch], [(suffix + 1, suffix)] * len(batch), blocks)
        for i, found in states.items():
            total[i] += found.sum(0)
    return {i: found / len(rows) for i, found in total.items()}


def state_shift(before: MeanStates, after: MeanStates, vector: SteeringVector) -> StateShift:
    """How far the mean states went along the vector, and in how much the same direction."""
    shift = torch.cat([after[i] - before[i] for i in vector.layers])
    along = vector.flat().double()
    product = float(shift @ along)
    size = float(shift.norm() * along.norm())
    return StateShift(product / size if size else None, product / float(along @ along))
