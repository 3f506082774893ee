"""`heal`: LoRA training on completions while a barrier holds the student near a reference.

Knows nothing of steering, filters, rounds' verdicts and the run folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steer_heal.arguments import checked
from steer_heal.errors import InputError
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import stack_of
from steer_heal.healing.barriers import scheduled_lam, update_lam
from steer_heal.healing.config import HealConfig
from steer_heal.healing.figures import epoch_row, heal_figures
from steer_heal.healing.lora import Lora, checkpoint_blocks, injected, seeded
from steer_heal.healing.loss import Task, Term, backward_step, fitted, held_out, measure, step_figures
from steer_heal.healing.plan import lr_factor, split_rows, step_rows
from steer_heal.healing.references import ReferenceStates, check_rows
from steer_heal.healing.result import DivergedError, Healed
from steer_heal.healing.targets import Teacher, make_teacher
from steer_heal.model import LM, GivenLM, as_lm, check_head
from steer_heal.model.memory import free_for
from steer_heal.model.structure import fingerprint
from steer_heal.steering.injector import refuse_steered
from steer_heal.texts.completion import Completion


@checked
def heal(
    lm: GivenLM,
    completions: Sequence[Completion],
    config: HealConfig | None = None,
    references: Mapping[str, ReferenceStates] | None = None,
    *,
    teacher: ReferenceStates | None = None,
    round: int = 0,
    lam0: Mapping[str, float] | None = None,
    steering_divergence: float | None = None,
    weights: Sequence[float] | None = None,
    barrier_weights: Sequence[float] | None = None,
    on_step: Callable[[dict], None] | None = None,
    memory: float | None = None,
    seed: int | None = None,
) -> Healed:
    """Train one adapter on the completions; the model itself is afterwards as it was before.

    Loss, averaged over completions: nll + sum over references of lam * relu(D - tau), where nll is the token mean and
    D the aggregate of the per-position divergence over the completion's tokens, all in nats. It does not depend on
    how the rows are packed into batches.

    Args:
        lm: the student's starting point: the model with all earlier rounds folded in.
        completions: training data; prompts are context, completion tokens (end of turn included) are targets.
        config: knobs, see `HealConfig`.
        references: by name, `prev` (this model as it is now) and `base` (the original), from `reference_states`. The
            barrier needs those that `config.reference` names; the others are measured only.
        teacher: with `config.targets` "teacher", the states of a frozen teacher on the completions (`reference_states`
            around a steered model, of the original, or joined from several): the loss's first term is then the
            token-mean divergence from its distribution instead of nll.
        round: index of the round, for the schedule of lam and the seeds.
        lam0: multipliers by reference name to start from in budget mode, `Healed.lam` of the round before.
        steering_divergence: what the steering itself caused, in nats (`mean_divergence`); the unit of `tau_rel`.
        weights: a factor per completion on its nll, beside `row_weights` (see `selection.length_weights`, say).
        barrier_weights: a factor per completion on its barrier (hold-outs 4x, say), times `replay_weight` where it is
            the original model's own.
        on_step: called with each row of the history, of steps (`kind` "step") and of epochs (`kind` "epoch").
        memory: bytes that the heal plans with (`plan.fit`), None: what is free.
        seed: instead of `config.seed`.

    Raises:
        InputError: too few, empty or too long completions; a missing or stale reference; a head that is more than a
            linear map with scale and soft cap; a model that carries PEFT layers.
        DivergedError: a loss or gradient that is not finite; names the step and the rows, holds the last good adapter.
    """
    lm = as_lm(lm)
    refuse_steered(lm.model, "heal")
    if torch.is_inference_mode_enabled():
        raise InputError("heal inside torch.inference_mode() has no gradients: leave it (torch.no_grad() may stay)")
    config = config or HealConfig()
    if seed is not None:
        config = replace(config, seed=seed)
    check_rows(lm, completions)
    references = dict(references or {})
    _check_references(lm, completions, config, references)
    check_head(lm)
    terms, factors = _terms(config, references, steering_divergence), _nll_weights(completions, weights)
    held = _barrier_weights(completions, config, barrier_weights)
    taught = _teacher(completions, config, teacher, references.get("prev"))
    task = Task(lm, completions, config, terms, held, factors, taught)
    train, heldout = split_rows(completions, config, round)
    lam = {term.name: _start_lam(config, term.name, round, lam0) for term in task.terms}
    with injected(lm, config, config.seed, round) as lora, torch.enable_grad():
        task = replace(task, fit=fitted(task, lora, free_for(lm.base) if memory is None else memory))
        if task.fit.checkpointing:
            checkpoint_blocks(lm)
        before = measure(lm, completions, references, references.get("prev"), taught)  # B = 0: the student is prev
        steps, epochs, kept = [], [], {}
        for row in _train(task, lora, train, heldout, lam, round, before):
            (steps if row["kind"] == "step" else epochs).append(row)
            if row["kind"] == "epoch" and _is_kept(row, kept, config):
                kept, adapter = row, lora.adapter()
            if on_step is not None:
                on_step(row)
        lora.load(adapter)
        after = measure(lm, completions, references, teacher=taught)
    figures = heal_figures(task, train, heldout, before, after, steps, kept["epoch"]) | {
        "reach": lora.reach,
        **vars(task.fit),
    }
    return Healed(adapter, config, tuple(steps), tuple(epochs), figures, lam, {t.name: t.tau for t in task.terms})


def overfit_check(lm: LM, completion: Completion, config: HealConfig | None = None, passes: int = 60) -> float:
    """Nats that plain training on ONE known trait-laden completion takes off its token-mean nll.

    Tells two failures apart when a heal moved nothing: near 0, the adapter cannot express the text (rank, layers, lr);
    large, it can, and the evaluation or the training set is what to look at.
    """
    plain = {"reg": "nll", "targets": "tokens", "heldout": 0.0, "epochs": passes, "batch_size": 1, "grad_accum": 1}
    config = replace(config or HealConfig(), **plain)
    figures = heal(lm, [completion], config).figures
    return figures["train_nll_before"] - figures["train_nll_after"]


def _train(
    task: Task, lora: Lora, train: list[int], heldout: list[int], lam: dict[str, float], round: int, before: dict
) -> Iterator[dict]:
    """Run the optimiser; yields a row per step and per epoch, updates `lam` in place in budget mode."""
    config = task.config
    fused = task.lm.device.type in ("cpu", "cuda")
    optimiser = torch.optim.AdamW(
        lora.parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=fused
    )
    order = seeded(config.seed, round, "order")
    per_epoch = math.ceil(len(train) / (config.batch_size * config.grad_accum))
    total, step, checked, fired = per_epoch * config.epochs, 0, False, 0.0
    for epoch in range(config.epochs):
        seen: dict[str, list[float]] = {"nll": [], **({"target": []} if task.teacher else {})}
        for rows in step_rows(train, task.completions, config, order):
            lr = config.lr * lr_factor(step, total, config.warmup)
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.zero_grad(set_to_none=True)
            stats = backward_step(task, lora, rows, lam, fired)
            norm = torch.nn.utils.clip_grad_norm_(lora.parameters, config.clip or math.inf)
            figures = {"step": step, "epoch": epoch, **step_figures(task, rows, stats, lam), "grad_norm": norm.item()}
            _check_finite(figures, stats, rows, lora)
            fired = max((figures[f"{term.name}_fired"] for term in task.terms), default=0.0)
            optimiser.step()
            if not checked and stats["squares"].any():  # a teacher may leave the first rows as they are
                _check_all_moved(lora)
                checked = True
            if config.lam_mode == "budget" and any(task.barrier_weights[i] for i in rows):
                for name, tau in ((term.name, term.tau) for term in task.terms):
                    lam[name] = update_lam(lam[name], figures[f"{name}_agg"], tau, config.lam_rate, config.lam_max)
            for name, values in seen.items():
                values += stats[name].tolist()
            yield {"kind": "step", **figures, "lr": lr}
            step += 1
        now = held_out(task, heldout, lam) if heldout else {}
        if bad := [i for i, loss in zip(heldout, now.get("loss", ()), strict=bool(now)) if not math.isfinite(loss)]:
            raise _diverged(step - 1, "held-out loss", bad, lora.adapter())
        yield epoch_row(epoch, seen, train, now, heldout, before)


def _is_kept(row: Mapping, kept: Mapping, config: HealConfig) -> bool:
    """Whether an epoch takes the place of the one kept so far: yes, unless it is to be the best and is worse."""
    if config.keep_epoch == "last" or not kept or "heldout_loss" not in row:
        return True
    return row["heldout_loss"] <= kept["heldout_loss"]


def _check_finite(figures: Mapping, stats: Mapping[str, Tensor], rows: Sequence[int], lora: Lora) -> None:
    bad = [i for i, fine in zip(rows, stats["loss"].isfinite().tolist(), strict=True) if not fine]
    if not bad and math.isfinite(figures["grad_norm"]):
        return
    what, where = ("loss", bad) if bad else ("gradient", list(rows))
    step = figures["step"]
    # The optimiser has not moved yet, so the factors are still those of the last good step.
    raise _diverged(step, what, where, lora.adapter() if step else None)


def _diverged(step: int, what: str, rows: Sequence[int], adapter: Adapter | None) -> DivergedError:
    return DivergedError(
        f"step {step}: the {what} is not finite on completion {', '.join(map(str, rows))}: lower lr or lam, drop the "
        "completion, or load the model in float32",
        step,
        tuple(rows),
        adapter,
    )


def _check_all_moved(lora: Lora) -> None:
    still = [name for name, b in lora.b.items() if not b.any()]
    if still:
        raise InputError(
            f"no gradient reached {still[0]} ({len(still)} of {len(lora.b)} modules) in the first step that had one: "
            f"leave such modules out (exclude_modules {' '.join(sorted({n.rpartition('.')[2] for n in still}))})"
        )


def _check_references(
    lm: LM, completions: Sequence[Completion], config: HealConfig, references: Mapping[str, ReferenceStates]
) -> None:
    for name in config.barrier_names():
        if name not in references:
            raise InputError(
                f"reg {config.reg!r} with reference {config.reference!r} needs the states of {name!r}: pass "
                f"references={{{name!r}: reference_states(lm, completions)}}"
            )
    now = fingerprint(lm.base)
    stack = stack_of(lm.base)
    for name, states in references.items():
        if states.model != lm.name or not states.plain:
            what = f"the model {states.model!r}" if states.plain else "a steered model"
            raise InputError(f"reference {name!r} holds the states of {what}, not of {lm.name!r}: compute it again")
        if name == "prev" and states.weights != now:
            raise InputError("reference 'prev' is stale: the model's weights have changed since; compute it again")
        if name == "base" and stack is not None and len(stack) and states.weights == now:
            raise InputError("reference 'base' was computed with rounds folded in: do it inside stack.unfolded()")
        for completion in completions:
            states.of(completion)


def _terms(
    config: HealConfig, references: Mapping[str, ReferenceStates], steering_divergence: float | None
) -> tuple[Term, ...]:
    tau = config.tau
    if config.tau_rel is not None and config.reg != "nll":
        if steering_divergence is None or not (math.isfinite(steering_divergence) and steering_divergence > 0):
            raise InputError(
                f"tau_rel {config.tau_rel} is a share of the steering's own divergence, but that is "
                f"{steering_divergence}: pass steering_divergence=mean_divergence(...) above 0, or an absolute tau"
            )
        tau = config.tau_rel * steering_divergence
    budgets = {"prev": tau, "base": tau if config.tau_base is None else config.tau_base}
    return tuple(Term(name, references[name], budgets[name]) for name in config.barrier_names())


def _teacher(
    completions: Sequence[Completion], config: HealConfig, states: ReferenceStates | None, prev: ReferenceStates | None
) -> Teacher | None:
    if (states is None) != (config.targets == "tokens"):
        given = "no teacher was given" if states is None else "a teacher was given"
        raise InputError(f"targets {config.targets!r} and {given}: pass teacher=reference_states(...) with 'teacher'")
    if states is None:
        return None
    for completion in completions:
        states.of(completion)
    return make_teacher(config, states, prev)


def _nll_weights(completions: Sequence[Completion], given: Sequence[float] | None) -> tuple[float, ...]:
    weights = _checked("weights", completions, given)
    if not any(weights):
        raise InputError("weights: all of them are 0, so there is nothing to train on: give one above 0")
    return tuple(weights)


def _barrier_weights(
    completions: Sequence[Completion], config: HealConfig, given: Sequence[float] | None
) -> tuple[float, ...]:
    weights, own = _checked("barrier_weights", completions, given), [c.origin == "base" for c in completions]
    if config.barrier_rows == "replay" and config.reg != "nll":
        if not any(own):
            raise InputError(
                "barrier_rows replay: no completion has origin 'base'; mix some in, or use barrier_rows all"
            )
        return tuple(w * config.replay_weight if o else 0.0 for w, o in zip(weights, own, strict=True))
    return tuple(w * config.replay_weight if o else w for w, o in zip(weights, own, strict=True))


def _checked(name: str, completions: Sequence[Completion], given: Sequence[float] | None) -> list[float]:
    weights = [1.0] * len(completions) if given is None else list(given)
    if len(weights) != len(completions) or not all(math.isfinite(w) and w >= 0 for w in weights):
        raise InputError(f"{name}: give one finite number of at least 0 per completion")
    return weights


def _start_lam(config: HealConfig, name: str, round: int, lam0: Mapping[str, float] | None) -> float:
    if config.lam_mode == "budget" and lam0 and name in lam0:
        return lam0[name]
    lam = config.lam_base if name == "base" and config.lam_base is not None else config.lam
    return scheduled_lam(lam, round, config.lam_power)
