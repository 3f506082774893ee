"""Targets of a heal: tempering, mask and divergences against float64 autograd and closed forms."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_heal.errors import InputError
from steer_heal.healing import HealConfig, heal, reference_states
from steer_heal.healing.targets import flattened, jensen_shannon, make_teacher, resolve_target, tempered
from steer_heal.steering import extract
from steer_heal.texts.generation import generate

NAMES = ("reverse", "forward", "jsd:0.1", "jsd:0.5", "jsd:0.9")


def drawn(*names, positions=7, vocab=13, spread=2.0, seed=0):
    """Log-probabilities in float64, one [position, vocab] each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (spread * torch.randn(positions, vocab, generator=generator, dtype=torch.float64)).log_softmax(-1)
        for _ in names
    ]


def naive(name, p, q):
    """From probabilities, term by term."""
    if name == "reverse":
        return (p * (p / q).log()).sum(-1)
    if name == "forward":
        return (q * (q / p).log()).sum(-1)
    beta = float(name.split(":")[1])
    m = beta * q + (1 - beta) * p
    return beta * (q * (q / m).log()).sum(-1) + (1 - beta) * (p * (p / m).log()).sum(-1)


@pytest.mark.parametrize("plausibility", [0.0, 0.2])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.25])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_of_every_target_equal_float64_autograd(name, strength, plausibility):
    teacher, plain = drawn("teacher", "plain")
    logits = torch.randn(7, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = tempered(teacher, plain, strength, plausibility)
    value = naive(name, logits.softmax(-1), target.exp())
    (auto,) = torch.autograd.grad(value.sum(), logits)
    logp = logits.detach().log_softmax(-1)
    found, gradient = resolve_target(name).gradient(logp, logp.exp(), target.clone())
    torch.testing.assert_close(found, value.detach())
    torch.testing.assert_close(gradient, auto)
    torch.testing.assert_close(resolve_target(name).value(logp, target), value.detach())


def test_strength_zero_is_the_plain_model_and_one_the_teacher():
    teacher, plain = drawn("teacher", "plain")
    torch.testing.assert_close(tempered(teacher, plain, 0.0), plain)
    torch.testing.assert_close(tempered(teacher, plain, 1.0), teacher)


def test_strength_interpolates_logits_and_may_differ_by_position():
    teacher, plain = drawn("teacher", "plain")
    strength = torch.linspace(0, 1.5, 7, dtype=torch.float64)[:, None]
    expected = (plain + strength * (teacher - plain)).log_softmax(-1)
    torch.testing.assert_close(tempered(teacher, plain, strength), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_student_at_its_target_has_no_gradient(name):
    (plain,) = drawn("plain")
    target = tempered(plain, plain, 1.0, 0.1)
    value, gradient = resolve_target(name).gradient(target, target.exp(), target.clone())
    assert value.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


def test_the_mask_takes_back_what_the_teacher_adds_to_an_implausible_token_and_nothing_else():
    plain = torch.tensor([[0.60, 0.395, 0.005]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.30, 0.30, 0.40]], dtype=torch.float64).log()
    free, masked = tempered(teacher, plain).exp(), tempered(teacher, plain, plausibility=0.05).exp()
    torch.testing.assert_close(free, teacher.exp())
    # 0.005 is under 0.05 * 0.60: it keeps the plain model's weight, the others the teacher's, all over their sum.
    torch.testing.assert_close(masked, torch.tensor([[0.30, 0.30, 0.005]], dtype=torch.float64) / 0.605)
    falls = torch.tensor([[0.5, 0.4999, 0.0001]], dtype=torch.float64).log()
    torch.testing.assert_close(tempered(falls, plain, plausibility=0.05), falls)


def test_a_flatter_target_shares_the_mass_of_the_plausible_tokens_anew_and_leaves_the_others():
    p = torch.tensor([[0.64, 0.16, 0.16, 0.03, 0.01]], dtype=torch.float64)
    found = flattened(p.log(), 2.0).exp()
    plausible = torch.tensor([[0.8, 0.4, 0.4]], dtype=torch.float64) * 0.96 / 1.6  # square roots, of the same mass
    torch.testing.assert_close(found, torch.cat([plausible, p[:, 3:]], dim=-1))


@given(seed=st.integers(0, 200), temperature=st.floats(1.0, 4.0))
def test_a_flatter_target_is_a_distribution_of_more_entropy(seed, temperature):
    (logp,) = drawn("p", seed=seed)
    found = flattened(logp, temperature)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(7, dtype=torch.float64))
    entropy = [-(x.exp() * x).sum(-1) for x in (logp, found)]
    assert (entropy[1] >= entropy[0] - 1e-9).all()


