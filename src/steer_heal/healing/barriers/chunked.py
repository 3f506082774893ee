"""Losses over the vocabulary in chunks of positions: no [positions, vocabulary] tensor outlives its chunk.

Knows nothing of completions, budgets and LoRA; it sees hidden states, target ids and an output head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steer_heal.healing.barriers.divergences import Divergence
from steer_heal.model import Head

CHUNK_ELEMENTS = 2**23
"""Entries of one [positions, vocabulary] chunk: 32 MiB in float32, of which about five are alive at a time."""


@runtime_checkable
class Target(Protocol):
    """A distribution per position that the student learns from instead of a token, and the distance from it."""

    divergence: Divergence

    def log_probabilities(self, head: Head, part: slice) -> Float[Tensor, "position vocab"]:
        """log q at some of the positions; a tensor of its own, which may be overwritten."""


@dataclass(frozen=True)
class PositionLosses:
    """Losses per completion position, differentiable with respect to the hidden states.

    Attributes:
        nll: negative log-likelihood of the target token, in nats.
        divergence: one row per reference, in nats; the last row is that to the `target`, where there is one.
        row_norms: Euclidean norms of d nll / d hidden and of each d divergence / d hidden, from the rows that the
            backward pass uses anyway; zeros when no gradient was asked for.
    """

    nll: Float[Tensor, " position"]
    divergence: Float[Tensor, "reference position"]
    row_norms: Float[Tensor, "term position"]


def position_losses(
    head: Head,
    hidden: Float[Tensor, "position width"],
    targets: Int[Tensor, " position"],
    references: Sequence[Float[Tensor, "position width"]] = (),
    divergence: Divergence | None = None,
    chunk: int | None = None,
    target: Target | None = None,
) -> PositionLosses:
    """Negative log-likelihood, divergence to each reference, and that to a target, at every position.

    Every position's losses depend on its own hidden state alone, so the forward pass can store one row
    d loss / d hidden per position and term ([position, width]); the backward pass scales rows, and any aggregate or
    hinge composes. No [position, vocab] tensor outlives its chunk of `chunk` positions, and none is recomputed.
    The head is frozen: it gets no gradient. GEMMs run in the head's dtype, everything after the logits in float32.
    """
    if len(references) and divergence is None:
        raise ValueError("references need a divergence")
    if chunk is None:
        chunk = default_chunk(head.linear.weight.shape[0])
    terms: list[Target] = [_Reference(states, divergence) for states in references]
    terms += [] if target is None else [target]
    return PositionLosses(*_ChunkedLosses.apply(hidden, targets, tuple(terms), head, chunk))


def default_chunk(vocab: int) -> int:
    """Positions per chunk such that one chunk holds about `CHUNK_ELEMENTS` entries."""
    return max(16, min(1024, CHUNK_ELEMENTS // vocab))


@dataclass(frozen=True)
class _Reference:
    """What a frozen model says at the positions."""

    states: Float[Tensor, "position width"]
    divergence: Divergence

    def log_probabilities(self, head: Head, part: slice) -> Float[Tensor, "position vocab"]:
        return head(self.states[part]).log_softmax(-1)


class _ChunkedLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, targets, terms, head, chunk):
        n, wanted = len(hidden), ctx.needs_input_grad[0]
        nll = hidden.new_empty(n, dtype=torch.float32)
        values = hidden.new_empty(len(terms), n, dtype=torch.float32)
        rows = hidden.new_empty(1 + len(terms), n if wanted else 0, hidden.shape[1])
        for start in range(0, n, chunk):
            part = slice(start, start + chunk)
            with torch.set_grad_enabled(wanted):
                leaf = hidden[part].detach().requires_grad_(wanted)
                logits = head(leaf)
            logp = logits.detach().log_softmax(-1)
            target = targets[part, None]
            nll[part] = -logp.gather(-1, target)[:, 0]
            if not wanted:
                for i, term in enumerate(terms):
                    values[i, part] = term.divergence.value(logp, term.log_probabilities(head, part))
                continue
            p = logp.exp()
            for i, term in enumerate(terms):
                values[i, part], grad = term.divergence.gradient(logp, p, term.log_probabilities(head, part))
                rows[1 + i, part] = torch.autograd.grad(logits, leaf, grad, retain_graph=True)[0]
            grad = p.scatter_(-1, target, p.gather(-1, target) - 1)  # p - onehot(target)
            rows[0, part] = torch.autograd.grad(logits, leaf, grad)[0]
        ctx.save_for_backward(rows)
        norms = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32) if wanted else nll.new_zeros(1, n)
        ctx.mark_non_differentiable(norms)
        return nll, values, norms

    @staticmethod
    def backward(ctx, grad_nll, grad_values, _):
        (rows,) = ctx.saved_tensors
        coefficients = torch.cat([grad_nll[None], grad_values]) if len(rows) > 1 else grad_nll[None]
        # The sum runs in float32 also where the rows are bf16.
        total = sum(c[:, None] * row for c, row in zip(coefficients, rows, strict=True))
        return total.to(rows.dtype), None, None, None, None
