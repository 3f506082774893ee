"""Figures of how surprising a reply is to a model: whole, last quarter, worst window, and the most predictable window.

Knows nothing of texts and limits. Units are nats per token (natural log of perplexity).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steer_heal.completion import Completion
from steer_heal.lm import LM, completion_logprobs

TAIL_MIN = 8
"""Tokens a tail has at least: the mean over fewer is noise."""
WINDOW = 16
"""Tokens of the worst window: long enough to average out one rare name, short enough to see a collapse begin."""


def nll_figures(logp: Float[Tensor, " position"]) -> dict[str, float]:
    """Mean negative log-likelihood over the whole reply, its last quarter, and its worst window of 16 tokens.

    The mean over a long reply hides a collapsed tail; replies shorter than a window have all three equal.
    """
    nll = -logp.double()
    tail = nll[-max(TAIL_MIN, len(nll) // 4) :]
    windows = nll.unfold(0, min(WINDOW, len(nll)), 1).mean(1)
    return {"nll": nll.mean().item(), "nll_tail": tail.mean().item(), "nll_window": windows.max().item()}


def perplexity_figures(lm: LM, completions: Sequence[Completion], batch_tokens: int = 8192) -> list[dict[str, float]]:
    """`nll_figures` of every completion under the weights the model has now; empty for a reply without tokens."""
    rows = [i for i, c in enumerate(completions) if c.token_ids]
    out: list[dict[str, float]] = [{} for _ in completions]
    if not rows:
        return out
    with torch.no_grad():
        logps = completion_logprobs(
            lm, [completions[i].prompt_ids for i in rows], [completions[i].token_ids for i in rows], batch_tokens
        )
    for i, logp in zip(rows, logps, strict=True):
        out[i] = nll_figures(logp)
    return out
