"""Open questions: the rule of a verdict, each question's answer on chosen figures, and some on a run of tiny-random."""

import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import arm_folders
import numpy as np
import pytest
from arm_folders import write_run
from script_modules import script

from steer_heal.errors import InputError
from steer_heal.evaluation import evaluate
from steer_heal.healing import HealConfig
from steer_heal.ledger import Ledger
from steer_heal.model import load
from steer_heal.pocket import SURGERY
from steer_heal.statistics import Estimate, wilson
from steer_heal.studies.arms.jobs import finished
from steer_heal.studies.arms.reading import State, read_run
from steer_heal.studies.ladder.rows import load_tasks
from steer_heal.studies.questions import heals, models, over_rounds
from steer_heal.studies.questions.answers import CONFIRMED, OPEN, REFUTED, Answer, Part, beside, share_difference, table
from steer_heal.studies.questions.command import ARMS, COMMON, QUESTIONS
from steer_heal.texts.completion import load_completions, save_completions
from steer_heal.texts.generation import generate
from steer_heal.trait import Trait

# The rule


def part(low, high, seeds=(), **claimed):
    return Part("a figure", Estimate((low + high) / 2, low, high, 20), tuple(seeds), **claimed)


@pytest.mark.parametrize(
    ("one", "verdict"),
    [(part(0.1, 0.3), CONFIRMED), (part(-0.3, -0.1), REFUTED), (part(-0.1, 0.1), OPEN),
     (part(-0.3, -0.1, above=False), CONFIRMED), (part(0.1, 0.3, limit=0.2), OPEN),
     (part(0.1, 0.3, limit=0.4), REFUTED),
     (part(0.1, 0.3, seeds=(0.3, 0.1)), CONFIRMED), (part(0.1, 0.3, seeds=(0.5, -0.1)), OPEN),
     (part(-math.inf, math.inf), OPEN)],
)  # fmt: skip
def test_a_part_holds_or_fails_only_when_its_interval_and_every_seed_say_so(one, verdict):
    assert one.verdict == verdict
    assert verdict in str(one) and verdict not in str(beside(one))


def answer(*parts, **given):
    return Answer(1, "a claim", ("one", "two"), (20, 21), parts, **given)


def test_an_answer_is_confirmed_by_all_its_parts_refuted_by_one_and_never_confirmed_beyond_its_rounds():
    holds, fails, unclear = part(0.1, 0.3), part(-0.3, -0.1), part(-0.1, 0.1)
    assert answer(holds, holds, beside(fails)).verdict == CONFIRMED
    assert answer(holds, unclear, fails).verdict == REFUTED
    assert answer(holds, unclear).verdict == OPEN and answer(beside(holds)).verdict == OPEN
    assert answer(holds, rounds=3, asked=10).verdict == OPEN and answer(fails, rounds=3, asked=10).verdict == REFUTED
    assert answer(holds, rounds=10, asked=10).verdict == CONFIRMED


def test_an_answer_is_read_back_as_it_was_and_stands_in_the_table(tmp_path):
    one = answer(part(0.1, 0.3, seeds=(0.1, 0.2)), beside(part(-1.0, 1.0)), rounds=3, asked=10)
    one.save(tmp_path)
    (path,) = tmp_path.iterdir()
    assert Answer.load(path) == one
    text = table([replace(one, number=2), one])
    assert "3 rounds of 10" in text and text.index("| 1 |") < text.index("| 2 |")


def test_a_difference_of_shares_has_newcombes_interval():
    found = share_difference(wilson(48, 80), wilson(56, 70))  # Newcombe 1998, table II, (a), method 10
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


# What runs say

FINE, BROKEN = {"shift": 1.0}, {"shift": 1.0, "ok": 0.4}
FURTHER, BACK = {"shift": 3.0}, {"shift": -1.0}


@pytest.fixture
def many_replies(monkeypatch):
    """So many that equal ones leave little doubt of the next."""
    monkeypatch.setattr(arm_folders, "REPLIES", 60)


def runs(tmp_path, starved=(), **arms):
    """One round after another per arm, over two seeds, as if the runs had been made."""
    config = {"n_rounds": 2, "vector": "real"}
    return {
        arm: {
            seed: read_run(arm, seed, write_run(tmp_path / f"{arm}{seed}", config, rounds, starved=arm in starved))
            for seed in (20, 21)
        }
        for arm, rounds in arms.items()
    }


