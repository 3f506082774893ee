"""Verdicts: every name reached by its definition, floors first, at the exact edges."""

import math
from dataclasses import replace

import pytest

from steer_heal.errors import InputError
from steer_heal.evaluation import ChoiceRow, Metrics, ReplyRow, VignetteRow
from steer_heal.evaluation.verdict import (
    SUCCESSES,
    VERDICTS,
    Cost,
    Evidence,
    Floors,
    Round,
    Rules,
    Slacks,
    Verdict,
    best_round,
    cost,
    gather,
    judge_round,
    judge_run,
    shape_reference,
)
from steer_heal.statistics import Estimate
from steer_heal.trait import FOUNDATIONS


def est(value: float, half: float = 0.1, n: int = 64) -> Estimate:
    return Estimate(value, value - half, value + half, n)


HEALED = Evidence(
    base_coherence=0.95,
    steered_coherence=0.80,
    student_coherence=0.94,
    steered=est(0.6),
    student=est(0.5),
    training=0.55,
    target=est(1.5),
    off_target={"warmth": est(0.2), "boldness": est(-0.1)},
    shape={"distinct4": 0.9, "token_entropy": 0.99},
    by_reply={"pair_fit": est(0.95, 0.08), "words": est(0.95, 0.08)},
    kept=48,
    needed=30,
)
STILL = est(0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "healed"),
        ({"steered_coherence": 0.93}, "moved"),
        ({"student_coherence": 0.85}, "unhealed"),
        ({"student": est(0.2)}, "throttled"),
        ({"student": est(0.05, 0.04)}, "undone"),
        ({"student": est(0.0)}, "undone"),
        ({"student": est(-0.3)}, "moved against"),
        ({"student": est(-0.33), "training": 0.0, "steered": STILL}, "moved against"),
        ({"student": est(0.3, 0.5)}, "inconclusive"),
        ({"student": est(0.0), "training": 0.0}, "no-op"),
        ({"steered": STILL, "student": STILL, "training": 0.0, "steered_coherence": 0.95}, "no-op"),
        ({"off_target": {"warmth": est(-1.6)}}, "broad"),
        ({"student_coherence": 0.5}, "collapsed"),
        ({"student_coherence": math.nan}, "collapsed"),
        ({"by_reply": {"pair_fit": est(0.7, 0.09), "words": est(0.95)}}, "unfit"),
        ({"by_reply": {"pair_fit": est(0.95), "words": est(0.7, 0.09)}}, "shorter"),
        ({"by_reply": {"pair_fit": est(0.7, 0.09), "words": est(0.7, 0.09)}}, "unfit"),
        ({"by_reply": {"pair_fit": est(0.7, 0.09)}, "student_coherence": 0.5}, "collapsed"),
        ({"by_reply": {"pair_fit": est(math.nan)}}, "unfit"),
        ({"student": None, "student_coherence": None, "kept": 7}, "starved"),
        ({"kept": 29}, "starved"),
    ],
)
def test_each_verdict_is_reached_by_its_definition(change, name):
    found = judge_round(replace(HEALED, **change))
    assert found.name == name, found
    assert found.name in VERDICTS
    assert found.above_floors == (name not in ("collapsed", "unfit", "shorter", "starved"))


@pytest.mark.parametrize("lower", [True, False])
def test_a_floor_names_what_its_ratio_is_held_against(lower):
    under = replace(HEALED, shape={"distinct4": 0.78}, prompted_lower=frozenset(["distinct4"] if lower else []))
    of = "the prompted model's" if lower else "base's"
    assert f"distinct4 at 0.78 of {of} (floor 0.80)" in judge_round(under).text


def test_identical_models_are_a_no_op():
    same = Evidence(0.95, 0.95, 0.95, STILL, STILL, training=0.0, target=STILL, off_target={"warmth": STILL})
    assert judge_round(same).name == "no-op"
    assert judge_round(replace(same, training=None)).name == "no-op"


@pytest.mark.parametrize("trait", [0.1, 1.0, 50.0, 1e6])
@pytest.mark.parametrize("coherence", [0.0, 0.3, 0.75, math.nan])
def test_no_amount_of_trait_makes_a_broken_student_healed(trait, coherence):
    broken = replace(HEALED, student=est(trait, 0.01), student_coherence=coherence)
    assert judge_round(broken).name == "collapsed"