def test_a_token_that_the_plain_model_excludes_is_no_nan():
    plain = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
    for target in (tempered(teacher, plain, 0.5), tempered(plain, teacher, 0.5), tempered(plain, plain)):
        assert not target.isnan().any() and target.exp().sum().item() == pytest.approx(1)


@given(beta=st.floats(0.05, 0.95), seed=st.integers(0, 50), spread=st.floats(0.1, 30))
@settings(deadline=None, max_examples=40)
def test_a_jensen_shannon_divergence_lies_between_0_and_its_entropy(beta, seed, spread):
    logp, logq = drawn("p", "q", spread=spread, seed=seed)
    values = jensen_shannon(beta).value(logp, logq)
    most = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    assert values.min() > -1e-12 and values.max() < most + 1e-12


@pytest.mark.parametrize("name", ["reverse", "forward"])
def test_truncation_of_a_target_never_raises_its_divergence(name):
    logp, logq = drawn("p", "q")
    assert (resolve_target(name, 4).value(logp, logq) <= resolve_target(name).value(logp, logq) + 1e-12).all()


@pytest.mark.parametrize("name", ["backward", "jsd", "jsd:", "jsd:1", "jsd:0", "jsd:x", "jsd:nan", ""])
def test_an_unknown_target_divergence_is_refused_by_name(name):
    with pytest.raises(InputError, match=r"use reverse, forward, or jsd:BETA"):
        resolve_target(name)


def test_a_jensen_shannon_divergence_cannot_be_truncated():
    with pytest.raises(InputError, match="cannot be truncated"):
        resolve_target("jsd:0.5", 8)


@pytest.fixture
def taught(tiny):
    """Rows that the plain tiny model sampled, its states, and a vector."""
    vector = extract(tiny, "You are kind.", "You are cruel.", ["Hi", "What is rain?", "Why?"], layers=[1, 2])
    rows = generate(tiny, ["Hi", "What is rain?", "Tell me."], samples=4, max_new_tokens=10, seed=3)
    return rows, reference_states(tiny, rows), vector


def steered(lm, rows, vector, dose):
    return reference_states(lm, rows, around=lambda some: vector.applied(lm.model, [dose] * len(some)))


def config(**changes):
    return HealConfig(**{"targets": "teacher", "reg": "nll", "lr": 5e-3, "epochs": 2, "heldout": 0.0, **changes})


def test_the_teachers_states_are_the_students_own_steered_pass_position_by_position(tiny, taught):
    rows, _, vector = taught
    states = steered(tiny, rows, vector, 2.0)
    for row in rows[:4]:
        ids = torch.tensor([[*row.prompt_ids, *row.token_ids]])
        with torch.no_grad(), vector.applied(tiny.model, 2.0):
            own = tiny.model(ids).logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(tiny.head(states.of(row)).log_softmax(-1), own, atol=2e-5, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"target_divergence": "forward"}, {"target_divergence": "jsd:0.5"}], ids=str)
def test_a_teacher_at_dose_0_trains_nothing(tiny, taught, changes):
    rows, prev, vector = taught
    healed = heal(tiny, rows, config(**changes, epochs=1), {"prev": prev}, teacher=steered(tiny, rows, vector, 0.0))
    assert healed.steps[0]["grad_norm"] < 1e-5 and healed.steps[0]["target"] < 1e-6


