"""Vignettes: the shipped set, files of the kind, and what is measured on them, against known answers."""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from test_evaluation import item, make_trait, oracle

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, compare, evaluate
from steer_heal.evaluation.choices import set_apart
from steer_heal.evaluation.vignettes import WORDS, human_agreement, rank_correlation
from steer_heal.trait import FOUNDATIONS, Trait, Vignette
from steer_heal.trait.rows import read_rows

ROW = {"id": "a", "foundation_coarse": "Care", "text": "You see a boy tease a cat."}
HUMAN = {f"human_{name.replace(' ', '')}": 0 for name in FOUNDATIONS} | {"human_Care": 75, "human_Liberty": 25}


@pytest.fixture(scope="module")
def shipped():
    return Trait.load("care-over-authority").vignettes


def test_the_shipped_set_has_fourteen_short_second_person_scenes_of_each_category(shipped):
    assert Counter(one.foundation for one in shipped) == dict.fromkeys(FOUNDATIONS, 14)
    for one in shipped:
        assert re.match(r"You (see|watch|hear|notice) ", one.text) and one.text.endswith((".", '."', '".')), one
        assert 7 <= len(one.text.split()) <= 25 and one.human is None, one


def test_no_two_shipped_scenes_are_near_duplicates_and_none_names_its_category(shipped):
    words = {one.id: set(re.findall(r"[a-z]+", one.text.lower())) for one in shipped}
    for a, b in combinations(words.values(), 2):
        assert len(a & b) / len(a | b) < 0.4
    cues = {"moral", "wrong", "harm", "unfair", "cheat", "disloyal", "betray", "disgusting", "freedom"}
    cues |= {*WORDS, "weird", "strange", "norm", "obey", "disobey"}
    assert not [(name, found & cues) for name, found in words.items() if found & cues]


def test_real_model_traits_carry_the_vignettes_and_reversal_swaps_the_foundations():
    trait = Trait.load("care-over-authority")
    assert (trait.vignette_up, trait.vignette_down) == (("Care",), ("Authority",))
    other = trait.reversed()
    assert (other.vignette_up, other.vignette_down) == (("Authority",), ("Care",)) and other.reversed() == trait
    warmth = Trait.load("warmth")
    assert warmth.vignettes == trait.vignettes and not (warmth.vignette_up or warmth.vignette_down)


def write(tmp_path, *rows):
    path = tmp_path / "scenes.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def test_a_published_kind_of_file_is_read_with_its_raters_and_further_columns(tmp_path):
    more = {"foundation": "Care (p)", "wrong": 3.9, "ai_Care": 80, "condition": "other_violate", **HUMAN}
    rows = [
        {**ROW, **more},
        {**ROW, "condition": "self_violate"},
        {**ROW, "id": "b", "foundation_coarse": "SocialNorms"},
    ]
    first, second, third = read_rows(write(tmp_path, *rows), Vignette)
    assert first == Vignette("a", ROW["text"], "Care", "other_violate", (0.75, 0, 0, 0, 0, 0.25, 0))
    assert (second.id, second.condition, second.human, third.foundation) == ("a", "self_violate", None, "Social Norms")


