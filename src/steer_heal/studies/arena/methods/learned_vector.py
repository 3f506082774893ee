"""A learned instead of a measured direction: rank-1 representation finetuning (ReFT-r1), used as a steering vector.

Knows nothing of where the replies come from. Source: AxBench (arXiv 2501.17148), section 4: h + mean(top-k(a)) w with
a = ReLU(h . w) and |w| = 1, trained by the replies' nll and an L1 penalty on what is outside the top k; at inference w
is added at every position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steer_heal.healing import HealConfig
from steer_heal.healing.bake import preserved
from steer_heal.healing.lora import seeded
from steer_heal.healing.plan import lr_factor
from steer_heal.model import LM
from steer_heal.model.structure import block_states
from steer_heal.steering import SteeringVector
from steer_heal.studies.arena.methods.preference import reply_logprobs
from steer_heal.texts.completion import Completion

TOP_K = 8
SPARSITY = 0.005
"""Positions that are averaged, and the final weight of the L1 penalty, as in AxBench's configuration."""


def intervened(
    hidden: Float[Tensor, "row position width"], w: Float[Tensor, " width"], real: Tensor
) -> tuple[Float[Tensor, "row position width"], Float[Tensor, " row"], Float[Tensor, " row"]]:
    """(h + mean of the k largest activations * w, that mean, mean of the others) row by row; pads are no activation."""
    activation = torch.relu(hidden @ w) * real
    k = min(TOP_K, hidden.shape[1])
    top = activation.topk(k, dim=1).values
    rest = (activation.sum(1) - top.sum(1)) / (real.sum(1) - k).clamp(min=1)
    strength = top.mean(1)
    return hidden + strength[:, None, None] * w, strength, rest


def learn_vector(
    lm: LM, rows: Sequence[Completion], like: SteeringVector, config: HealConfig
) -> tuple[SteeringVector, int]:
    """A direction at the middle of `like`'s blocks that makes the replies likely; returns it and the steps taken.

    Its norm is the largest mean activation seen on the rows, so that dose 1 is what training saw at most.
    """
    layer = like.layers[len(like.layers) // 2]
    start = torch.randn(lm.width, generator=seeded(config.seed, 0, "learned vector"))
    w = nn.Parameter((start / start.norm()).to(lm.device))
    optimiser = torch.optim.AdamW([w], lr=config.lr, betas=config.betas, weight_decay=0.0)
    order, steps, largest = seeded(config.seed, 0, "order"), 0, 0.0
    total = math.ceil(len(rows) / config.batch_size) * config.epochs
    seen: list[tuple[Tensor, Tensor]] = []
    real = torch.empty(0)

    def intervene(_: nn.Module, inputs: object, output: object) -> object:
        changed, *found = intervened(block_states(output), w, real)
        seen.append(tuple(found))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with preserved(lm.base), torch.enable_grad():
        lm.base.eval().requires_grad_(False)
        hook = lm.blocks[layer].register_forward_hook(intervene)
        try:
            for _ in range(config.epochs):
                for picked in torch.randperm(len(rows), generator=order).split(config.batch_size):
                    some = [rows[i] for i in picked.tolist()]
                    real = lm.pad_left([(*c.prompt_ids, *c.token_ids) for c in some])["attention_mask"]
                    lengths = torch.tensor([len(c.token_ids) for c in some], device=lm.device)
                    seen.clear()
                    loss = -(reply_logprobs(lm, some) / lengths).mean()
                    strength, rest = seen[0]
                    loss = loss + SPARSITY * steps / total * rest.mean()
                    for group in optimiser.param_groups:
                        group["lr"] = config.lr * lr_factor(steps, total, config.warmup)
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    # Only the direction is learned: what is parallel to w would change its length.
                    w.grad -= (w.grad @ w.detach()) * w.detach()
                    optimiser.step()
                    with torch.no_grad():
                        w /= w.norm()
                    largest, steps = max(largest, strength.max().item()), steps + 1
        finally:
            hook.remove()
    direction = {layer: w.detach().float().cpu() * largest}
    return SteeringVector(direction, like.provenance), steps
