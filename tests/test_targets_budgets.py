"""Barriers and their budgets where a heal learns from a teacher: the same forms as with sampled ids."""

from dataclasses import replace

import pytest
import torch
from healing_data import completion

from steer_heal.healing import HealConfig, heal, mean_divergence, reference_states
from steer_heal.healing.bake import AdapterStack
from steer_heal.steering import extract
from steer_heal.texts.generation import generate

CONFIG = HealConfig(
    targets="teacher", tau=0.0, lr=5e-3, epochs=2, batch_size=4, rank=4, alpha=8.0, heldout=0.0, keep_epoch="last"
)


@pytest.fixture
def taught(lm):
    """(rows, a third of them the original model's own; states of student and original; the teacher's) after a round."""
    vector = extract(lm, "You are kind.", "You are cruel.", ["Hi", "What is rain?", "Why?"], layers=[1, 2])
    rows = generate(lm, ["Hi", "What is rain?", "Tell me."], samples=4, max_new_tokens=10, seed=3)
    rows = [replace(row, origin="base") if i % 3 == 0 else row for i, row in enumerate(rows)]
    stack = AdapterStack(lm.model)
    history = [completion(lm, i, 9) for i in range(4)]
    stack.push(heal(lm, history, HealConfig(reg="nll", lr=5e-3, epochs=2, heldout=0.0)).adapter)
    with stack.unfolded():
        base = reference_states(lm, rows)
    prev = reference_states(lm, rows)
    steered = reference_states(lm, rows, around=lambda some: vector.applied(lm.model, [4.0] * len(some)))
    yield rows, {"prev": prev, "base": base}, steered.replaced([row for row in rows if row.origin == "base"], base)
    stack.pop()  # the model lives as long as its stack


def healed_of(lm, taught, config=CONFIG, **given):
    rows, references, teacher = taught
    return heal(lm, rows, config, references, teacher=teacher, **given)


def assert_alike(one, other, atol):
    assert one.adapter.modules == other.adapter.modules
    for name in one.adapter.modules:
        torch.testing.assert_close(one.adapter.delta(name), other.adapter.delta(name), atol=atol, rtol=0)


def test_both_references_have_their_own_budget_and_weight_in_the_loss(lm, taught):
    config = replace(CONFIG, reference="both", tau=0.0, lam=0.4, tau_base=0.05, lam_base=0.9, token_weight=0.25)
    healed = healed_of(lm, taught, config)
    assert healed.tau == {"prev": 0.0, "base": 0.05} and healed.lam == {"prev": 0.4, "base": 0.9}
    for step in healed.steps:
        assert (
            step["base_fired"] == 1
        )  # all rows are over budget, so that the mean of the hinge is the hinge of the mean
        learnt = 0.25 * step["nll"] + 0.75 * step["target"]
        expected = learnt + 0.4 * step["prev_agg"] + 0.9 * (step["base_agg"] - 0.05)
        assert step["loss"] == pytest.approx(expected, abs=1e-5)
    assert abs(healed.steps[0]["prev_agg"]) < 1e-4 < healed.steps[-1]["prev_agg"]
    rows, references, _ = taught
    caused = mean_divergence(lm, references["prev"], references["base"], rows, config)
    one = healed_of(lm, taught, replace(config, batch_size=len(rows), epochs=1))  # one step over all rows, at B = 0
    assert one.steps[0]["base_agg"] == pytest.approx(caused, abs=1e-5)


def test_budget_mode_settles_at_tau_where_it_binds_and_drops_lam_where_not(lm, taught):
    config = replace(CONFIG, lam_mode="budget", lam=1.0, epochs=60, batch_size=12, rank=8, alpha=16.0, lr=3e-3)
    free = healed_of(lm, taught, replace(config, reg="nll", epochs=20))
    reached = free.figures["kl_prev_after"]
    tau = 0.1
    assert reached > tau
    binding = healed_of(lm, taught, replace(config, tau=tau))
    last = [row["prev_agg"] for row in binding.steps[-15:]]
    assert sum(last) / len(last) == pytest.approx(tau, rel=0.2) and binding.lam["prev"] > 0.01
    slack = healed_of(lm, taught, replace(config, tau=50.0, epochs=2))
    assert slack.lam["prev"] == 0.0
    carried = healed_of(lm, taught, replace(config, tau=tau, epochs=1), round=3, lam0=binding.lam)
    assert carried.steps[0]["prev_lam"] == binding.lam["prev"]


def test_in_budget_mode_each_reference_has_a_multiplier_that_moves_by_its_own_distance(lm, taught):
    config = replace(CONFIG, reference="both", lam_mode="budget", tau=0.02, tau_base=0.3, lam_rate=0.5)
    healed = healed_of(lm, taught, config)
    for name, tau in (("prev", 0.02), ("base", 0.3)):
        lams = [step[f"{name}_lam"] for step in healed.steps] + [healed.lam[name]]
        for step, now, then in zip(healed.steps, lams, lams[1:], strict=False):
            assert then == pytest.approx(min(max(now + 0.5 * (step[f"{name}_agg"] - tau), 0.0), 10.0))
    assert healed.lam["prev"] != healed.lam["base"]


def test_barrier_rows_and_replay_weight_are_factors_of_the_original_models_rows(lm, taught):
    own = [row.origin == "base" for row in taught[0]]
    everywhere = healed_of(lm, taught)
    replay = healed_of(lm, taught, replace(CONFIG, barrier_rows="replay"))
    assert replay.adapter == healed_of(lm, taught, barrier_weights=[float(o) for o in own]).adapter
    heavy = healed_of(lm, taught, replace(CONFIG, replay_weight=4.0))
    assert heavy.adapter == healed_of(lm, taught, barrier_weights=[4.0 if o else 1.0 for o in own]).adapter
    assert len({repr(one.steps[-1]) for one in (everywhere, replay, heavy)}) == 3


def test_a_relative_budget_is_its_share_of_what_the_steering_caused(lm, taught):
    relative = healed_of(lm, taught, replace(CONFIG, tau_rel=0.5), steering_divergence=0.16)
    absolute = healed_of(lm, taught, replace(CONFIG, tau=0.08))
    assert relative.tau == {"prev": 0.08} and relative.adapter == absolute.adapter
    assert relative.adapter != healed_of(lm, taught).adapter


@pytest.mark.parametrize("mode", ["constant", "budget"])
def test_batches_and_their_accumulation_change_nothing(lm, taught, mode):
    config = replace(CONFIG, reference="both", tau=0.02, tau_base=0.2, lam_mode=mode, token_weight=0.3, replay_weight=2)
    packed, single = (healed_of(lm, taught, replace(config, batch_size=n, grad_accum=4 // n)) for n in (4, 1))
    assert_alike(packed, single, 2e-4)
    assert single.lam == pytest.approx(packed.lam, abs=1e-4)
    for key in ("loss", "target", "prev_agg", "base_agg", "prev_ratio"):
        assert [step[key] for step in single.steps] == pytest.approx([s[key] for s in packed.steps], abs=1e-4)


def test_gradient_checkpointing_changes_nothing(lm, taught):
    config = replace(CONFIG, reference="both", tau_base=0.1, target_strength=1.5, target_plausibility=0.05)
    plain, checkpointed = (healed_of(lm, taught, replace(config, gradient_checkpointing=on)) for on in ("off", "on"))
    assert plain.adapter == checkpointed.adapter and plain.steps == checkpointed.steps
