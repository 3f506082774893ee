"""A round on the student's own texts: who writes them, what the filter may do, what the teacher's dose may be."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.healing import reference_states
from steer_heal.healing.references import completion_key
from steer_heal.loop import rounds, steps
from steer_heal.loop.gate import must_block_adapter
from steer_heal.loop.steps.texts import text_prompts, within_reach
from steer_heal.loop.steps.training import steered_states, under_vector
from steer_heal.report.console import Reporter

FAST = {"fast_dev_run": True, "n_rounds": 1, "doses": (2.0,), "context_dose": 1.0}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared fast run, its first vector and its own texts."""
    run = rounds.prepare(RunConfig(**FAST, out=str(tmp_path_factory.mktemp("out"))).resolved(), Reporter(quiet=True))
    vector = steps.extract_vector(run, 0)
    return run, vector, steps.walk_dose(run, 0, vector)


def test_own_texts_are_the_plain_students_and_carry_their_teachers_dose(prepared):
    now, vector, walk = prepared
    assert all((c.dose, c.origin) == (2.0, "own") for c in walk.completions)
    again = steps.walk_dose(replace(now, ledger=now.ledger.part("again", {})), 0, -100 * vector)
    assert [c.token_ids for c in again.completions] == [c.token_ids for c in walk.completions]  # no vector was near


def test_the_filter_reports_on_own_texts_and_drops_none(prepared):
    now, _, walk = prepared
    judged = now.filter(now.lm, [replace(c, flagged_by=None) for c in walk.completions])
    assert [c.flagged_by for c in walk.completions] == [c.dropped_by for c in judged]
    assert len(walk.banked) == len(walk.completions)
    (event,) = now.ledger.events("walk")
    assert sum(event["flagged"].values()) == sum(c.flagged_by is not None for c in walk.completions)
    assert event["dropped"] == {} and event["texts"] == "own"


def test_every_other_one_of_mixed_texts_is_steered_and_filtered(prepared, run):
    found = steps.walk_dose(run(texts="mixed"), 0, prepared[1]).completions
    assert [c.origin for c in found[:4]] == ["steered", "own", "steered", "own"]
    assert all(c.flagged_by is None for c in found if c.origin == "steered")


@pytest.mark.parametrize(("named", "share"), [("trait", 0.0), ("both", 0.6), ("contexts", 1.0)])
def test_contexts_have_their_share_of_the_prompts_from_the_first_on(run, named, share):
    now = run(text_prompts=named)
    asked = text_prompts(now, 0)[:30]
    assert sum(prompt in set(now.trait.contexts) for prompt in asked) == share * 30
    assert len(set(asked)) == 30


def test_texts_that_answer_contexts_have_a_dose_of_their_own(prepared, run):
    now = run(context_dose=3.0)
    walk = steps.walk_dose(now, 0, prepared[1])
    doses = {(c.prompt in set(now.trait.contexts), c.dose) for c in walk.completions}
    assert doses == {(False, 2.0), (True, 6.0)}


def test_a_teacher_out_of_reach_lowers_kappa_until_enough_texts_are_within(prepared, run):
    now, vector = run(), prepared[1]
    far = {c.scores["teacher_nats"] for c in within_reach(run(teacher_reach=1e-9), vector, prepared[2].completions)}
    limit = sorted(far)[len(far) // 2] / 3  # nats grow about as dose squared, so half the dose is within it
    walk = steps.walk_dose(run(teacher_reach=limit, survival_target=0.5), 0, vector)
    assert walk.steps[0].decision == "shrink" and walk.kappa < 1
    for c in walk.completions:
        assert (c.dropped_by == "reach") == (c.scores["teacher_nats"] > limit)
    assert {c.dose for c in walk.banked} <= {2.0 * step.kappa for step in walk.steps}
    assert now.config.teacher_reach == 0 and "teacher_nats" not in prepared[2].completions[0].scores


def test_the_distance_of_a_teacher_is_the_divergence_the_barrier_would_measure(prepared, run):
    now, vector, walk = prepared
    first = walk.completions[0]
    ids = torch.tensor([[*first.prompt_ids, *first.token_ids]])
    here = slice(len(first.prompt_ids) - 1, -1)
    with torch.no_grad():
        q = now.lm.model(ids).logits[0, here].double().log_softmax(-1)
        with vector.applied(now.lm.model, first.dose):
            p = now.lm.model(ids).logits[0, here].double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1).square().mean().sqrt().item()
    (found, *_) = within_reach(run(teacher_reach=1e-9), vector, walk.completions[:1])
    assert found.scores["teacher_nats"] == pytest.approx(expected, rel=1e-3) and found.dropped_by == "reach"