def test_strength_0_trains_nothing_whatever_the_dose(tiny, taught):
    rows, prev, vector = taught
    teacher = steered(tiny, rows, vector, 4.0)
    healed = heal(tiny, rows, config(target_strength=0.0, epochs=1), {"prev": prev}, teacher=teacher)
    assert healed.steps[0]["grad_norm"] < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_learning_lowers_the_divergence_from_the_teacher(tiny, taught, name):
    rows, prev, vector = taught
    teacher = steered(tiny, rows, vector, 4.0)
    healed = heal(tiny, rows, config(target_divergence=name, heldout=0.25), {"prev": prev}, teacher=teacher)
    figures = healed.figures
    assert figures["train_target_after"] < 0.9 * figures["train_target_before"]
    assert healed.epochs[-1]["heldout_target"] == pytest.approx(figures["heldout_target_after"], rel=1e-4)
    assert not healed.notes()


def test_the_loss_does_not_depend_on_how_rows_are_packed(tiny, taught):
    rows, prev, vector = taught
    teacher = steered(tiny, rows, vector, 4.0)
    mixed = {"token_weight": 0.3, "target_plausibility": 0.1, "reg": "kl_rev", "tau": 0.001, "epochs": 1}
    packed, single = (
        heal(tiny, rows, config(**mixed, batch_size=size, grad_accum=4 // size), {"prev": prev}, teacher=teacher)
        for size in (4, 1)
    )
    assert [s["loss"] for s in packed.steps] == pytest.approx([s["loss"] for s in single.steps], abs=2e-5)


def test_the_loss_mixes_nll_and_divergence_by_the_token_weight(tiny, taught):
    rows, prev, vector = taught
    given = {"references": {"prev": prev}, "teacher": steered(tiny, rows, vector, 4.0)}
    first = {w: heal(tiny, rows, config(token_weight=w, epochs=1), **given).steps[0] for w in (0.0, 0.25)}
    expected = 0.25 * first[0.0]["nll"] + 0.75 * first[0.0]["target"]
    assert first[0.0]["loss"] == pytest.approx(first[0.0]["target"], abs=1e-6)
    assert first[0.25]["loss"] == pytest.approx(expected, abs=1e-5)


def test_rows_may_have_a_teacher_of_their_own(tiny, taught):
    rows, prev, vector = taught
    teacher = prev.replaced(rows[:3], steered(tiny, rows, vector, 4.0))
    assert torch.equal(teacher.of(rows[5]), prev.of(rows[5]))
    assert not torch.equal(teacher.of(rows[0]), prev.of(rows[0]))
    healed = heal(tiny, rows, config(epochs=1), {"prev": prev}, teacher=teacher)
    assert healed.figures["train_target_before"] > 0


def test_rows_of_the_original_model_are_taught_as_they_are_and_others_masked_and_flattened(tiny, taught):
    rows, prev, vector = taught
    states = steered(tiny, rows, vector, 4.0)
    teacher = make_teacher(config(target_plausibility=0.2, target_temperature=2.0), states, prev)

    def target(row):
        return teacher.at([row]).log_probabilities(tiny.head, slice(None))

    plain, theirs = (tiny.head(found.of(rows[0])).log_softmax(-1) for found in (prev, states))
    torch.testing.assert_close(target(replace(rows[0], origin="base")), theirs)
    bent = flattened(tempered(theirs, plain, 1.0, 0.2), 2.0)
    torch.testing.assert_close(target(rows[0]), bent)
    assert (bent - theirs).abs().max() > 0.1


def test_a_teacher_and_its_option_are_asked_for_together(tiny, taught):
    rows, prev, vector = taught
    with pytest.raises(InputError, match="no teacher was given"):
        heal(tiny, rows, config(), {"prev": prev})
    with pytest.raises(InputError, match="a teacher was given"):
        heal(tiny, rows, HealConfig(reg="nll"), {"prev": prev}, teacher=prev)
    with pytest.raises(InputError, match="target_strength"):
        heal(tiny, rows, config(target_strength=1.5), {}, teacher=steered(tiny, rows, vector, 1.0))


@pytest.mark.parametrize("wrong", [
    {"targets": "words"}, {"token_weight": 1.5}, {"target_strength": -1}, {"target_plausibility": 1.0},
    {"target_divergence": "backward"}, {"target_top_k": 0.5}, {"target_divergence": "jsd:0.5", "target_top_k": 5},
])  # fmt: skip
def test_an_impossible_target_is_refused_before_anything_is_computed(wrong):
    with pytest.raises(InputError):
        HealConfig(**wrong)