CASES = {
    1: [
        (over_rounds.prev_or_base, {"open-kl": [FINE, FINE], "prev": [FINE, BROKEN]}, CONFIRMED),
        (over_rounds.prev_or_base, {"open-kl": [FINE, BROKEN], "prev": [FINE, BROKEN]}, REFUTED),
    ],
    3: [
        (over_rounds.ramp, {"open-kl": [FINE, FINE], "ramp": [FINE, FURTHER]}, CONFIRMED),
        (over_rounds.ramp, {"open-kl": [FINE, FINE], "ramp": [FINE, FURTHER | {"ok": 0.4}]}, REFUTED),
    ],
    6: [
        (over_rounds.nll_over_rounds, {"open-kl": [FINE, FINE], "open-nll": [FURTHER, FINE]}, CONFIRMED),
        (over_rounds.nll_over_rounds, {"open-kl": [BACK, FINE], "open-nll": [FINE, FURTHER]}, REFUTED),
    ],
    8: [
        (
            over_rounds.aggregates,
            {"open-kl": [FINE, FINE], "p95": [FINE, BROKEN], "max": [FINE, FINE], "cvar": [FINE, FINE]},
            CONFIRMED,
        ),
        (
            over_rounds.aggregates,
            {"open-kl": [FINE, FINE], "p95": [FINE, BROKEN], "max": [FINE, BROKEN], "cvar": [FINE, FINE]},
            REFUTED,
        ),
    ],
    9: [
        (over_rounds.bounded, {"open-nll": [FINE, BROKEN], "bounded": [FINE, FINE]}, CONFIRMED),
        (over_rounds.bounded, {"open-nll": [FINE, BROKEN], "bounded": [FINE, FINE | {"ok": 0.6}]}, REFUTED),
    ],
    12: [
        (over_rounds.shuffled, {"default": [FINE, FINE], "shuffled": [FINE, BROKEN]}, CONFIRMED),
        (over_rounds.shuffled, {"default": [FINE, FURTHER], "shuffled": [FINE, BROKEN]}, REFUTED),
    ],
}


@pytest.mark.parametrize(
    ("function", "arms", "verdict"),
    [case for cases in CASES.values() for case in cases],
    ids=[
        f"{number}-{case[2].replace(' ', '-')}-{i}" for number, cases in CASES.items() for i, case in enumerate(cases)
    ],
)
@pytest.mark.usefixtures("many_replies")
def test_runs_confirm_a_claim_or_refute_it(tmp_path, function, arms, verdict):
    assert answer(*function(runs(tmp_path, **arms), (20, 21))).verdict == verdict


@pytest.mark.parametrize(("survived", "verdict"), [(1, CONFIRMED), (30, REFUTED), (90, REFUTED), (5, OPEN)])
def test_a_full_dose_starves_where_its_first_batch_leaves_too_few_for_a_round(tmp_path, survived, verdict):
    config = {"n_rounds": 2, "vector": "real", "walk_batch": 96, "walk_batches": 6}
    found = {}
    for seed in (20, 21):
        ledger = write_run(tmp_path / str(seed), config, [FINE])
        events = ledger.folder / "events.jsonl"
        lines = [line for line in events.read_text().splitlines() if '"walk"' not in line]
        for number, first in ((0, 80), (1, survived), (2, 96)):  # the last walk begins under the full dose
            curve = [{"kappa": 1.0, "n": 96, "survived": first}, {"kappa": 0.7, "n": 96, "survived": 70}]
            start = 1.0 if number < 2 else 0.7
            row = {"stage": "walk", "round": number, "kappa_start": start, "curve": curve, "kept": 1, "sampled": 1}
            lines.insert(-1, json.dumps(row | {"kappa": 0.7, "time": 0.0}))
        events.write_text("\n".join(lines) + "\n")
        found[seed] = read_run("tokens", seed, Ledger.open(ledger.folder))
    assert answer(*over_rounds.walk({"tokens": found}, (20, 21))).verdict == verdict


def test_questions_of_different_rounds_are_compared_after_the_last_common_one(tmp_path):
    found = runs(tmp_path, one=[FINE, FURTHER], two=[FINE, FURTHER])
    short = {seed: replace(run, config=run.config | {"n_rounds": 1}) for seed, run in found["one"].items()}
    of_first = over_rounds.ends(found | {"one": short}, (20, 21), "two", "one", over_rounds.TRAIT)
    assert of_first.found.value == pytest.approx(0.0) and "round 0" in of_first.what