@pytest.mark.parametrize("name", ["distinct4", "token_entropy"])
def test_sharpened_replies_do_not_pass_for_coherence(name):
    short = replace(HEALED, student_coherence=1.0, shape={**HEALED.shape, name: 0.79})
    found = judge_round(short)
    assert found.name == "collapsed" and name in found.text
    assert judge_round(replace(short, shape={**HEALED.shape, name: 0.8})).name == "healed"


@pytest.mark.parametrize("name", ["words", "pair_fit"])
def test_a_floor_inside_the_interval_lets_a_round_pass_and_its_text_tells_the_figure(name):
    crossing = judge_round(replace(HEALED, by_reply={**HEALED.by_reply, name: est(0.76, 0.05)}))
    assert crossing.name == "healed" and crossing.above_floors
    assert f"Not surely under the floor: {name} at 0.76 [0.71, 0.81] of base's (floor 0.80)" in crossing.text
    assert "surely" not in judge_round(HEALED).text


def test_a_student_under_several_floors_has_the_gravest_verdict_and_all_of_them_in_its_text():
    low = {"pair_fit": est(0.5), "words": est(0.5)}
    found = judge_round(replace(HEALED, by_reply=low, answer_mass=0.1))
    assert found.name == "collapsed"
    assert all(part in found.text for part in ("answer mass 0.10", "pair_fit at 0.50", "words at 0.50"))


def test_lost_answer_mass_is_a_collapse():
    assert judge_round(replace(HEALED, answer_mass=0.4)).name == "collapsed"


def test_thresholds_are_inclusive_as_written():
    assert judge_round(replace(HEALED, steered_coherence=0.90)).name == "healed"
    assert judge_round(replace(HEALED, steered_coherence=0.901)).name == "moved"
    assert judge_round(replace(HEALED, student_coherence=0.92)).name == "healed"
    assert judge_round(replace(HEALED, student_coherence=0.919)).name == "unhealed"
    assert judge_round(replace(HEALED, student=est(0.3))).name == "healed"
    assert judge_round(replace(HEALED, student=est(0.299))).name == "throttled"
    assert judge_round(replace(HEALED, student=est(0.06, 0.01))).name == "throttled"
    assert judge_round(replace(HEALED, student=est(0.059, 0.01))).name == "undone"


def test_broad_needs_an_interval_that_excludes_zero():
    assert judge_round(replace(HEALED, off_target={"warmth": est(1.6, 2.0)})).name == "healed"
    assert judge_round(replace(HEALED, off_target={"warmth": est(1.5, 0.1)})).name == "broad"
    assert judge_round(replace(HEALED, off_target={"warmth": est(1.49, 0.1)})).name == "healed"


def test_a_foundation_of_the_vignettes_makes_a_shift_broad_as_a_category_of_choices_does():
    def judged(off, target):
        found = judge_round(replace(HEALED, vignette_target=target, vignettes_off_target={"Sanctity": off}))
        return found.name, found.text

    name, text = judged(est(-1.6), None)
    assert name == "broad" and "'Sanctity' moved -1.600 [-1.700, -1.500] nats (vignettes)" in text
    assert "the target +1.500 [+1.400, +1.600] nats (forced choice)" in text
    assert judged(est(-1.6, 2.0), None)[0] == "healed"  # not sure
    assert judged(est(-1.4), None)[0] == "healed"  # less than the target in forced choice
    # The trait's own foundations moved more than its items: they are what the others are held against.
    assert judged(est(-1.6), est(2.5))[0] == "healed"
    assert "(vignettes), the target +2.500" in judged(est(2.6), est(2.5))[1]
    assert judged(est(0.4), est(0.1))[0] == "healed"  # vignettes barely moved, choices did


def test_a_broad_shift_of_choices_says_that_it_was_choices():
    text = judge_round(replace(HEALED, off_target={"warmth": est(-1.6)})).text
    assert "Off-target 'warmth' moved -1.600 [-1.700, -1.500] nats (forced choice), the target +1.500" in text


def test_a_noisier_large_category_does_not_hide_a_sure_broad_one():
    mixed = {"warmth": est(5.0, 9.0), "boldness": est(1.7, 0.1)}
    assert judge_round(replace(HEALED, off_target=mixed)).name == "broad"


def test_one_cluster_is_never_sure():
    one = Estimate(0.5, -math.inf, math.inf, 1)
    assert judge_round(replace(HEALED, student=one)).name == "inconclusive"


def test_the_text_says_what_was_compared_and_how_sure_it_is():
    text = judge_round(replace(HEALED, retain=Estimate(0.83, 0.7, 0.95, 64))).text
    for part in (
        "base 0.95",
        "steered unfiltered 0.80",
        "student 0.94",
        "+0.500 [+0.400, +0.600]",
        "retain 0.83",
        "[0.70, 0.95]",
        "64 clusters",
        "in free text",
    ):
        assert part in text
    assert "\n" not in text


