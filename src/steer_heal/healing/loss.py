"""The loss of one optimiser step, its gradient and its figures; and the same losses measured without gradients.

Knows nothing of optimisers and of how rows are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from steer_heal.healing.barriers import (
    DIVERGENCES,
    PositionLosses,
    aggregate_rows,
    penalty,
    position_losses,
    resolve_reg,
)
from steer_heal.healing.config import HealConfig
from steer_heal.healing.lora import Lora
from steer_heal.healing.plan import Fit, fit, row_factors
from steer_heal.healing.references import ReferenceStates, by_completion, completion_hidden
from steer_heal.healing.targets import Teacher
from steer_heal.model import LM
from steer_heal.model.depth import pick_layers
from steer_heal.model.memory import kept_for_backward
from steer_heal.processes import count, each, sum_gradients
from steer_heal.texts.completion import Completion


@dataclass(frozen=True)
class Term:
    """One barrier: a frozen reference and its budget in nats."""

    name: str
    states: ReferenceStates
    tau: float


@dataclass(frozen=True)
class Task:
    """Everything about the data that stays fixed while the adapter trains."""

    lm: LM
    completions: Sequence[Completion]
    config: HealConfig
    terms: tuple[Term, ...]
    barrier_weights: tuple[float, ...]
    nll_weights: tuple[float, ...]
    teacher: Teacher | None = None
    fit: Fit | None = None

    @cached_property
    def lengths(self) -> list[int]:
        """Completion tokens by row."""
        return [len(c.token_ids) for c in self.completions]

    @cached_property
    def row_factors(self) -> list[float]:
        """Factor of each row's token-mean nll: its weight, and what `row_weights` makes of its length."""
        return row_factors(self.lengths, self.config.row_weights, self.nll_weights)


def fitted(task: Task, lora: Lora, free: float) -> Fit:
    """How this task's steps fit bytes that are free, from what a pass over its longest row would keep."""
    lm, config = task.lm, task.config
    longest = max(task.completions, key=lambda c: len(c.prompt_ids) + len(c.token_ids))
    kept = kept_for_backward(lambda: completion_hidden(lm, [longest]))
    one = (len(longest.prompt_ids) + len(longest.token_ids)) * lm.width * torch.finfo(lm.dtype).bits / 8
    blocks = len(lm.blocks) - pick_layers(config.lora_layers, len(lm.blocks))[0]  # those before keep nothing
    loss = (1 + len(task.terms) + bool(task.teacher)) * one
    optimiser = 3 * 4 * sum(factor.numel() for factor in lora.parameters)
    again = min(kept, kept / blocks + blocks * one)  # a block's inputs, and all of the one that is recomputed
    return fit(config, kept + loss, again + loss, free - optimiser, lm.head.linear.weight.shape[0])


def late_terms(task: Task, fired: float) -> set[int]:
    """Terms of `position_losses` of which hardly any row will ask a gradient.

    These are an nll that nothing is learnt from, and hinged barriers, unless a third of the rows of the step before
    (`fired` is their share) were over budget.
    """
    unlearnt = {0} if task.teacher and not task.config.token_weight else set()
    idle = task.config.lam_mode != "budget" and fired < 1 / 3
    return unlearnt | (set(range(1, 1 + len(task.terms))) if idle else set())


