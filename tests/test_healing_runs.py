"""Heal: what barriers and budgets do, figures, reproducibility, bad input."""

import json
import math
from dataclasses import replace

import pytest
import torch
from healing_data import QUICK, bits, completion, equal

from steer_heal.errors import InputError
from steer_heal.healing import (
    DivergedError,
    HealConfig,
    HealInterrupted,
    heal,
    overfit_check,
    reference_states,
)
from steer_heal.healing.bake import AdapterStack
from steer_heal.healing.barriers import kl_rev
from steer_heal.healing.lora import injected, seeded
from steer_heal.healing.plan import lr_factor, row_factors, split_rows, step_rows

# ---------------------------------------------------------------- what barriers and budgets do


def test_a_heavier_barrier_ends_closer_to_the_reference(lm, data, prev):
    ends = [
        heal(lm, data, replace(QUICK, lam=lam, epochs=4), prev).figures["kl_prev_after"] for lam in (0.0, 1.0, 10.0)
    ]
    assert ends[0] > 1.2 * ends[1] > 1.2 * ends[2] > 0


def test_budget_mode_settles_at_tau_where_it_binds_and_drops_lam_where_not(lm):
    data = [completion(lm, i, 8 + i % 5) for i in range(16)]
    prev = {"prev": reference_states(lm, data)}
    config = HealConfig(lr=3e-3, lam=1.0, lam_mode="budget", epochs=30, batch_size=8, heldout=0, rank=8, alpha=16.0)
    binding = heal(lm, data, replace(config, tau=0.4), prev)
    last = [row["prev_agg"] for row in binding.steps[-15:]]
    assert sum(last) / len(last) == pytest.approx(0.4, rel=0.2) and binding.lam["prev"] > 0.1
    slack = heal(lm, data, replace(config, tau=50.0, epochs=2), prev)
    assert slack.lam["prev"] == 0.0
    carried = heal(lm, data, replace(config, tau=0.4, epochs=1), prev, round=3, lam0=binding.lam)
    assert carried.steps[0]["prev_lam"] == binding.lam["prev"]


def test_lam_is_scheduled_over_rounds_and_each_reference_has_its_own_budget(lm, data, prev):
    config = replace(QUICK, reference="both", lam=0.4, lam_power=-0.5, lam_base=0.8, tau_base=0.7, epochs=1)
    healed = heal(lm, data, config, {**prev, "base": prev["prev"]}, round=3)
    assert healed.lam == {"prev": 0.2, "base": 0.4} and healed.tau == {"prev": 0.01, "base": 0.7}


def test_relative_tau_is_a_share_of_what_the_steering_caused(lm, data, prev):
    config = replace(QUICK, tau_rel=0.5, epochs=1)
    assert heal(lm, data, config, prev, steering_divergence=0.6).tau == {"prev": 0.3}
    for bad in (None, 0.0, math.nan):
        with pytest.raises(InputError, match="steering_divergence"):
            heal(lm, data, config, prev, steering_divergence=bad)


def test_base_reference_sees_the_history_and_prev_does_not(lm, data, prev):
    stack = AdapterStack(lm.model)
    stack.push(heal(lm, data, QUICK, prev).adapter)
    with stack.unfolded():
        base = reference_states(lm, data)
    now = {"prev": reference_states(lm, data), "base": base}
    healed = heal(lm, data, replace(QUICK, reference="base"), now)
    assert healed.figures["kl_base_before"] > 1e-3 and abs(healed.figures["kl_prev_before"]) < 1e-6
    assert set(healed.lam) == {"base"} and healed.figures["kl_prev_after"] > 1e-4


def test_a_users_own_divergence_trains(lm, data, prev):
    def squared(logp, logq):
        return (logp.exp() - logq.exp()).square().sum(-1)

    free = heal(lm, data, replace(QUICK, reg="nll"), prev)
    held = heal(lm, data, replace(QUICK, reg=squared, tau=0.0, lam=300.0), prev)
    assert held.figures["kl_prev_after"] < free.figures["kl_prev_after"]
    assert held.figures["prev_fired"] > 0.5