def test_the_text_counts_the_clusters_of_each_model_and_says_when_retain_is_unknown():
    few = replace(HEALED, steered=Estimate(0.0, -1.0, 1.0, 7))
    found = judge_round(few)
    assert found.name == "healed" and "over 7 clusters of the steered model and 64 of the student" in found.text
    assert "retain unknown" in found.text


def test_floors_are_settings():
    strict = Rules(floors=Floors(coherence=0.995))
    assert judge_round(HEALED, strict).name == "collapsed"


def round_(number, name, trait, above=True, **costs):
    return Round(number, Verdict(name, "text.", above), trait, cost=Cost(**costs))


def test_best_round_has_the_highest_trait_above_the_floors_and_not_the_last_place():
    rounds = [
        round_(1, "healed", 0.4),
        round_(2, "healed", 0.6),
        round_(3, "throttled", 0.5),
        round_(4, "collapsed", 0.99, above=False),
        round_(5, "starved", None, above=False),
    ]
    assert best_round(rounds).number == 2
    assert judge_run(rounds).name == "healed"
    assert "Best round 2" in judge_run(rounds).text and "4 collapsed" in judge_run(rounds).text


@pytest.mark.parametrize(("figure", "slack"), [("coherence", 0.02), ("distinct4", 0.08), ("nll", 0.1)])
def test_a_higher_trait_is_passed_over_when_its_text_costs_more_than_the_slack(figure, slack):
    def run(more):
        return [round_(0, "healed", 0.4), round_(1, "healed", 0.9, **{figure: more}), round_(2, "throttled", 2.0)]

    assert best_round(run(slack)).number == 1  # exactly the slack is within it
    assert "higher log-odds" not in judge_run(run(slack)).text
    worse = run(slack + 0.001)
    assert best_round(worse).number == 0
    told = judge_run(worse).text
    assert "Round 1 has the higher log-odds (+0.90 against +0.40 nats)" in told
    assert f"{figure} {slack + 0.001:.3f} (at least 0.000, slack {slack})" in told
    assert best_round(worse, Slacks(1.0, 1.0, 1.0)).number == 1


def test_costs_are_held_against_the_cheapest_candidate_and_not_against_what_is_out():
    costly = [round_(0, "healed", 0.4, nll=0.5), round_(1, "healed", 0.9, nll=0.59)]
    assert best_round(costly).number == 1
    gone = replace(round_(2, "healed", 0.1), stands=False)
    assert best_round([*costly, gone, round_(3, "throttled", 0.1)]).number == 1
    assert best_round([*costly, round_(2, "healed", 0.1)]).number == 2


def test_where_no_round_is_within_all_slacks_the_one_beyond_by_the_fewest_is_the_best():
    rounds = [
        round_(0, "healed", 0.3, nll=0.4),  # 4 slacks of nll
        round_(1, "healed", 0.2, distinct4=0.16),  # 2 slacks of 4-grams
        round_(2, "healed", 0.9, coherence=0.06),  # 3 slacks of coherence
    ]
    assert best_round(rounds).number == 1


def test_costs_of_a_students_text_are_what_it_lost_and_never_below_zero():
    base, prompted = metrics(0.3, 0.9, nll=1.0), replace(metrics(1.0, 0.9))
    assert cost(base, metrics(0.8, 0.95, nll=0.9), prompted) == Cost()
    found = cost(base, metrics(0.8, 0.85, nll=1.3), prompted)
    assert (found.coherence, found.nll) == (pytest.approx(0.05), pytest.approx(0.3))
    same = replace(base, replies=tuple(replace(row, text="a b c d") for row in base.replies))
    assert cost(base, same).distinct4 == pytest.approx(1 - 1 / 40) and cost(base, same, same).distinct4 == 0
    assert cost(base, metrics(0.8, 0.9, nll=None)).nll == 0


def test_a_run_without_a_round_above_the_floors_is_never_a_success():
    assert best_round([round_(1, "collapsed", 9.0, above=False)]) is None
    assert judge_run([round_(1, "collapsed", 9.0, above=False)]).name == "collapsed"
    assert judge_run([round_(1, "starved", None, above=False)]).name == "starved"
    assert judge_run([]).name == "starved"