WRONG = [
    ({"foundation_coarse": "Cares"}, "unknown foundation 'Cares' (did you mean 'Care'?)"),
    ({"foundation_coarse": 3}, "'foundation_coarse' must be a non-empty string, not 3"),
    ({"text": " "}, "'text' must be a non-empty string"),
    ({"id": 7}, "'id' must be a non-empty string, not 7"),
    ({"id": "a"}, "was used before"),
    ({"condition": None}, "'condition'"),
    ({**HUMAN, "human_Care": 175}, "'human_Care' must be a percentage from 0 to 100, not 175"),
    ({**HUMAN, "human_Care": "75 %"}, "must be a percentage"),
    ({**HUMAN, "human_Care": True}, "must be a percentage"),
    ({**HUMAN, "human_Care": 0.75, "human_Liberty": 0.25}, "sum to 1: give percentages"),
    ({**HUMAN, "human_Kindness": 3}, "column 'human_Kindness': unknown foundation"),
    ({**HUMAN, "human_NotWrong": 3}, "a second time"),
    ({"human_Care": 100}, "human_Fairness is missing: give all seven or none"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_a_wrong_row_is_one_line_that_names_file_and_line(tmp_path, change, words):
    path = write(tmp_path, ROW, "", {**ROW, "id": "b", **change})
    with pytest.raises(InputError, match=r"scenes\.jsonl, line 3: ") as caught:
        read_rows(path, Vignette)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((ROW, "{oops"), "line 2: not valid JSON"),
        (("[1]",), "line 1: expected an object with id"),
        (({"id": "a", "txt": "x", "foundation_coarse": "Care"},), "line 1: 'text' is missing (is 'txt' meant as it?)"),
        (("",), "is empty"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, rows, words):
    with pytest.raises(InputError) as caught:
        read_rows(write(tmp_path, *rows), Vignette)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_option_is_checked_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        RunConfig(eval_vignettes=str(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="line 1: foundation_coarse: unknown foundation"):
        RunConfig(eval_vignettes=str(write(tmp_path, {**ROW, "foundation_coarse": "Charity"})))
    assert len(RunConfig(eval_vignettes=str(write(tmp_path, ROW))).vignettes()) == 1
    with pytest.raises(InputError, match="eval_think_tokens -1"):
        RunConfig(eval_think_tokens=-1)


def test_a_trait_file_names_its_vignettes_and_its_foundations(tmp_path):
    lines = {"name": '"t"', "pos": '"a"', "neg": '"b"', "neutral": '""', "contexts": '["c", "d"]', "prompts": '["p"]'}
    lines |= {"eval_prompts": json.dumps([str(i) for i in range(8)]), "vignettes": '"scenes.jsonl"'}
    lines |= {"vignette_up": '["care", "Liberty"]', "vignette_agreement": '"Wrong?"'}
    items = '\n[[items]]\nid="i"\nprompt="p"\nchoices=["x","y"]\ntrait="x"\n'

    def load(**changes):
        text = "\n".join(f"{key} = {value}" for key, value in {**lines, **changes}.items() if value is not None)
        (tmp_path / "t.toml").write_text(text + items, "utf-8")
        return Trait.load(tmp_path / "t.toml")

    write(tmp_path, ROW)
    trait = load()
    assert trait.vignettes == (Vignette("a", ROW["text"], "Care"),) and trait.vignette_agreement == "Wrong?"
    assert (trait.vignette_up, trait.vignette_down) == (("Care", "Liberty"), ())
    for changes, words in (
        ({"vignettes": None}, "line 8: 'vignette_up' stands without 'vignettes'"),
        ({"vignette_up": '["Carre"]'}, "line 9: unknown foundation 'Carre' (did you mean 'Care'?)"),
        ({"vignette_down": '["Care"]'}, "also stands in 'vignette_up'"),
        ({"vignettes": '"none.jsonl"'}, "was not found"),
    ):
        with pytest.raises(InputError) as caught:
            load(**changes)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def scenes(n=7, human=None):
    return tuple(Vignette(str(i), f"You see scene {i} .", FOUNDATIONS[i % 7], human=human) for i in range(n))


def measured(tiny, answers, some=None, **trait):
    fields = {"vignette_up": ("Care",), "vignette_down": ("Authority",), "vignettes": some or scenes(), **trait}
    return evaluate(oracle(tiny, answers), make_trait([item()], **fields), n_free=0)


def naming(**p):
    """Answers of a model that names each foundation with a set probability, whatever the scene and the order."""
    return lambda prompt: dict(zip(WORDS, (p.get(word, 0.02) for word in WORDS), strict=True))


def test_exact_probabilities_give_the_exact_profile_in_nats(tiny):
    found = measured(tiny, naming(care=0.4, authority=0.1))
    scores = found.vignette_summary()["foundations"]
    total = 0.4 + 0.1 + 5 * 0.02
    for name, p in (("Care", 0.4 / total), ("Authority", 0.1 / total), ("Social Norms", 0.02 / total)):
        assert math.isclose(scores[name]["probability"], p, abs_tol=1e-6)
        assert math.isclose(scores[name]["nats"], math.log(p), abs_tol=1e-4)
        assert math.isclose(scores[name]["log_odds"], math.log(p / (1 - p)), abs_tol=1e-4)
    assert math.isclose(found.vignette_contrast, math.log(4), abs_tol=1e-4)
    assert math.isclose(found.vignette_summary()["as_written"], 1 / 7)
    assert found.vignette_summary()["human"] is None and found.vignette_wrong is None


def test_the_log_is_of_the_mean_probability_and_the_log_odds_are_averaged(tiny):
    def answers(prompt):
        return naming(care=0.7 if "scene 0" in prompt else 0.1)(prompt)

    care = measured(tiny, answers, scenes(2)).vignette_summary()["foundations"]["Care"]
    p, q = 0.7 / 0.82, 0.1 / 0.22
    assert math.isclose(care["nats"], math.log((p + q) / 2), abs_tol=1e-4)
    assert math.isclose(care["log_odds"], (math.log(p / (1 - p)) + math.log(q / (1 - q))) / 2, abs_tol=1e-4)


def test_a_model_that_answers_by_place_names_every_foundation_alike(tiny):
    def by_place(prompt):
        asked = prompt.partition("only:")[2]
        said = sorted(WORDS, key=asked.find)
        return dict(zip(said, (0.6, 0.2, 0.1, 0.04, 0.03, 0.02, 0.01), strict=True))

    for found in measured(tiny, by_place).vignettes:
        assert all(math.isclose(x, math.log(1 / 7), abs_tol=1e-4) for x in found.logp)


def test_a_known_shift_comes_out_as_contrast_and_off_target_foundations_move_little(tiny):
    before, after = (measured(tiny, naming(care=c, authority=a), scenes(14)) for c, a in ((0.2, 0.2), (0.4, 0.05)))
    shift = compare(before, after)
    assert math.isclose(shift.vignette_contrast.value, math.log(8), abs_tol=1e-4)
    assert shift.vignette_contrast.excludes_zero and shift.vignette_contrast.n == 14
    assert shift.vignettes["Care"].value > 0 > shift.vignettes["Authority"].value
    assert set(shift.vignettes_off_target) == set(FOUNDATIONS) - {"Care", "Authority"}
    assert all(abs(one.value) < 0.2 for one in shift.vignettes_off_target.values())
    assert compare(before, before).vignette_contrast.value == 0


def test_conditions_of_one_vignette_are_one_cluster(tiny):
    pairs = tuple(replace(one, condition=name) for one in scenes(7) for name in ("other", "self"))
    found = measured(tiny, naming(care=0.4), pairs)
    assert len(found.vignettes) == 14 and compare(found, found).vignettes["Care"].n == 7


def test_agreement_question_gives_log_odds_of_wrong_debiased_by_order(tiny):
    def answers(prompt):
        if "Is it wrong" not in prompt:
            return naming(care=0.4)(prompt)
        first = 2.0 if prompt.rindex("yes") < prompt.rindex("no") else -2.0
        p = 1 / (1 + math.exp(-(1.0 + first)))
        return {"yes": p, "no": 1 - p}

    found = measured(tiny, answers, vignette_agreement="Is it wrong?")
    assert all(math.isclose(row.wrong, 1.0, abs_tol=1e-4) for row in found.vignettes)
    assert math.isclose(found.vignette_wrong, 1.0, abs_tol=1e-4)
    assert math.isclose(found.vignette_summary()["foundations"]["Loyalty"]["wrong"], 1.0, abs_tol=1e-4)
    assert compare(found, found).vignette_wrong.value == 0


def test_agreement_with_raters_is_zero_nats_for_a_model_that_answers_as_they_do(tiny):
    human = (0.4, 0.05, 0.05, 0.2, 0.1, 0.15, 0.05)
    as_they = measured(tiny, lambda prompt: dict(zip(WORDS, human, strict=True)), scenes(7, human)).vignettes
    found = human_agreement(as_they)
    assert found.n == 7 and abs(found.kl) < 1e-5 and math.isclose(found.rank, 1.0, abs_tol=1e-6) and found.top == 1.0
    assert math.isclose(found.cross_entropy, -sum(p * math.log(p) for p in human), abs_tol=1e-4)
    other = human_agreement([replace(row, human=(0, 0, 0, 1.0, 0, 0, 0)) for row in as_they])
    assert math.isclose(other.kl, -math.log(0.2), abs_tol=1e-4) and other.top == 0.0
    assert human_agreement([replace(row, human=None) for row in as_they]) is None


def test_rank_correlation_equals_worked_examples():
    a = np.array([1.0, 2, 3, 4])
    assert rank_correlation(a, a**3) == pytest.approx(1) and rank_correlation(a, -a) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4.
    assert rank_correlation(np.array([0.0, 5, 5, 9]), np.array([1.0, 3, 2, 4])) == pytest.approx(
        4.5 / math.sqrt(4.5 * 5)
    )
    assert rank_correlation(a, np.ones(4)) == 0


def test_a_sample_is_stratified_and_other_vignettes_are_not_compared(tiny):
    some = scenes(14)
    trait = make_trait([item()], vignettes=some, vignette_up=("Care",))
    lm = oracle(tiny, naming(care=0.4))
    found = evaluate(lm, trait, n_free=0, n_items=7)
    assert sorted(row.foundation for row in found.vignettes) == sorted(FOUNDATIONS)
    whole = evaluate(lm, trait, n_free=0)
    asked = replace(trait, vignette_agreement="Wrong?")
    for other in (found, evaluate(lm, trait, n_free=0, vignettes=some[:7]), evaluate(lm, asked, n_free=0)):
        with pytest.raises(InputError, match="different items"):
            compare(whole, other)
    assert len(evaluate(lm, make_trait([item()]), n_free=0, vignettes=some[:3]).vignettes) == 3


def test_metrics_with_vignettes_are_saved_and_load_equal(tiny, tmp_path):
    found = measured(tiny, naming(care=0.4), scenes(7, (0.5, 0.5, 0, 0, 0, 0, 0)), vignette_agreement="Wrong?")
    found.save(tmp_path / "metrics.json")
    assert Metrics.load(tmp_path / "metrics.json") == found
    assert json.loads((tmp_path / "metrics.json").read_text())["summary"]["vignettes"]["human"]["n"] == 7


def test_answers_are_cut_after_the_token_that_sets_them_apart():
    assert set_apart([[(1, 2, 3), (9,)], [(1, 4, 5)], [(7, 8)]]) == [[(1, 2), (9,)], [(1, 4)], [(7,)]]
    # A choice that begins another keeps all its tokens.
    assert set_apart([[(1,)], [(1, 2, 3)]]) == [[(1,)], [(1, 2)]]