def test_ctrl_c_keeps_the_factors_and_gives_the_model_back(lm, data, prev):
    before, steps = bits(lm.model), []

    def stop_at(number):
        def stop(row):
            steps.append(row)
            if len(steps) == number:
                raise KeyboardInterrupt

        steps.clear()
        with pytest.raises(HealInterrupted) as caught:
            heal(lm, data, QUICK, prev, on_step=stop)
        return caught.value.adapter

    first, third = stop_at(1), stop_at(3)
    assert first.modules == third.modules and first != third and equal(bits(lm.model), before)
    assert heal(lm, data, replace(QUICK, epochs=1), prev).adapter.modules == first.modules, "a heal runs again"
    with pytest.raises(HealInterrupted) as caught, injected(lm, QUICK, 0):
        raise KeyboardInterrupt
    assert caught.value.adapter is None


# ---------------------------------------------------------------- figures and reproducibility


def test_same_seed_same_bits_and_another_seed_or_round_another_adapter(lm, data, prev):
    one, two = (heal(lm, data, QUICK, prev, seed=3) for _ in range(2))
    assert one.adapter == two.adapter and one.steps == two.steps and one.figures == two.figures
    assert heal(lm, data, QUICK, prev, seed=4).adapter != one.adapter
    assert heal(lm, data, QUICK, prev, seed=3, round=1).adapter != one.adapter
    starts = []
    for round in (0, 1):
        with injected(lm, QUICK, 3, round) as lora:
            starts.append(lora.adapter())
    # A new A in each round: a shared one would tie the rounds' deltas to one another.
    assert not any(torch.equal(starts[0].a[name], starts[1].a[name]) for name in starts[0].a)


def test_history_is_complete_json_and_passed_to_the_callback(lm, data, prev):
    seen = []
    healed = heal(lm, data, QUICK, prev, on_step=seen.append)
    assert [r for r in seen if r["kind"] == "step"] == list(healed.steps)
    assert [r for r in seen if r["kind"] == "epoch"] == list(healed.epochs) and len(healed.epochs) == 2
    keys = {
        "loss",
        "nll",
        "lr",
        "grad_norm",
        "prev_mean",
        "prev_agg",
        "prev_max",
        "prev_fired",
        "prev_ratio",
        "prev_lam",
    }
    assert keys <= healed.steps[0].keys()
    json.dumps([healed.steps, healed.epochs, healed.figures], allow_nan=False)
    figures = healed.figures
    assert figures["rows_heldout"] == 1 and figures["train_nll_after"] < figures["train_nll_before"]
    assert healed.epochs[-1]["heldout_nll"] == pytest.approx(figures["heldout_nll_after"], abs=1e-6)
    last = healed.steps[-1]
    assert last["loss"] == pytest.approx(last["nll"] + 0.3 * max(0, last["prev_agg"] - 0.01), abs=0.01)
    assert 0 < figures["prev_fired"] <= 1 and 0 < last["prev_ratio"] < 1


def test_replay_rows_have_figures_of_their_own(lm, data):
    mixed = [replace(c, origin="base") if i < 4 else c for i, c in enumerate(data)]
    figures = heal(lm, mixed, QUICK, {"prev": reference_states(lm, mixed)}).figures
    assert {"kl_prev_after", "kl_prev_replay_after", "kl_prev_replay_before"} <= figures.keys()
    assert figures["kl_prev_replay_after"] != figures["kl_prev_after"]
    unsteered = [replace(c, origin="base") for c in data]
    figures = heal(lm, unsteered, QUICK, {"prev": reference_states(lm, unsteered)}).figures
    assert "kl_prev_after" in figures and "kl_prev_replay_after" not in figures


def test_notes_name_a_silent_barrier_overfitting_and_nothing_to_learn(lm, data, prev):
    silent = heal(lm, data, replace(QUICK, tau=99.0), prev)
    assert [note for note in silent.notes() if "never fired" in note]
    nll = {"train_nll_before": 2.0, "train_nll_after": 1.5, "heldout_nll_before": 2.0, "heldout_nll_after": 1.9}

    def notes(**changed):
        return replace(silent, figures={**silent.figures, **nll, "prev_fired": 0.4, **changed}).notes()

    assert notes() == ()
    assert "overfitted" in notes(heldout_nll_after=2.1)[0]
    assert "nothing to learn" in notes(train_nll_after=2.0)[0]


