"""What a heal is held back by: divergences per position, aggregation per completion, hinge, multiplier, chunked loss.

Knows nothing of LoRA, data, rounds or steering; it sees hidden states, token ids and an output head.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steer_heal.errors import InputError
from steer_heal.lm import LM, Head

DivergenceFunction = Callable[
    [Float[Tensor, "position vocab"], Float[Tensor, "position vocab"]], Float[Tensor, " position"]
]
CHUNK_ELEMENTS = 2**23
"""Entries of one [positions, vocabulary] chunk: 32 MiB in float32, of which about five are alive at a time."""


# ---------------------------------------------------------------- divergences per position, in nats


def kl_rev(
    logp_student: Float[Tensor, "position vocab"], logp_reference: Float[Tensor, "position vocab"]
) -> Float[Tensor, " position"]:
    """KL(student || reference) = sum p (log p - log q), in nats: dear where the student goes and the reference does not."""
    return (logp_student.exp() * _log_ratio(logp_student - logp_reference)).sum(-1)


def kl_fwd(
    logp_student: Float[Tensor, "position vocab"], logp_reference: Float[Tensor, "position vocab"]
) -> Float[Tensor, " position"]:
    """KL(reference || student) = sum q (log q - log p), in nats: dear where the student gives up what the reference does."""
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


def _autograd_grad(function: DivergenceFunction) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Gradient of a user's own divergence, by autograd inside the chunk."""

    def gradient(logp: Tensor, p: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = logp.detach().requires_grad_()
            value = function(leaf, logq)
            _check_user_value(function, value, logp)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        # Through log-softmax: d/d logit_v = g_v - p_v sum g.
        return value.detach().float(), grad.addcmul(p, grad.sum(-1, keepdim=True), value=-1)

    return gradient


def _check_user_value(function: DivergenceFunction, value: object, logp: Tensor) -> None:
    name = getattr(function, "__name__", repr(function))
    if not isinstance(value, Tensor) or value.shape != logp.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"divergence {name}: it must return one value per position {tuple(logp.shape[:1])}, got {got}")
    if not value.requires_grad:
        raise InputError(f"divergence {name}: its value does not depend on the student's log-probabilities")


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
        kl_top_k: truncate the built-in ones to the reference's k likeliest tokens and a tail bucket; 0: full vocabulary.

    Raises:
        InputError: unknown name, a module or function that cannot be imported, top-k of something that is no KL.
    """
    if reg == "nll":
        return None
    if isinstance(reg, str) and reg in DIVERGENCES:
        if not kl_top_k:
            return DIVERGENCES[reg]
        return Divergence(f"{reg}_top{kl_top_k}", top_k(DIVERGENCES[reg].value, kl_top_k), _top_k_grad(reg, kl_top_k))
    function = _import_function(reg) if isinstance(reg, str) else reg
    if not callable(function):
        raise InputError(f"reg {reg!r} is not a function (logp_student, logp_reference) -> one value per position")
    if kl_top_k:
        raise InputError(f"kl_top_k={kl_top_k} truncates kl_rev and kl_fwd only: set it to 0 for {reg!r}")
    return Divergence(getattr(function, "__name__", "user"), function, _autograd_grad(function))


def _import_function(reg: str) -> object:
    names = ", ".join(["nll", *DIVERGENCES])
    module, colon, function = reg.partition(":")
    if not colon or not module or not function:
        raise InputError(f"reg {reg!r} is unknown: use {names}, or module:function for your own divergence")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as problem:
        raise InputError(
            f"reg {reg!r} cannot be imported ({problem}): use {names} or a module on the path"
        ) from problem


# ---------------------------------------------------------------- aggregates over the positions of one completion


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


def resolve_aggregate(name: str) -> Callable[[Float[Tensor, " position"]], Float[Tensor, ""]]:
    """An aggregate of the per-position divergences of ONE completion, in float32. Raises InputError for unknown names."""
    if name not in AGGREGATES:
        raise InputError(f"kl_agg {name!r} is unknown: use {', '.join(AGGREGATES)}")
    return AGGREGATES[name]


def aggregate_rows(
    values: Float[Tensor, " position"], lengths: Sequence[int], kl_agg: str
) -> Float[Tensor, " completion"]:
    """The aggregate of each completion; `lengths` positions follow one another in `values`."""
    aggregate = resolve_aggregate(kl_agg)
    return torch.stack([aggregate(row) for row in values.split(list(lengths))])


# ---------------------------------------------------------------- hinge and multiplier


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


# ---------------------------------------------------------------- loss over the vocabulary, in chunks of positions


@dataclass(frozen=True)
class PositionLosses:
    """Losses per completion position, differentiable with respect to the hidden states.

    Attributes:
        nll: negative log-likelihood of the target token, in nats.
        divergence: one row per reference, in nats.
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
) -> PositionLosses:
    """Negative log-likelihood and divergence to each reference at every position.

    Every position's losses depend on its own hidden state alone, so the forward pass can store one row
    d loss / d hidden per position and term ([position, width]); the backward pass scales rows, and any aggregate or
    hinge composes. No [position, vocab] tensor outlives its chunk of `chunk` positions, and none is recomputed.
    The head is frozen: it gets no gradient. GEMMs run in the head's dtype, everything after the logits in float32.
    """
    if len(references) and divergence is None:
        raise ValueError("references need a divergence")
    if chunk is None:
        chunk = default_chunk(head.linear.weight.shape[0])
    return PositionLosses(*_ChunkedLosses.apply(hidden, targets, tuple(references), head, divergence, chunk))