def backward_step(
    task: Task, lora: Lora, rows: Sequence[int], lam: Mapping[str, float], fired: float = 0.0
) -> dict[str, Tensor]:
    """Accumulate the gradient of one optimiser step's loss, at most `batch_size` rows at a time.

    Several processes share the rows; each then has the whole gradient and all rows' figures.

    Returns, by row: `loss`, `nll`, `d` [term, row], with a teacher `target`, and for the whole step the squared
    hidden-state gradient norms `squares` [1 + term], the divergence `mean` and `max` per term; all detached, on the
    model's device.
    """
    config = task.config
    # Rows of similar length share a forward pass; which ones do does not change the sum.
    size = min(task.fit.rows if task.fit else config.batch_size, -(-len(rows) // count()))
    late = late_terms(task, fired)

    def backward(micro: Sequence[int]) -> dict[str, Tensor]:
        losses, lengths = completion_losses(task, micro, late)
        by_row = row_losses(task, micro, losses, lengths, lam, config.lam_mode, len(rows))
        loss = by_row.pop("loss")
        outputs = [losses.nll, losses.divergence] if len(losses.divergence) else [losses.nll]
        gradients = torch.autograd.grad(loss.sum(), outputs)
        torch.autograd.backward(outputs, gradients)
        coefficients = torch.cat([g.reshape(-1, len(losses.nll)) for g in gradients])
        values = losses.divergence[: len(task.terms)].detach()
        return {
            "loss": loss.detach() * len(rows),
            **{name: found.detach() for name, found in by_row.items()},
            "squares": (coefficients * losses.row_norms).square().sum(-1),
            "sum": values.sum(-1),
            "max": values.amax(-1),
        }

    parts = each([rows[start : start + size] for start in range(0, len(rows), size)], backward)
    sum_gradients(lora.parameters)
    if config.spectral:
        (config.spectral * lora.spectral()).backward()
    by_row = ("loss", "nll", "d", *(("target",) if task.teacher else ()))
    joined = {key: torch.cat([part[key] for part in parts], dim=-1) for key in by_row}
    joined["squares"] = torch.stack([part["squares"] for part in parts]).sum(0)
    joined["mean"] = torch.stack([part["sum"] for part in parts]).sum(0) / sum(task.lengths[i] for i in rows)
    joined["max"] = torch.stack([part["max"] for part in parts]).amax(0)
    return joined


def row_losses(
    task: Task,
    rows: Sequence[int],
    losses: PositionLosses,
    lengths: Sequence[int],
    lam: Mapping[str, float],
    lam_mode: str,
    of: int = 1,
) -> dict[str, Tensor]:
    """By row: `loss` as it is minimised, over `of` rows; `nll`, `d` [term, row] and, with a teacher, `target`, in nats.

    `target` is the token-mean divergence from the teacher's distribution.
    """
    n = len(task.terms)
    nll = aggregate_rows(losses.nll, lengths, "mean")
    d = [aggregate_rows(values, lengths, task.config.kl_agg) for values in losses.divergence[:n]]
    out = {"nll": nll, "d": torch.stack(d) if d else nll.new_zeros(0, len(rows))}
    learnt = nll
    if task.teacher:
        out["target"] = aggregate_rows(losses.divergence[n], lengths, "mean")
        learnt = task.teacher.mixed(nll, out["target"])
    loss = learnt * nll.new_tensor([task.row_factors[i] / of for i in rows])
    weight = nll.new_tensor([task.barrier_weights[i] / of for i in rows])
    for term, value in zip(task.terms, d, strict=True):
        loss = loss + weight * penalty(value, lam[term.name], term.tau, lam_mode)
    return {**out, "loss": loss}


@torch.no_grad()
def held_out(task: Task, rows: Sequence[int], lam: Mapping[str, float]) -> dict[str, list[float]]:
    """By held-out row: `nll`, with a teacher `target`, and `loss` as it is minimised, without the spectral term; nats.

    The penalty is hinged in budget mode too: a row under its budget earns nothing there.
    """
    wanted = ("nll", "target", "loss") if task.teacher else ("nll", "loss")

    def losses(batch: list[int]) -> list[tuple[float, ...]]:
        some = [rows[j] for j in batch]
        found = row_losses(task, some, *completion_losses(task, some), lam, "constant")
        return list(zip(*(found[name].tolist() for name in wanted), strict=True))

    by_row = by_completion(task.lm, [task.completions[i] for i in rows], losses)
    return dict(zip(wanted, map(list, zip(*by_row, strict=True)), strict=True))


def completion_losses(task: Task, rows: Sequence[int], late: Collection[int] = ()) -> tuple[PositionLosses, list[int]]:
    """Losses at every completion position of the rows, and the rows' lengths."""
    completions = [task.completions[i] for i in rows]
    hidden, targets, lengths = completion_hidden(task.lm, completions)
    states = [term.states.rows_of(completions) for term in task.terms]
    divergence = resolve_reg(task.config.reg, task.config.kl_top_k) if task.terms else None
    target = task.teacher.at(completions) if task.teacher else None
    chunk = task.fit and task.fit.chunk
    return position_losses(task.lm.head, hidden, targets, states, divergence, chunk, target, late), lengths


def step_figures(task: Task, rows: Sequence[int], stats: Mapping[str, Tensor], lam: Mapping[str, float]) -> dict:
    """The figures of one optimiser step: mean `loss` and `nll` of its completions, and for each reference NAME

    `NAME_mean` and `NAME_max` over positions; `NAME_agg`, the mean over barrier rows (in a step without any over all)
    of the aggregate; `NAME_fired`, the share of these rows over budget; `NAME_ratio`, the norm of the barrier's
    gradient at the hidden states over that of the nll; `NAME_lam`, the multiplier used. Losses are in nats.
    """
    figures = {"loss": stats["loss"].mean().item(), "nll": stats["nll"].mean().item()}
    if task.teacher:
        figures["target"] = stats["target"].mean().item()
    norms, means, peaks = (stats[key].tolist() for key in ("squares", "mean", "max"))
    learnt = norms[0] + sum(norms[1 + len(task.terms) :])
    held = [j for j, i in enumerate(rows) if task.barrier_weights[i] > 0] or list(range(len(rows)))
    for k, term in enumerate(task.terms):
        d = [stats["d"][k].tolist()[j] for j in held]
        figures[f"{term.name}_mean"], figures[f"{term.name}_max"] = means[k], peaks[k]
        figures[f"{term.name}_agg"] = sum(d) / len(d)
        figures[f"{term.name}_fired"] = sum(value > term.tau for value in d) / len(d)
        figures[f"{term.name}_ratio"] = math.sqrt(norms[1 + k] / learnt) if learnt else 0.0
        figures[f"{term.name}_lam"] = lam[term.name]
    return figures


@torch.no_grad()
def measure(
    lm: LM,
    completions: Sequence[Completion],
    references: Mapping[str, ReferenceStates],
    student: ReferenceStates | None = None,
    teacher: Teacher | None = None,
) -> dict[str, list[float]]:
    """Per completion: token-mean `nll`, by reference name the token-mean KL(student||reference), and `target`, in nats.

    `target`, the divergence from the teacher's distribution that a heal minimises, is there with a teacher only.

    `student` are the model's own states where they are known already, which saves its forward pass; the divergence
    from itself is 0 and computed for no one.
    """
    others = {name: states for name, states in references.items() if student is None or states.rows is not student.rows}
    taught = ("target",) if teacher else ()
    names = ("nll", *others, *taught)

    def losses(batch: list[int]) -> list[tuple[float, ...]]:
        rows = [completions[i] for i in batch]
        if student is None:
            hidden, targets, lengths = completion_hidden(lm, rows)
        else:
            hidden, lengths = student.rows_of(rows), [len(c.token_ids) for c in rows]
            targets = torch.tensor([t for c in rows for t in c.token_ids], device=hidden.device)
        states = [reference.rows_of(rows) for reference in others.values()]
        target = teacher.at(rows) if teacher else None
        found = position_losses(lm.head, hidden, targets, states, DIVERGENCES["kl_rev"], target=target)
        means = [aggregate_rows(values, lengths, "mean").tolist() for values in (found.nll, *found.divergence)]
        return list(zip(*means, strict=True))

    by_row = by_completion(lm, completions, losses)
    out = {name: [0.0] * len(completions) for name in ("nll", *references, *taught)}
    return out | {name: [row[k] for row in by_row] for k, name in enumerate(names)}
