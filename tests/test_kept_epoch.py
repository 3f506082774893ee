"""A heal returns the epoch that was best on the rows held out; the loss that decides is the one it lowers."""

import math
from dataclasses import replace

import pytest
import torch
from healing_data import QUICK

from steer_heal.errors import InputError
from steer_heal.healing import DivergedError, HealConfig, heal, reference_states
from steer_heal.healing.bake import AdapterStack
from steer_heal.healing.barriers import kl_rev
from steer_heal.healing.plan import row_factors, split_rows
from steer_heal.loop.kinds import healed_kind
from steer_heal.steering import extract
from steer_heal.texts.generation import generate

OVERFIT = replace(QUICK, keep_epoch="best", heldout=0.25, lr=1e-3, epochs=8, row_weights="tokens")
"""Rows of a random model's own tokens: what is learnt by heart lowers no other row's loss for long."""


@pytest.fixture
def given(lm):
    """(rows, what a heal with sampled ids is given, what one with a teacher is given)."""
    vector = extract(lm, "You are kind.", "You are cruel.", ["Hi", "What is rain?", "Why?"], layers=[1, 2])
    rows = generate(lm, ["Hi", "What is rain?", "Tell me.", "Why?"], samples=3, max_new_tokens=10, seed=3)
    prev = reference_states(lm, rows)
    # Each row has a teacher of its own strength: what is learnt by heart from one is wrong for another.
    doses = {row.token_ids: (-1) ** i * 6.0 for i, row in enumerate(rows)}
    teacher = reference_states(
        lm, rows, around=lambda some: vector.applied(lm.model, [doses[row.token_ids] for row in some])
    )
    return rows, {"references": {"prev": prev}}, {"references": {"prev": prev}, "teacher": teacher}


def config_of(targets, **changes):
    if targets == "teacher":
        changes = {"targets": "teacher", "token_weight": 0.2, **changes}
    return replace(OVERFIT, **changes)


@torch.no_grad()
def naive(lm, rows, kept, config, lam, prev, teacher=None):
    """Mean held-out loss of the model as it is now, row by row and token by token."""
    factors = row_factors([len(row.token_ids) for row in rows], config.row_weights)
    losses = []
    for i in kept:
        ids = torch.tensor([[*rows[i].prompt_ids, *rows[i].token_ids]])
        logp = lm.model(ids).logits[0, len(rows[i].prompt_ids) - 1 : -1].log_softmax(-1)
        before = lm.head(prev.of(rows[i])).log_softmax(-1)
        learnt = -logp.gather(-1, torch.tensor(rows[i].token_ids)[:, None]).mean()
        if teacher is not None:
            target = lm.head(teacher.of(rows[i])).log_softmax(-1)
            share = config.token_weight
            learnt = share * learnt + (1 - share) * (logp.exp() * (logp - target)).sum(-1).mean()
        d = (logp.exp() * (logp - before)).sum(-1).square().mean().sqrt()
        losses.append(factors[i] * learnt + lam * max(0.0, d - config.tau))
    return float(sum(losses) / len(losses))


@pytest.mark.parametrize("targets", ["tokens", "teacher"])
def test_a_heal_that_overfits_returns_the_epoch_that_was_best_on_held_out_rows(lm, given, targets):
    rows, plain, taught = given
    arguments = taught if targets == "teacher" else plain
    config = config_of(targets)
    best = heal(lm, rows, config, **arguments)
    losses = [row["heldout_loss"] for row in best.epochs]
    kept = best.figures["kept_epoch"]
    assert kept == losses.index(min(losses)) < config.epochs - 1 and losses[kept] < losses[-1]
    last = heal(lm, rows, replace(config, keep_epoch="last"), **arguments)
    assert last.steps == best.steps and last.epochs == best.epochs  # the training itself is the same
    assert last.figures["kept_epoch"] == config.epochs - 1 and last.adapter != best.adapter
    assert [note for note in best.notes() if f"kept epoch {kept}, " in note and f"{losses[-1]:.3f}" in note]
    assert not [note for note in last.notes() if "kept" in note]
    # Both adapters are what their figures say, measured anew.
    _, held = split_rows(rows, config)
    for healed, epoch in ((best, kept), (last, config.epochs - 1)):
        stack = AdapterStack(lm.model)
        stack.push(healed.adapter)
        found = naive(lm, rows, held, config, config.lam, arguments["references"]["prev"], arguments.get("teacher"))
        stack.pop()
        assert found == pytest.approx(losses[epoch], abs=2e-4)
        assert healed.figures["heldout_nll_after"] == pytest.approx(healed.epochs[epoch]["heldout_nll"], abs=1e-4)