def default_chunk(vocab: int) -> int:
    """Positions per chunk such that one chunk holds about `CHUNK_ELEMENTS` entries."""
    return max(16, min(1024, CHUNK_ELEMENTS // vocab))


class _ChunkedLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, targets, references, head, divergence, chunk):
        n, wanted = len(hidden), ctx.needs_input_grad[0]
        nll = hidden.new_empty(n, dtype=torch.float32)
        values = hidden.new_empty(len(references), n, dtype=torch.float32)
        rows = hidden.new_empty(1 + len(references), n if wanted else 0, hidden.shape[1])
        for start in range(0, n, chunk):
            part = slice(start, start + chunk)
            with torch.set_grad_enabled(wanted):
                leaf = hidden[part].detach().requires_grad_(wanted)
                logits = head(leaf)
            logp = logits.detach().log_softmax(-1)
            target = targets[part, None]
            nll[part] = -logp.gather(-1, target)[:, 0]
            if not wanted:
                for i, reference in enumerate(references):
                    values[i, part] = divergence.value(logp, head(reference[part]).log_softmax(-1))
                continue
            p = logp.exp()
            for i, reference in enumerate(references):
                values[i, part], grad = divergence.gradient(logp, p, head(reference[part]).log_softmax(-1))
                rows[1 + i, part] = torch.autograd.grad(logits, leaf, grad, retain_graph=True)[0]
            grad = p.scatter_add_(-1, target, -torch.ones_like(target, dtype=p.dtype))
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
        return total.to(rows.dtype), None, None, None, None, None


@torch.no_grad()
def check_head(lm: LM, positions: int = 24) -> float:
    """Largest difference between `lm.head` on the last hidden states and the model's own logits, in logits.

    Guards the chunked loss against heads that do more than `Head` knows (an unknown scale or cap, an adapter, a
    quantised weight). Raises InputError when the two differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    rows = lm.base.get_input_embeddings().weight.shape[0]
    ids = torch.randint(rows, (2, min(positions, lm.context_length)), generator=generator)
    batch = {"input_ids": ids.to(lm.device), "attention_mask": torch.ones_like(ids).to(lm.device)}
    own = lm.base(**batch, use_cache=False).logits.float()
    ours = lm.head(lm.hidden_states(batch))
    if own.shape != ours.shape:
        raise InputError(f"{lm.name}: the output head gives {tuple(ours.shape)} logits, the model {tuple(own.shape)}")
    difference = (own - ours)[own.isfinite() & ours.isfinite()].abs().max().item()
    scale = own[own.isfinite()].abs().max().item()
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 4e-3}.get(lm.dtype, 1e-4)
    if not bool((own.isfinite() == ours.isfinite()).all()) or difference > tolerance * max(scale, 1e-6):
        raise InputError(
            f"{lm.name}: logits of the bare output head differ from the model's own by {difference:.3g} (largest logit "
            f"{scale:.3g}): this head does something the chunked loss does not know, so it cannot be trained on here"
        )
    return difference
