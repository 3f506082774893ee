"""Losses over the vocabulary in chunks of positions: no [positions, vocabulary] tensor outlives its chunk.

Knows nothing of completions, budgets and LoRA; it sees hidden states, target ids and an output head.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steer_heal.healing.barriers.divergences import Divergence
from steer_heal.model import Head

CHUNK_ELEMENTS = 2**23
"""Entries of one [positions, vocabulary] chunk: 32 MiB in float32."""
LEAST_CHUNK = 16
"""Positions of the smallest chunk."""


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
    late: Collection[int] = (),
) -> PositionLosses:
    """Negative log-likelihood, divergence to each reference, and that to a target, at every position.

    Every position's losses depend on its own hidden state alone, so the forward pass can store one row
    d loss / d hidden per position and term ([position, width]); the backward pass scales rows, and any aggregate or
    hinge composes. No [position, vocab] tensor outlives its chunk of `chunk` positions, and none is recomputed.
    The head is frozen: it gets no gradient. GEMMs run in the head's dtype, everything after the logits in float32.

    `late` are terms (0: nll, then the references, then the target) whose rows will hardly be asked for, such as those
    of a barrier that few rows exceed: the backward pass computes them, to the same bits, in chunks where a factor is
    not 0. It pays where that is less than a third of them.
    """
    if len(references) and divergence is None:
        raise ValueError("references need a divergence")
    if chunk is None:
        chunk = default_chunk(head.linear.weight.shape[0])
    terms: list[Target] = [_Reference(states, divergence) for states in references]
    terms += [] if target is None else [target]
    return PositionLosses(*_ChunkedLosses.apply(hidden, targets, tuple(terms), head, chunk, frozenset(late)))


def default_chunk(vocab: int) -> int:
    """Positions per chunk such that one chunk holds about `CHUNK_ELEMENTS` entries."""
    return max(LEAST_CHUNK, min(1024, CHUNK_ELEMENTS // vocab))


def loss_bytes(chunk: int, vocab: int) -> float:
    """Bytes of `position_losses` over chunks of so many positions: about five float32 tensors are alive at a time."""
    return 5.0 * 4 * chunk * vocab


@dataclass(frozen=True)
class _Reference:
    """What a frozen model says at the positions."""

    states: Float[Tensor, "position width"]
    divergence: Divergence

    def log_probabilities(self, head: Head, part: slice) -> Float[Tensor, "position vocab"]:
        return head(self.states[part]).log_softmax(-1)


class _ChunkedLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, targets, terms, head, chunk, late):
        n, wanted = len(hidden), ctx.needs_input_grad[0]
        nll = hidden.new_empty(n, dtype=torch.float32)
        values = hidden.new_empty(len(terms), n, dtype=torch.float32)
        soon = [i for i in range(1 + len(terms)) if wanted and i not in late]
        rows = {i: hidden.new_empty(n, hidden.shape[1]) for i in soon}
        for start in range(0, n, chunk):
            part = slice(start, start + chunk)
            target = targets[part, None]
            logits, leaf = _logits(head, hidden[part], wanted)
            logp = logits.detach().log_softmax(-1)
            nll[part] = -logp.gather(-1, target)[:, 0]
            p = logp.exp() if wanted else logp
            for i, term in enumerate(terms, 1):
                log_q = term.log_probabilities(head, part)
                if not wanted:
                    values[i - 1, part] = term.divergence.value(logp, log_q)
                    continue
                values[i - 1, part], grad = term.divergence.gradient(logp, p, log_q)
                if i in rows:
                    rows[i][part] = torch.autograd.grad(logits, leaf, grad, retain_graph=True)[0]
            if 0 in rows:
                rows[0][part] = torch.autograd.grad(logits, leaf, _minus_one_hot(p, target))[0]
        norms = nll.new_zeros(1 + len(terms), n)
        for i, row in rows.items():
            norms[i] = torch.linalg.vector_norm(row, dim=-1, dtype=torch.float32)
        ctx.save_for_backward(hidden, targets)
        ctx.rows, ctx.norms, ctx.terms, ctx.head, ctx.chunk = rows, norms, terms, head, chunk
        ctx.mark_non_differentiable(norms)
        return nll, values, norms

    @staticmethod
    def backward(ctx, grad_nll, grad_values, _):
        hidden, targets = ctx.saved_tensors
        factors = torch.cat([grad_nll[None], grad_values])
        found = dict(ctx.rows)
        if late := [i for i in range(len(factors)) if i not in found and bool(factors[i].any())]:
            found |= _late_rows(ctx, hidden, targets, factors, late)
        # The sum runs in float32 also where the rows are bf16.
        parts = [factors[i][:, None] * found[i] for i in sorted(found)]
        total = sum(parts[1:], parts[0]) if parts else torch.zeros_like(hidden)
        return total.to(hidden.dtype), None, None, None, None, None


def _logits(head: Head, hidden: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
    with torch.set_grad_enabled(wanted):
        leaf = hidden.detach().requires_grad_(wanted)
        return head(leaf), leaf


def _minus_one_hot(p: Float[Tensor, "position vocab"], target: Int[Tensor, "position 1"]) -> Tensor:
    """p - onehot(target), in p's place: the gradient of the nll at the logits."""
    return p.scatter_(-1, target, p.gather(-1, target) - 1)


def _late_rows(ctx, hidden: Tensor, targets: Tensor, factors: Tensor, late: Sequence[int]) -> dict[int, Tensor]:
    """Rows d term / d hidden of the chunks in which the term has a factor, zeros in the others."""
    rows = {i: torch.zeros_like(hidden) for i in late}
    for start in range(0, len(hidden), ctx.chunk):
        part = slice(start, start + ctx.chunk)
        if not (asked := [i for i in late if bool(factors[i, part].any())]):
            continue
        logits, leaf = _logits(ctx.head, hidden[part], True)
        logp = logits.detach().log_softmax(-1)
        p = logp.exp()
        for i in sorted(asked, reverse=True):  # the nll last: it overwrites p
            if i:
                term = ctx.terms[i - 1]
                grad = term.divergence.gradient(logp, p, term.log_probabilities(ctx.head, part))[1]
            else:
                grad = _minus_one_hot(p, targets[part, None])
            rows[i][part] = torch.autograd.grad(logits, leaf, grad, retain_graph=True)[0]
            ctx.norms[i, part] = torch.linalg.vector_norm(rows[i][part], dim=-1, dtype=torch.float32)
    return rows