def test_the_barrier_is_part_of_what_decides(lm, given):
    rows, plain, _ = given
    free, held = (heal(lm, rows, config_of("tokens", lam=lam, tau=0.0), **plain) for lam in (0.0, 3.0))
    assert free.epochs[0]["heldout_loss"] < held.epochs[0]["heldout_loss"]
    replay = config_of("tokens", lam=3.0, tau=0.0, barrier_rows="replay", epochs=1)
    _, out = split_rows(rows, replay)
    own = [replace(row, origin="base") if i not in out else row for i, row in enumerate(rows)]
    healed = heal(lm, own, replay, **plain)
    stack = AdapterStack(lm.model)
    stack.push(healed.adapter)
    # None of the rows held out is one that the barrier acts on.
    assert healed.epochs[0]["heldout_loss"] == pytest.approx(
        naive(lm, rows, out, replay, 0.0, plain["references"]["prev"]), abs=2e-4
    )


@pytest.mark.parametrize("tau", [0.01, 5.0])
def test_in_budget_mode_the_penalty_is_hinged_with_the_multiplier_of_the_epochs_end(lm, given, tau):
    rows, plain, _ = given
    config = config_of("tokens", lam_mode="budget", lam=1.0, lam_rate=0.05, tau=tau, epochs=1)
    healed = heal(lm, rows, config, **plain)
    stack = AdapterStack(lm.model)
    stack.push(healed.adapter)
    _, held = split_rows(rows, config)
    assert healed.lam["prev"] > 0.1
    found = naive(lm, rows, held, config, healed.lam["prev"], plain["references"]["prev"])
    assert healed.epochs[0]["heldout_loss"] == pytest.approx(found, abs=2e-4)


def test_a_heal_whose_best_epoch_is_worse_than_none_keeps_it_and_is_called_overfitted(lm, data, prev):
    healed = heal(lm, data, replace(QUICK, keep_epoch="best", lr=2e-2, epochs=4), prev)
    assert healed.figures["heldout_nll_after"] > healed.figures["heldout_nll_before"]
    assert any(b.any() for b in healed.adapter.b.values())  # B = 0, the state before, is no candidate
    assert [note for note in healed.notes() if "overfitted" in note]


def test_figures_of_the_barrier_are_of_the_steps_up_to_the_kept_epoch(lm, data, prev):
    healed = heal(lm, data, replace(QUICK, keep_epoch="best", lr=2e-2, epochs=4), prev)
    until = [row for row in healed.steps if row["epoch"] <= healed.figures["kept_epoch"]]
    for key in ("prev_fired", "prev_ratio"):
        assert healed.figures[key] == sum(row[key] for row in until) / len(until)
    assert healed.figures["steps"] == len(healed.steps) > len(until)


def test_without_rows_held_out_the_last_epoch_is_kept_and_nothing_claimed(lm, data, prev):
    best, last = (heal(lm, data, replace(QUICK, heldout=0.0, keep_epoch=which), prev) for which in ("best", "last"))
    assert best.adapter == last.adapter and best.figures == last.figures and best.figures["kept_epoch"] == 1
    assert "heldout_loss" not in best.epochs[0] and best.notes() == last.notes()


def test_rows_that_weigh_nothing_decide_nothing(lm, data, prev):
    _, held = split_rows(data, QUICK)
    weights = [float(i not in held) for i in range(len(data))]
    config = replace(QUICK, keep_epoch="best", reg="nll", lr=2e-2)
    assert heal(lm, data, config, prev, weights=weights).figures["kept_epoch"] == 1


def test_a_held_out_loss_that_is_not_finite_stops_the_heal_and_names_the_rows(lm, data, prev):
    def bursts(logp, logq):
        return kl_rev(logp, logq) * (1.0 if torch.is_grad_enabled() else math.nan)

    _, held = split_rows(data, QUICK)
    with pytest.raises(DivergedError, match="the held-out loss is not finite") as caught:
        heal(lm, data, replace(QUICK, reg=bursts), prev)
    assert caught.value.rows == tuple(held)
    caught.value.adapter.check()


def test_what_is_kept_is_read_back_as_it_was(lm, given):
    rows, plain, _ = given
    healed = heal(lm, rows, OVERFIT, **plain)
    kind = healed_kind(OVERFIT)
    again, _ = kind.load(kind.dump((healed, {})))
    assert again.adapter == healed.adapter and again.figures == healed.figures and again.epochs == healed.epochs
    assert again.notes() == healed.notes() and again.plain == healed.plain


def test_an_epoch_is_the_best_or_the_last():
    with pytest.raises(InputError, match="keep_epoch"):
        HealConfig(keep_epoch="first")
