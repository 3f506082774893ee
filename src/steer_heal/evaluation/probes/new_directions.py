"""Intruders: leading directions of a changed weight that are like none of the original weight's.

Knows nothing of logits and texts.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.model import LM

INTRUDER_COSINE = 0.6
"""A leading direction of the changed weight is new when no direction of the original is nearer than this."""


@torch.no_grad()
def intruder_directions(
    weight: Float[Tensor, "rows columns"],
    delta: Float[Tensor, "rows columns"],
    top: int = 10,
    limit: float = INTRUDER_COSINE,
) -> int:
    """How many of the `top` left singular vectors of weight + delta are like none of the weight's own.

    Like none: the largest |cosine| with any left singular vector of `weight` is under `limit` (Shuttleworth et al.
    2024, "LoRA vs full fine-tuning: an illusion of equivalence", arXiv 2410.21228, on forgetting). With nearly equal
    singular values the vectors of a weight are arbitrary, so compare adapters of one model only.
    """
    own = torch.linalg.svd(weight.float(), full_matrices=False).U
    new = torch.linalg.svd(weight.float() + delta.to(weight.device).float(), full_matrices=False).U[:, :top]
    nearest = (own.T @ new).abs().amax(0)
    return int((nearest < limit).sum())


def intruders(lm: LM, stack: AdapterStack, adapter: Adapter, top: int = 10) -> dict[str, int]:
    """`intruder_directions` of an adapter's modules against the original weights, by module name."""
    with stack.unfolded():
        return {
            name: intruder_directions(lm.base.get_submodule(name).weight, adapter.delta(name), top)
            for name in adapter.modules
        }