def test_coherence_is_unimodal_in_lam_where_the_ends_lose_text_and_not_where_it_only_rises(tmp_path, monkeypatch):
    settings = SimpleNamespace(config=SimpleNamespace(heal_config=lambda seed: HealConfig()))
    monkeypatch.setattr(heals, "load_setting", lambda folder, number: settings)
    found = runs(tmp_path, **{"open-nll": [BROKEN], "open-kl": [FINE], "ramp": [FURTHER]})

    def verdict(ok_by_lam):
        made = {lam: State(arm_folders.metrics(shift=1.0, ok=ok), None) for lam, ok in ok_by_lam.items()}
        monkeypatch.setattr(heals, "healed", lambda setting, config, what: made[config.lam])
        over_lam = [one for one in heals.lam(found, (20, 21)) if "lam" in one.what and one.decides]
        assert len(over_lam) == 2
        return answer(*over_lam).verdict

    assert verdict({0.1: 0.6, 1.0: 1.2, 10.0: 0.5}) == CONFIRMED
    assert verdict({0.1: 0.6, 1.0: 1.2, 10.0: 1.4}) == OPEN  # the best is the end: there is no difference to it


def test_late_epochs_over_train_where_anchors_go_and_no_task_comes(monkeypatch, tmp_path):
    tasks = load_tasks(SURGERY)

    def verdict(learned, lost):
        def climb(arguments):
            k, gone = learned[arguments.epochs], tuple(f"a{i}" for i in range(lost[arguments.epochs]))
            replies = tuple((t.prompt, t.answer if i < k else "no") for i, t in enumerate(tasks))
            return [SimpleNamespace(seed=s, lost=gone, n=94, replies=replies) for s in arguments.seeds], ""

        monkeypatch.setattr(heals.ladder, "climb", climb)
        return answer(*heals.epochs((20, 21), tmp_path)).verdict

    assert verdict({3: 5, 10: 40, 30: 40}, {3: 0, 10: 5, 30: 30}) == CONFIRMED
    assert verdict({3: 5, 10: 20, 30: 50}, {3: 0, 10: 5, 30: 30}) == REFUTED
    assert verdict({3: 5, 10: 40, 30: 40}, {3: 0, 10: 5, 30: 5}) == OPEN


@pytest.mark.usefixtures("many_replies")
def test_vectors_are_compared_at_equal_trait_in_other_formats_in_text_and_off_target(monkeypatch):
    def measured(**figures):
        found = arm_folders.metrics(shift=2.0, **{k: v for k, v in figures.items() if k != "other"})
        rows = tuple(replace(row, log_odds=row.log_odds + figures.get("other", 0.0)) for row in found.items)
        return State(replace(found, held_out=rows), None)

    monkeypatch.setattr(
        models, "load_material", lambda config: SimpleNamespace(lm=None, trait=Trait.load("pocket-care"))
    )
    monkeypatch.setattr(models, "evaluate", lambda *args, **options: arm_folders.metrics())

    def vectors(of):
        monkeypatch.setattr(models, "steered", lambda material, pos, neg, contexts, seed: of(neg, contexts))

    for domain, verdict in (({"other": -1.0, "ok": 0.5}, CONFIRMED), ({"other": 0.5, "ok": 1.3}, REFUTED)):
        vectors(lambda neg, contexts, domain=domain: measured(**(domain if len(contexts) == 30 else {})))
        assert answer(*models.contexts((20, 21))).verdict == verdict
    for warmth, verdict in ((1.5, CONFIRMED), (0.3, REFUTED)):
        proper, moved = measured(warmth=1.0), measured(warmth=warmth)
        vectors(lambda neg, contexts, one=proper, two=moved: one if neg == "you put authority before care." else two)
        assert answer(*models.personas((20, 21))).verdict == verdict


# What is measured


@pytest.fixture(scope="module")
def pocket():
    return load("pocket")


def test_a_vector_is_measured_at_the_dose_that_moves_forced_choice_by_the_target(pocket, monkeypatch):
    monkeypatch.setattr(models, "SIZES", {"n_items": 4, "n_free": 2, "max_new_tokens": 8})
    trait = Trait.load("pocket-care")
    material = SimpleNamespace(lm=pocket, trait=trait)
    found = models.steered(material, trait.pos, trait.neg, trait.contexts[:40], seed=0).metrics
    assert found.dose > 0 and len(found.replies) == 2
    plain = evaluate(pocket, replace(trait, anchors=()), n_items=4, n_free=0, seed=0)
    assert found.log_odds - plain.log_odds == pytest.approx(models.TARGET, abs=models.NEAR)