def test_a_run_that_was_healed_on_the_way_to_its_best_round_is_healed():
    assert judge_run([round_(1, "healed", 0.4), round_(2, "moved", 0.6)]).name == "healed"
    assert judge_run([round_(1, "moved", 0.4), round_(2, "moved", 0.6)]).name == "moved"
    assert judge_run([round_(1, "moved", 0.6), round_(2, "healed", 0.5)]).name == "moved"


def test_a_reverted_round_is_never_the_best_nor_what_healed_the_run():
    gone = replace(round_(1, "healed", 0.9), stands=False)
    assert best_round([round_(0, "moved", 0.4), gone]).number == 0
    assert judge_run([gone, round_(2, "moved", 0.4)]).name == "moved"
    assert "1 healed (reverted)" in judge_run([gone, round_(2, "moved", 0.4)]).text


def test_a_run_of_which_nothing_stands_is_reverted_and_says_what_is_left():
    gone = replace(round_(0, "collapsed", 0.9, above=False), stands=False)
    dry = round_(1, "starved", None, above=False)
    for rounds in ([gone], [gone, dry], [gone, replace(gone, number=1)]):
        found = judge_run(rounds)
        assert found.name == "reverted" and not found.above_floors
        assert "original model" in found.text and "0 collapsed (reverted)" in found.text
    assert judge_run([dry]).name == "starved"
    assert judge_run([replace(gone, stands=True)]).name == "collapsed"


def test_the_reference_of_length_and_diversity_is_the_lower_of_base_and_prompted():
    base, terse = metrics(0.3, 0.9, words=40), metrics(1.0, 0.9, words=30)
    assert shape_reference(base)["words"] == 40 and shape_reference(base, terse)["words"] == 30


def test_nan_trait_is_never_the_best_round():
    assert best_round([round_(1, "healed", math.nan), round_(2, "healed", 0.1)]).number == 2


def metrics(rate, sound, log_odds=0.0, off=0.0, words=40, judged=True, nll=1.0, loop=False, fit=None):
    """Metrics of a model with a trait rate and a share of sound sentences, over 40 prompts and 20 items.

    `words` and `fit` may be functions of the prompt's number.
    """

    def row(name, value, category):
        half = (math.log(0.5), math.log(0.5))
        return ChoiceRow(name, category, ("a", "b"), ("a",), half, (value, value), value, 1.0)

    def reply(i):
        n, own = words(i) if callable(words) else words, fit(i) if callable(fit) else fit
        text = " ".join(f"{i}w{k}" for k in range(n))
        checked = (float(i < 40 * rate), sound, True) if judged else (None, None, None)
        return ReplyRow(str(i), text, n, True, loop and i % 2 == 0, *checked, nll, None if own is None else nll + own)

    replies = tuple(map(reply, range(40)))
    items = tuple(row(str(i), log_odds + i % 3, "care") for i in range(20))
    others = tuple(row(str(i), off, "warmth") for i in range(20))
    return Metrics("t", "", 0.0, "key", items, others, replies, (), 4.0)


def test_gathered_evidence_of_a_healed_round_says_healed_with_its_numbers():
    found = gather(metrics(0.3, 0.95), metrics(0.9, 0.8, 2.0), metrics(0.8, 0.94, 1.5, 0.1), training_trait=0.9)
    assert math.isclose(found.student.value, 0.5) and math.isclose(found.steered.value, 0.6)
    assert math.isclose(found.training, 0.6) and math.isclose(found.retained, 5 / 6)
    assert (found.base_coherence, found.steered_coherence, found.student_coherence) == pytest.approx((0.95, 0.8, 0.94))
    assert found.target.value == pytest.approx(1.5) and found.off_target["warmth"].value == pytest.approx(0.1)
    assert found.coherence_shift.value == pytest.approx(-0.01) and found.unit == "of replies"
    assert judge_round(found).name == "healed"


@pytest.mark.parametrize(
    ("student", "name"),
    [
        (metrics(0.8, 0.94, 1.5, 1.6), "broad"),
        (metrics(0.8, 0.5, 1.5), "collapsed"),
        (metrics(0.8, 0.96, 1.5, words=20), "shorter"),
        (metrics(0.8, 0.94, 1.5, fit=0.1), "unfit"),
        (metrics(0.8, 0.94, 1.5, fit=0.9), "healed"),
        (metrics(0.3, 0.95), "undone"),
        (None, "starved"),
    ],
)
def test_gathered_evidence_reaches_the_other_verdicts(student, name):
    base, steered = metrics(0.3, 0.95, fit=1.0), metrics(0.9, 0.8, 2.0, fit=1.0)
    found = judge_round(gather(base, steered, student, training_trait=0.9, kept=40, needed=30))
    assert found.name == name and (found.name in SUCCESSES) == (name == "healed")


