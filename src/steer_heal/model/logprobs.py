"""Log-probabilities of given completions, teacher-forced in batches of similar length.

Knows nothing of how they came about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from steer_heal.errors import InputError
from steer_heal.model.language_model import LM
from steer_heal.processes import each

T = TypeVar("T")

BATCH_TOKENS = {"cpu": 1024}
"""Padded tokens per forward pass without gradients where it is not 8192: the states of more fit no cache of a CPU."""


@torch.no_grad()
def completion_logprobs(
    lm: LM, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], batch_tokens: int | None = None
) -> list[Float[Tensor, " position"]]:
    """Log-probability (nats, float32, on the CPU) of every reply token given its prompt, row by row.

    Rows are batched by length; the head is applied to the reply positions only. Raises InputError for an empty reply.
    """
    if any(len(reply) == 0 for reply in replies):
        raise InputError("a completion has no tokens: its log-probability is undefined")

    def logprobs(rows: list[int]) -> list[Tensor]:
        batch, found = lm.pad_left([[*prompts[i], *replies[i]] for i in rows]), []
        hidden = lm.hidden_states(batch)
        for j, i in enumerate(rows):
            n = len(replies[i])
            target = batch["input_ids"][j, -n:]
            logp = lm.head(hidden[j, -n - 1 : -1]).log_softmax(-1)
            found.append(logp.gather(1, target[:, None])[:, 0].cpu())
        return found

    return by_batch(lm, [len(p) + len(r) for p, r in zip(prompts, replies, strict=True)], logprobs, batch_tokens)


def by_batch(
    lm: LM, lengths: Sequence[int], work: Callable[[list[int]], Sequence[T]], batch_tokens: int | None = None
) -> list[T]:
    """A result per row in order; `work` gives those of a batch of rows (`length_batches`).

    Several processes share the batches, which are those of one process, so the results have the same bits.
    """
    batches, out = list(length_batches(lm, lengths, batch_tokens)), [None] * len(lengths)
    for batch, found in zip(batches, each(batches, work), strict=True):
        for i, value in zip(batch, found, strict=True):
            out[i] = value
    return out


def length_batches(
    lm: LM, lengths: Sequence[int], batch_tokens: int | None = None, max_rows: int = 256
) -> Iterator[list[int]]:
    """Row indices sorted by length, in batches of at most `batch_tokens` padded tokens; None: `BATCH_TOKENS`."""
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS.get(lm.device.type, 8192)
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (lengths[i] * (len(batch) + 1) > batch_tokens or len(batch) >= max_rows):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
