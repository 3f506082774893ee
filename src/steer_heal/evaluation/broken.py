"""Keeps a broken model measurable: rows whose logits are not finite end their reply instead of stopping the run.

Knows nothing of traits and metrics.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steer_heal.model import LM

RULED_OUT = -1e4
"""Logit of a token that cannot come; finite in every dtype, also after a scale or soft cap."""


@contextlib.contextmanager
def ending_broken_replies(lm: LM) -> Iterator[None]:
    """While open, a position with a NaN or infinite logit predicts the end of the reply and nothing else.

    Sampling from NaN is an error on a CPU and takes the whole process's accelerator down; a student that training has
    broken must be measured and judged `collapsed`, not crash the loop. Its replies are empty, and that is incoherent.
    """
    end = min(lm.eos_ids, default=lm.pad_id)

    def end_reply(
        module: nn.Module, inputs: object, logits: Float[Tensor, "*position vocab"]
    ) -> Float[Tensor, "*position vocab"]:
        ended = torch.full_like(logits[..., :1, :], RULED_OUT)
        ended[..., end] = 0.0
        return torch.where(logits.isfinite().all(-1, keepdim=True), logits, ended)

    hook = lm.base.get_output_embeddings().register_forward_hook(end_reply)
    try:
        yield
    finally:
        hook.remove()
