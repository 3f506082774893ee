"""Divergences per position, in nats, by name or as a user's own function, each with its gradient at the logits.

Knows nothing of hidden states, completions and budgets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steer_heal.errors import InputError
from steer_heal.healing.config import DivergenceFunction, user_divergence


def kl_rev(
    logp_student: Float[Tensor, "position vocab"], logp_reference: Float[Tensor, "position vocab"]
) -> Float[Tensor, " position"]:
    """KL(student || reference) = sum p (log p - log q), nats: dear where the student goes and the reference not."""
    return (logp_student.exp() * _log_ratio(logp_student - logp_reference)).sum(-1)


def kl_fwd(
    logp_student: Float[Tensor, "position vocab"], logp_reference: Float[Tensor, "position vocab"]
) -> Float[Tensor, " position"]:
    """KL(reference || student) = sum q (log q - log p), nats: dear where the student drops what the reference does."""
    return (logp_reference.exp() * _log_ratio(logp_reference - logp_student)).sum(-1)


def top_k(divergence: DivergenceFunction, k: int) -> DivergenceFunction:
    """`divergence` over the reference's `k` likeliest tokens and one bucket for all others.

    Merging tokens can only lower a KL (data-processing inequality), and with k >= vocabulary nothing is merged.
    """

    def truncated(logp_student: Tensor, logp_reference: Tensor) -> Tensor:
        top = logp_reference.topk(min(k, logp_reference.shape[-1]), dim=-1).indices
        return divergence(_bucketed(logp_student, top), _bucketed(logp_reference, top))

    return truncated


def _log_ratio(difference: Tensor) -> Tensor:
    """A log ratio whose numerator may have probability 0: there p log(p/q) is 0, so -inf and inf - inf become 0."""
    return difference.nan_to_num(nan=0.0, posinf=math.inf, neginf=0.0)


def _bucketed(logp: Tensor, top: Tensor) -> Tensor:
    tail = logp.scatter(-1, top, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logp.gather(-1, top), tail], dim=-1)


# The closed forms return value and gradient with respect to the student's LOGITS. They overwrite `logq`, the one
# buffer they are given for it, and leave `logp` and `p` as they are.


def _kl_rev_grad(logp: Tensor, p: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
    """d KL(p||q) / d logit_v = p_v (log p_v/q_v - KL)."""
    terms = torch.sub(logp, logq, out=logq).nan_to_num_(nan=0.0, posinf=math.inf, neginf=0.0).mul_(p)
    value = terms.sum(-1)
    return value, terms.addcmul_(p, value[:, None], value=-1)


def _kl_fwd_grad(logp: Tensor, p: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
    """d KL(q||p) / d logit_v = p_v - q_v."""
    q = logq.exp()
    terms = logq.sub_(logp).nan_to_num_(nan=0.0, posinf=math.inf, neginf=0.0).mul_(q)
    return terms.sum(-1), torch.sub(p, q, out=q)


def _top_k_grad(name: str, k: int) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The same two gradients with one tail bucket: every token of the tail has the tail's log ratio."""

    def gradient(logp: Tensor, p: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        top = logq.topk(min(k, logq.shape[-1]), dim=-1).indices
        bp, bq = _bucketed(logp, top), _bucketed(logq, top)
        if name == "kl_rev":
            ratio = _log_ratio(bp - bq)
            value = (bp.exp() * ratio).sum(-1)
            inner = ratio - value[:, None]
            grad = torch.mul(p, inner[:, -1:], out=logq)
            return value, grad.scatter_(-1, top, (bp.exp() * inner)[:, :-1])
        value = (bq.exp() * _log_ratio(bq - bp)).sum(-1)
        tail = (bq - bp)[:, -1:].exp().nan_to_num_(nan=0.0, posinf=math.inf)
        grad = torch.mul(p, 1 - tail, out=logq)
        return value, grad.scatter_(-1, top, (bp.exp() - bq.exp())[:, :-1])

    return gradient


def _autograd_grad(
    function: DivergenceFunction, name: str
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Gradient of a user's own divergence, which complaints call `name`, by autograd inside the chunk."""

    def gradient(logp: Tensor, p: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = logp.detach().requires_grad_()
            try:
                value = function(leaf, logq)
            except (Exception, SystemExit) as problem:  # the user's code may do anything
                raise InputError(
                    f"divergence {name!r} cannot be used ({type(problem).__name__}: {problem}): it is called "
                    "with (logp_student, logp_reference), each [position, vocab], and returns one value per position"
                ) from problem
            _check_user_value(name, value, logp)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        # Through log-softmax: d/d logit_v = g_v - p_v sum g.
        return value.detach().float(), grad.addcmul(p, grad.sum(-1, keepdim=True), value=-1)

    return gradient


def _check_user_value(name: str, value: object, logp: Tensor) -> None:
    if not isinstance(value, Tensor) or value.shape != logp.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"divergence {name!r}: it must return one value per position {tuple(logp.shape[:1])}, got {got}"
        )
    if not value.requires_grad:
        raise InputError(f"divergence {name!r}: its value does not depend on the student's log-probabilities")


@dataclass(frozen=True)
class Divergence:
    """A divergence per position: `value(logp_student, logp_reference)` in nats, and how to get its logit gradient."""

    name: str
    value: DivergenceFunction
    gradient: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


DIVERGENCES: Mapping[str, Divergence] = {
    "kl_rev": Divergence("kl_rev", kl_rev, _kl_rev_grad),
    "kl_fwd": Divergence("kl_fwd", kl_fwd, _kl_fwd_grad),
}


def resolve_reg(reg: str | DivergenceFunction, kl_top_k: int = 0) -> Divergence | None:
    """The divergence a barrier uses; None for `nll`, which has no barrier.

    Args:
        reg: `nll`, `kl_rev`, `kl_fwd`, `module:function` (imported), or a function
            `(logp_student [position, vocab], logp_reference) -> [position]` in nats.
        kl_top_k: truncate the built-in ones to the reference's k likeliest tokens and a tail bucket; 0: no.

    Raises:
        InputError: unknown name, a module or function that cannot be imported, top-k of something that is no KL.
    """
    if reg == "nll":
        return None
    if isinstance(reg, str) and reg in DIVERGENCES:
        if not kl_top_k:
            return DIVERGENCES[reg]
        return Divergence(f"{reg}_top{kl_top_k}", top_k(DIVERGENCES[reg].value, kl_top_k), _top_k_grad(reg, kl_top_k))
    function = user_divergence(reg, kl_top_k)
    name = reg if isinstance(reg, str) else getattr(function, "__name__", "user")
    return Divergence(name, function, _autograd_grad(function, name))