def test_length_and_fit_are_ratios_to_the_lower_of_base_and_prompted_and_under_the_floor_only_surely():
    base, steered = metrics(0.3, 0.95, fit=1.0), metrics(0.9, 0.8, 2.0, fit=1.0)
    asked = metrics(1.0, 0.95, words=30, fit=0.5)

    def judged(student, prompted=None):
        found = gather(base, steered, student, prompted=prompted, training_trait=0.9)
        return judge_round(found).name, found.by_reply

    name, ratios = judged(metrics(0.8, 0.94, 1.5, words=30, fit=0.45), asked)
    assert name == "healed" and (ratios["words"].value, ratios["pair_fit"].value) == (1.0, pytest.approx(0.9))
    # A mean of 31.5 words of 40, under the floor of 32, but lengths differ much from prompt to prompt.
    name, ratios = judged(metrics(0.8, 0.94, 1.5, words=lambda i: 50 if i % 2 else 13, fit=1.0))
    assert (
        name == "healed" and ratios["words"].value == 31.5 / 40 and ratios["words"].high > 0.8 and "pair_fit" in ratios
    )
    assert judged(metrics(0.8, 0.94, 1.5, words=lambda i: 31 + i % 2, fit=1.0))[0] == "shorter"
    assert judged(metrics(0.8, 0.94, 1.5, fit=lambda i: 0.7 + (i % 2) * 3 - 1.5))[0] == "healed"


def test_without_a_scorer_or_a_base_that_fits_its_prompts_nothing_is_said_of_fit():
    base, student = metrics(0.3, 0.95), metrics(0.8, 0.94, 1.5, fit=0.0)
    assert "pair_fit" not in gather(base, metrics(0.9, 0.8, 2.0), student).by_reply
    at_random = metrics(0.3, 0.95, fit=-0.1)
    assert "pair_fit" not in gather(at_random, metrics(0.9, 0.8, 2.0), student, prompted=at_random).by_reply
    assert judge_round(gather(at_random, metrics(0.9, 0.8, 2.0), student, training_trait=0.9)).name == "healed"


def test_without_a_checker_the_trait_is_forced_choice_and_coherence_is_loops_and_nll():
    base, steered = metrics(0, 0, judged=False), metrics(0, 0, 2.0, judged=False, loop=True)
    found = gather(base, steered, metrics(0, 0, 1.5, judged=False), training_trait=0.9)
    assert found.unit == "nats of log-odds" and found.student.value == pytest.approx(1.5) and found.training is None
    assert (found.base_coherence, found.steered_coherence, found.student_coherence) == (1.0, 0.5, 1.0)
    assert judge_round(found).name == "healed" and "in forced choice" in judge_round(found).text
    garbled = gather(base, steered, metrics(0, 0, 1.5, judged=False, nll=5.0))
    assert judge_round(garbled).name == "collapsed"


def seen(metrics, foundation, nats):
    """The same metrics with ten vignettes in which one foundation is named `nats` more often."""
    logits = [nats if name == foundation else 0.0 for name in FOUNDATIONS]
    total = math.log(sum(map(math.exp, logits)))
    rows = tuple(VignetteRow(str(i), "Care", "", tuple(x - total for x in logits), 1.0) for i in range(10))
    return replace(metrics, vignettes=rows, vignette_up=("Care",), vignette_down=("Authority",))


def test_gathered_vignettes_reach_the_verdict_and_only_foundations_off_the_trait_count():
    base, steered, student = metrics(0.3, 0.95), metrics(0.9, 0.8, 2.0), metrics(0.8, 0.94, 1.5)
    flat = seen(base, "Care", 0.0), seen(steered, "Care", 0.0)
    found = gather(*flat, seen(student, "Care", 3.0), training_trait=0.9)
    assert found.vignette_target.value == pytest.approx(3.0)
    assert found.vignettes_off_target.keys() == set(FOUNDATIONS) - {"Care", "Authority"}
    assert judge_round(found).name == "healed"
    other = judge_round(gather(*flat, seen(student, "Sanctity", 3.0), training_trait=0.9))
    assert other.name == "broad" and "'Sanctity'" in other.text


def test_a_verdict_without_replies_is_refused():
    empty = replace(metrics(0.3, 0.9), replies=())
    with pytest.raises(InputError, match="n_free"):
        gather(empty, empty, empty)
