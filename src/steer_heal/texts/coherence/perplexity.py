"""Figures of how surprising a reply is to a model: whole, last quarter, worst window, and the most predictable window.

Knows nothing of texts and limits. Units are nats per token (natural log of perplexity).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steer_heal.model import LM, by_batch
from steer_heal.texts.completion import Completion

TAIL_MIN = 8
"""Tokens a tail has at least: the mean over fewer is noise."""
WINDOW = 16
"""Tokens of a window: long enough to average out one rare name, short enough to see a collapse begin."""
HEAD_ENTRIES = 2**23
"""Logits that exist at a time (32 MiB in float32): more of them are slower, they no longer fit any cache."""


def nll_figures(logp: Float[Tensor, " position"]) -> dict[str, float]:
    """Mean negative log-likelihood over the whole reply, its last quarter, and its worst and calmest 16 tokens.

    The mean over a long reply hides a collapsed tail, and one over a collapsed reply hides a loop in its middle, whose
    tokens are too predictable. Replies shorter than a window have all four equal.
    """
    nll = -logp.double()
    tail = nll[-max(TAIL_MIN, len(nll) // 4) :]
    windows = nll.unfold(0, min(WINDOW, len(nll)), 1).mean(1)
    return {
        "nll": nll.mean().item(),
        "nll_tail": tail.mean().item(),
        "nll_window": windows.max().item(),
        "nll_calm": windows.min().item(),
    }


def perplexity_figures(
    lm: LM, completions: Sequence[Completion], batch_tokens: int | None = None
) -> list[dict[str, float]]:
    """`nll_figures` of every completion under the weights the model has now; empty for a reply without tokens.

    Rows are batched by length, and the output head sees the positions that produce a reply token and no others.
    """
    rows = [i for i, c in enumerate(completions) if c.token_ids]
    out: list[dict[str, float]] = [{} for _ in completions]
    lengths = [len(completions[i].prompt_ids) + len(completions[i].token_ids) - 1 for i in rows]

    def figures(picked: list[int]) -> list[dict[str, float]]:
        batch = [completions[rows[j]] for j in picked]
        return [nll_figures(logp) for logp in _reply_logprobs(lm, batch).split([len(c.token_ids) for c in batch])]

    for i, found in zip(rows, by_batch(lm, lengths, figures, batch_tokens), strict=True):
        out[i] = found
    return out


@torch.no_grad()
def _reply_logprobs(lm: LM, batch: Sequence[Completion]) -> Float[Tensor, " reply_position"]:
    """Log-probabilities (float32, on the CPU) of all reply tokens of a batch, row after row.

    The last token of a reply predicts nothing that is scored, so it is not run.
    """
    hidden = lm.hidden_states(lm.pad_left([[*c.prompt_ids, *c.token_ids[:-1]] for c in batch]))
    states = torch.cat([hidden[i, -len(c.token_ids) :] for i, c in enumerate(batch)])
    targets = torch.tensor([token for c in batch for token in c.token_ids], device=states.device)
    chunk = max(16, HEAD_ENTRIES // lm.base.get_output_embeddings().weight.shape[0])
    found = []
    for part, target in zip(states.split(chunk), targets.split(chunk), strict=True):
        logits = lm.head(part)
        found.append(logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(1))
    return torch.cat(found).cpu()