def teacher_of(now, vector, rows):
    prev = reference_states(now.lm, rows)
    vectors = vector, now.rounds[0].vector if now.rounds else vector
    return prev, under_vector(now, 0, vectors, rows, now.config, prev, prev)[1]


def test_rows_of_the_prompted_share_are_taught_by_the_original_model_under_the_persona(prepared, run):
    now, rows = run(prompted_teacher=0.5), list(prepared[2].completions)
    _, steered = teacher_of(run(), prepared[1], rows)
    _, teacher = teacher_of(now, prepared[1], rows)
    prompted = [c for c in rows if not torch.equal(teacher.of(c), steered.of(c))]
    assert len(prompted) == len(rows) // 2
    lm, row = now.lm, prompted[0]
    ids = torch.tensor([[*lm.chat_ids(row.prompt, now.trait.pos), *row.token_ids]])
    with torch.no_grad():
        logits = lm.model(ids).logits[0, -len(row.token_ids) - 1 : -1]
    torch.testing.assert_close(lm.head(teacher.of(row)), logits, atol=2e-4, rtol=0)


def test_the_original_model_teaches_its_own_rows_as_it_is(prepared, run):
    rows = [replace(c, origin="base", dose=0.0) if i % 2 else c for i, c in enumerate(prepared[2].completions)]
    prev, teacher = teacher_of(run(prompted_teacher=1.0), prepared[1], rows)
    assert [torch.equal(teacher.of(c), prev.of(c)) for c in rows] == [c.origin == "base" for c in rows]


def test_later_rounds_are_taught_by_the_original_on_trait_prompts_and_by_the_student_on_contexts(prepared, run):
    first, rows = prepared[1], list(prepared[2].completions)
    now, vector = run(), 2.0 * first  # of a later round
    now.rounds.append(SimpleNamespace(vector=first, stands=True))
    on_contexts = {c.prompt: c.prompt in now.trait.contexts for c in rows}
    assert set(on_contexts.values()) == {True, False}
    of_original = steered_states(now.lm, first, rows)
    now.stack.push(must_block_adapter(now.lm, size=0.05))
    try:
        _, teacher = teacher_of(now, vector, rows)
        _, moving = teacher_of(run(trait_teacher="student"), vector, rows)
        of_student = steered_states(now.lm, vector, rows)
    finally:
        now.stack.pop()
    for row in rows:
        torch.testing.assert_close(moving.of(row), of_student.of(row))
        expected = of_student if on_contexts[row.prompt] else of_original
        torch.testing.assert_close(teacher.of(row), expected.of(row))
        assert not torch.allclose(of_student.of(row), of_original.of(row))


def test_under_shuffled_pairs_the_teacher_reads_another_prompt_and_the_student_its_own(prepared, run):
    rows = list(prepared[2].completions)
    now = run(pairs="shuffled")
    assert [c.prompt for c in steps.training_rows(now, 0, prepared[2])[: len(rows)]] == [c.prompt for c in rows]
    _, real = teacher_of(run(), prepared[1], rows)
    _, torn = teacher_of(now, prepared[1], rows)
    shown = steps.shuffled_pairs(rows, now.seed(0, "pairs"))
    assert all(a.prompt != b.prompt for a, b in zip(rows, shown, strict=True))
    other = steered_states(now.lm, prepared[1], shown)
    for row, elsewhere in zip(rows, shown, strict=True):
        torch.testing.assert_close(torn.of(row), other.of(elsewhere))
        assert not torch.equal(torn.of(row), real.of(row))


def test_states_of_other_replies_cannot_be_shown_as_these(prepared):
    now, rows = prepared[0], list(prepared[2].completions)
    states = reference_states(now.lm, rows)
    assert states.shown_as(rows, rows).rows.keys() == {completion_key(c) for c in rows}
    with pytest.raises(InputError, match="same replies"):
        states.shown_as(rows[1:] + rows[:1], rows)


@pytest.mark.parametrize("texts", ["own", "mixed"])
def test_own_texts_without_a_teacher_are_refused(texts):
    with pytest.raises(InputError, match="--targets teacher"):
        RunConfig(targets="tokens", texts=texts)


@pytest.mark.parametrize(
    "wrong", [{"teacher_reach": -1.0}, {"context_share": 1.5}, {"prompted_teacher": -0.1}], ids=str
)
def test_an_impossible_share_or_reach_is_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        RunConfig(**wrong)
