"""From divergences per position to what a completion pays: aggregate, hinge, and the multiplier's schedules.

Knows nothing of where the divergences come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def rmse(values: Float[Tensor, " position"]) -> Float[Tensor, ""]:
    """sqrt(mean square). As a vector norm its gradient at 0 is 0; sqrt(mean(x^2)) would give 0/0 there."""
    return torch.linalg.vector_norm(values.float()) / math.sqrt(len(values))


def cvar(values: Float[Tensor, " position"]) -> Float[Tensor, ""]:
    """Mean of the worst k = max(4, 5 % of the positions), all of them when there are fewer than 4."""
    k = min(len(values), max(4, math.ceil(0.05 * len(values))))
    return values.float().topk(k).values.mean()


AGGREGATES: Mapping[str, Callable[[Float[Tensor, " position"]], Float[Tensor, ""]]] = {
    "mean": lambda values: values.float().mean(),
    "rmse": rmse,
    "p95": lambda values: torch.quantile(values.float(), 0.95),
    "max": lambda values: values.float().max(),
    "cvar": cvar,
}
"""Of the divergences of ONE completion's positions, in float32."""


def aggregate_rows(
    values: Float[Tensor, " position"], lengths: Sequence[int], kl_agg: str
) -> Float[Tensor, " completion"]:
    """The aggregate of each completion; `lengths` positions follow one another in `values`."""
    return torch.stack([AGGREGATES[kl_agg](row) for row in values.split(list(lengths))])


def penalty(
    divergence: Float[Tensor, " completion"], lam: float, tau: float, lam_mode: str = "constant"
) -> Float[Tensor, " completion"]:
    """What a completion pays: lam * relu(D - tau); in budget mode lam * (D - tau).

    A multiplier on a hinged term could only grow (there is no slack below tau), so dual ascent needs the open form.
    """
    over = divergence - tau
    return lam * (over if lam_mode == "budget" else torch.relu(over))


def scheduled_lam(lam: float, round: int, power: float) -> float:
    """lam * (1 + round)^power: power 0 is constant, negative powers loosen the barrier as rounds go by."""
    return lam * (1 + round) ** power


def update_lam(lam: float, divergence: float, tau: float, rate: float, lam_max: float) -> float:
    """One step of dual ascent: clip(lam + rate * (D - tau), 0, lam_max); D is the mean over the step's completions."""
    return min(max(lam + rate * (divergence - tau), 0.0), lam_max)