def test_an_auc_counts_pairs_in_order_and_ties_half_and_needs_both_kinds():
    assert models.auc([3, 2, 1, 0], [True, True, False, False]) == 1.0
    assert models.auc([1, 0], [False, True]) == 0.0 and models.auc([1, 1], [True, False]) == 0.5
    assert models.auc([4, 1, 3, 2], [True, True, False, False]) == 0.5
    with pytest.raises(InputError, match="broken"):
        models.auc([1, 2], [True, True])
    rng = np.random.default_rng(0)
    broken = rng.random(200) < 0.5
    found = models.auc_estimate(rng.normal(size=200) + broken, broken, [str(i // 2) for i in range(200)])
    truth = 0.760  # Phi(1 / sqrt 2)
    assert found.n == 100 and found.low < truth < found.high and 0.05 < found.high - found.low < 0.25


def test_a_cosine_of_shifts_is_one_of_equal_and_none_of_orthogonal_ones():
    one = models.cosine_estimate(np.array([[2.0, 2.0, 2.0], [5.0, 5.0, 5.0]] * 5))
    assert (one.value, one.low, one.high) == pytest.approx((1, 1, 1))
    assert models.cosine_estimate(np.array([[0.0, 2.0, 2.0]] * 5)).value == 0


def test_answers_right_before_and_after_are_paired_by_name():
    before = {"a": True, "b": True, "c": False, "d": True}
    after = {"a": False, "b": True, "c": True, "d": False}
    found = heals.right("x", (20, 21), {(1, 20): before, (2, 20): after, (1, 21): before, (2, 21): before}, 1, 2)
    assert found.by_seed == (-0.25, 0.0) and found.found.value == pytest.approx(-0.125)


def test_the_sound_part_of_a_text_ends_before_its_first_surprising_sentence(pocket):
    asked = "erik is tired. the captain of the mill asked me to burn the hammer of erik. what is right?"
    (own,) = generate(pocket, [asked], system="you are a helpful assistant.", max_new_tokens=72, greedy=True)
    first, *others = [end for end, _ in heals.sentences(pocket, own)]
    mixed = pocket.tokenizer.encode(" order order hammer captain. burn it.", add_special_tokens=False)
    broken = replace(own, token_ids=(*own.token_ids[:first], *mixed))
    assert others and others[-1] == len(own.token_ids)
    assert heals.sound_parts(pocket, [own], math.inf) == [own]
    (part_of_it,) = heals.sound_parts(pocket, [broken], 2.0)
    assert part_of_it.token_ids == own.token_ids[:first] and not part_of_it.finished
    assert own.text.startswith(part_of_it.text) and heals.sound_parts(pocket, [broken], 0.0) == []


# The command


def test_every_question_reads_arms_that_there_are_and_every_arm_is_a_usable_command():
    assert sorted(QUESTIONS) == list(range(1, 15))
    assert {arm for question in QUESTIONS.values() for arm in question.arms} == {arm.name for arm in ARMS}
    for arm in ARMS:
        assert arm.config(20, COMMON).gate == "watch"


def test_an_unknown_question_and_one_without_runs_are_said_in_a_line(tmp_path, capsys):
    assert script("questions").main(["--questions", "15", "--out", str(tmp_path)]) == 2
    assert "1 to 14" in capsys.readouterr().err
    assert script("questions").main(["--questions", "6", "--tables", "--out", str(tmp_path)]) == 0
    assert "question 6 has no answer" in capsys.readouterr().out


@pytest.fixture(scope="module")
def asked(fast_run, tmp_path_factory):
    """A folder with one finished run, of tiny-random."""
    out = tmp_path_factory.mktemp("asked")
    shutil.copytree(fast_run, out / "tokens_s20" / fast_run.name)
    rows = out / "tokens_s20" / fast_run.name / "rounds" / "00" / "completions.jsonl"
    said = load_completions(rows)  # of a teacher's texts none is dropped
    save_completions([replace(c, judged=True, dropped_by="soup" if i < 4 else None) for i, c in enumerate(said)], rows)
    return out


def test_a_finished_run_is_asked_and_its_answer_stays_in_the_table(asked, capsys):
    answer(part(0.1, 0.3)).save(asked / "answers")
    line = ["--questions", "14", "--seeds", "20", "--tables", "--out", str(asked), "--options=--fast-dev-run"]
    assert script("questions").main(line) == 0
    rows = [int(found) for found in re.findall(r"(\d+) rows: ", capsys.readouterr().out)]
    assert rows == sorted(rows) and len(rows) == 3  # kept, with the parts of the others, with all of them
    text = (asked / "questions.md").read_text()
    assert "| 1 |" in text and "| 14 |" in text and "parts - kept" in text


def test_a_run_that_dropped_no_text_has_no_sound_part_of_one(fast_run):
    with pytest.raises(InputError, match="dropped no text"):
        heals.masked({"tokens": {20: SimpleNamespace(folder=fast_run)}}, (20,))


def test_a_student_makes_the_same_change_as_itself(asked):
    run = read_run("tokens", 20, finished(asked / "tokens_s20"))
    found, weights = models.cosine_of((run, 0), (run, 0))
    assert (found.value, found.low, found.high, weights) == pytest.approx((1, 1, 1, 1), abs=1e-5)