def test_held_out_rows_do_not_influence_the_adapter(lm, data, prev):
    train, heldout = split_rows(data, QUICK)
    assert sorted(train + heldout) == list(range(12)) and len(heldout) == 1
    changed = [replace(c, token_ids=c.token_ids[::-1]) if i in heldout else c for i, c in enumerate(data)]
    one = heal(lm, data, QUICK, prev).adapter
    assert one == heal(lm, changed, QUICK, {"prev": reference_states(lm, changed)}).adapter


def test_held_out_rows_are_whole_prompts(lm):
    rows = [completion(lm, i // 4, 5 + i) for i in range(32)]
    _, heldout = split_rows(rows, replace(QUICK, heldout=0.25))
    assert len(heldout) == 8 and len({rows[i].prompt for i in heldout}) == 2


def test_every_epoch_visits_every_row_once_in_groups_of_similar_length(lm):
    rows = [completion(lm, i, 2 + (37 * i) % 60) for i in range(64)]
    config, generator = replace(QUICK, batch_size=4, grad_accum=2), seeded(0, 0, "order")
    epochs = [list(step_rows(range(64), rows, config, generator)) for _ in range(2)]
    assert all(sorted(i for g in groups for i in g) == list(range(64)) for groups in epochs)
    assert epochs[0] != epochs[1] and all(len(g) == 8 for g in epochs[0])
    spread = [max(len(rows[i].token_ids) for i in g) - min(len(rows[i].token_ids) for i in g) for g in epochs[0]]
    assert sum(spread) / len(spread) < 30


def test_learning_rate_rises_linearly_then_falls_as_a_cosine():
    factors = [lr_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == 1 and factors[55] == pytest.approx(0.5) and 0 < factors[-1] < 1e-3
    assert lr_factor(0, 1, 0.1) == 1 and lr_factor(0, 1, 0.0) == 1


def test_row_factors_weight_token_sums_and_average_to_one_over_all_rows():
    assert row_factors([4, 16, 100], "none") == [1.0] * 3
    assert row_factors([4, 16, 100], "tokens") == [4 / 40, 16 / 40, 100 / 40]
    factors = row_factors([4, 16, 100], "inv_sqrt")
    # Weight of one token: factor / n, in the ratio 1/2 : 1/4 : 1/10.
    per_token = [f / n for f, n in zip(factors, (4, 16, 100), strict=True)]
    assert sum(factors) == pytest.approx(3) and per_token[0] / per_token[2] == pytest.approx(5)


def test_one_known_completion_can_be_learnt_by_heart(lm, data):
    assert overfit_check(lm, data[0], replace(QUICK, lr=1e-2, targets="teacher"), passes=30) > 2


# ---------------------------------------------------------------- trouble


def test_a_loss_that_is_not_finite_names_step_and_row_and_keeps_the_last_good_adapter(lm, data, prev):
    calls, first = [], []

    def bursts(logp, logq):
        calls.append(1)
        value = kl_rev(logp, logq)
        return value * math.nan if len(calls) == 3 else value

    config = replace(QUICK, reg=bursts, heldout=0)
    before = bits(lm.model)
    with pytest.raises(DivergedError, match=r"step 2: the loss .* completion") as caught:
        heal(lm, data, config, prev, on_step=first.append)
    assert caught.value.step == 2 and len(caught.value.rows) == 4 and len(first) == 2
    caught.value.adapter.check()
    assert equal(bits(lm.model), before)


def test_a_gradient_that_is_not_finite_stops_before_the_adapter_takes_it(lm, data, prev):
    def spike(logp, logq):
        return kl_rev(logp, logq) + (logp - logp.detach()).abs().sqrt().sum(-1) * 1e-9

    with pytest.raises(DivergedError, match="step 0: the gradient") as caught:
        heal(lm, data, replace(QUICK, reg=spike, tau=0.0, kl_agg="mean"), prev)
    assert caught.value.adapter is None


def test_reference_states_that_are_missing_stale_or_of_other_data_are_refused(lm, data, prev):
    with pytest.raises(InputError, match="'prev'"):
        heal(lm, data, QUICK, {})
    with pytest.raises(InputError, match="'base'"):
        heal(lm, data, replace(QUICK, reference="both"), prev)
    with pytest.raises(InputError, match="other data"):
        heal(lm, [*data, completion(lm, 99, 5)], QUICK, prev)
    stack = AdapterStack(lm.model)
    stack.push(heal(lm, data, QUICK, prev).adapter)
    with pytest.raises(InputError, match="stale"):
        heal(lm, data, QUICK, prev)
    now = reference_states(lm, data)
    with pytest.raises(InputError, match="unfolded"):
        heal(lm, data, QUICK, {"prev": now, "base": now})
    with pytest.raises(InputError, match="'someone'"):
        heal(replace(lm, name="someone"), data, QUICK, {"prev": now})


def test_a_head_that_the_chunked_loss_cannot_follow_is_refused_before_training(lm, data, prev, monkeypatch):
    own = lm.model.forward

    def forward(*args, **kwargs):
        out = own(*args, **kwargs)
        out.logits = out.logits + torch.arange(out.logits.shape[-1])
        return out

    monkeypatch.setattr(lm.model, "forward", forward)
    with pytest.raises(InputError, match="output head"):
        heal(lm, data, QUICK, prev)


def test_unusable_completions_are_refused_by_index(lm, data, prev):
    with pytest.raises(InputError, match="no completions"):
        heal(lm, [], QUICK, prev)
    with pytest.raises(InputError, match="too few"):
        heal(lm, data[:3], QUICK, prev)
    with pytest.raises(InputError, match="completion 1 has no tokens"):
        reference_states(lm, [data[0], replace(data[1], token_ids=())])
    with pytest.raises(InputError, match="completion 0 has no prompt"):
        reference_states(lm, [replace(data[0], prompt_ids=())])
    with pytest.raises(InputError, match=r"completion 0 has .* context"):
        reference_states(lm, [replace(data[0], token_ids=(5,) * 1100)])
    with pytest.raises(InputError, match="barrier_weights"):
        heal(lm, data, QUICK, prev, barrier_weights=[1.0])


def test_a_broken_models_states_are_refused(lm, data):
    with torch.no_grad():
        lm.blocks[1].mlp.down_proj.weight[0, 0] = math.inf
    with pytest.raises(InputError, match="non-finite"):
        reference_states(lm, data)


@pytest.mark.parametrize(
    "bad",
    [
        {"reg": "kl"}, {"lam": -1}, {"tau": math.nan}, {"tau_rel": -0.5}, {"kl_agg": "median"}, {"reference": "old"},
        {"tau_base": -1}, {"lam_base": math.inf}, {"kl_top_k": -3}, {"kl_top_k": 2.5}, {"lam_mode": "dual"},
        {"lam_power": math.inf}, {"lam_rate": -1}, {"lam_mode": "budget", "lam_rate": 0}, {"lam_max": 0}, {"rank": 0},
        {"rank": 1.5}, {"alpha": 0}, {"lora_layers": (0.9, 0.1)}, {"lr": 0}, {"lr": "fast"}, {"betas": (0.9, 1.0)},
        {"weight_decay": -1}, {"spectral": -1}, {"epochs": 0}, {"batch_size": 0}, {"grad_accum": 0}, {"warmup": 1.0},
        {"clip": -1}, {"heldout": 0.9}, {"row_weights": "sqrt"}, {"barrier_rows": "some"}, {"lam": True},
    ],
)  # fmt: skip
def test_an_impossible_value_is_one_line_that_names_the_knob(bad):
    with pytest.raises(InputError) as caught:
        HealConfig(**bad)
    message = str(caught.value)
    assert "\n" not in message
    assert any(name in message for name in bad) or "layer" in message
