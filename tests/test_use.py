"""Adapters in use: scale 0 is base, a sum is both, what is left is a share, and a whole study on `tiny-random`."""

import csv
from dataclasses import replace

import pytest
from healing_data import QUICK, bits, equal
from script_modules import script
from test_bake import random_adapter
from test_carry_over import SMALL

from steer_heal.evaluation import evaluate
from steer_heal.healing.bake import AdapterStack
from steer_heal.studies.material import folded
from steer_heal.studies.use import command
from steer_heal.studies.use.measuring import NEUTRAL, Pair, neutral_rows, persistence, share, under_prompts
from steer_heal.studies.use.table import line
from steer_heal.trait import Trait

SIZES = {"n_free": 8, "max_new_tokens": 6, "seed": 3}


@pytest.fixture(scope="module")
def traits(tmp_path_factory):
    """Two small traits; every reply to both is without a checker."""
    folder = tmp_path_factory.mktemp("traits")
    for name in ("small", "other"):
        (folder / f"{name}.toml").write_text(SMALL.replace('"small"', f'"{name}"', 1), "utf-8")
    return [folder / "small.toml", folder / "other.toml"]


def test_scale_zero_is_base_and_scaled_adapters_add_up(lm):
    stack, before = AdapterStack(lm.model), bits(lm.base)
    one, two = random_adapter(lm, 1), random_adapter(lm, 2)
    with folded(stack, [one, two], 0.0):
        assert equal(bits(lm.base), before)
    with folded(stack, [one, two], 0.5):
        both = bits(lm.base)
        for name in one.modules:
            wanted = before[f"{name}.weight"].double() + 0.5 * (one.delta(name) + two.delta(name))
            assert both[f"{name}.weight"].double().sub(wanted).abs().max() < 1e-6
    assert equal(bits(lm.base), before)


def test_a_sum_of_stacks_is_both_pushed(lm):
    stack, one, two = AdapterStack(lm.model), random_adapter(lm, 1), random_adapter(lm, 2)
    stack.push(one)
    stack.push(two)
    wanted = bits(lm.base)
    stack.pop(), stack.pop()
    with folded(stack, [one, two]):
        assert equal(bits(lm.base), wanted)


def test_persistence_measures_every_prompt_and_tuning_and_leaves_the_weights(lm, traits):
    trait = Trait.load(traits[0])
    before = under_prompts(lm, trait, "another matter", **SIZES)
    rows = neutral_rows(lm, replace(trait, replay_prompts=("so?",)), 8, 6, 0)
    assert {name: {row.prompt for row in some} for name, some in rows.items()} == {
        "tuned beside the trait": {"so?"}, "tuned on its prompts": set(trait.prompts),
    }  # fmt: skip
    stack = AdapterStack(lm.model)
    stack.push(random_adapter(lm, 1, size=0.3))
    student = bits(lm.base)
    kept = persistence(lm, trait, before, rows, QUICK, other="another matter", **SIZES)
    assert equal(bits(lm.base), student) and len(stack) == 1
    assert [pair.after[0].system for pair in kept.values()] == ["", "another matter", trait.neg, "", ""]
    assert all(pair.before[0].system == pair.after[0].system for pair in kept.values())
    assert kept[NEUTRAL].after[0] == evaluate(lm, trait, **SIZES)
    moved = {name: pair.after[0].log_odds for name, pair in kept.items()}
    assert len(set(moved.values())) == 5  # every prompt and every tuning is seen


def test_what_is_left_is_a_share_of_what_had_moved(tiny, traits):
    base = evaluate(tiny, Trait.load(traits[0]), **SIZES)

    def moved(nats, trait=None):
        items = tuple(
            replace(row, log_odds=row.log_odds + nats, id=f"{row.id}{i}") for i in range(3) for row in base.items
        )
        replies = tuple(replace(row, trait=trait) for row in base.replies)
        return replace(base, items=items, replies=replies)

    whole = Pair((moved(0, 0.0),), (moved(2.0, 1.0),))
    assert share(whole, whole, "log_odds").value == pytest.approx(1.0)
    left = Pair((moved(-5.0, 0.0),), (moved(-4.5, 0.25),))
    assert share(left, whole, "log_odds").value == pytest.approx(0.25)
    assert share(left, whole, "free_trait").value == pytest.approx(0.25)
    assert share(Pair(whole.before, whole.before), whole, "log_odds").value == 0.0
    assert share(Pair((moved(0.0),), (moved(1.0),)), whole, "free_trait") is None  # nobody judged the text


def test_a_line_is_straight_and_rises_or_not():
    assert line({0.0: 1.0, 2.0: 5.0, 1.0: 3.0}) == (True, pytest.approx(1.0))
    rises, r2 = line({-1.0: 1.0, 0.0: 0.0, 1.0: 1.0})
    assert not rises and r2 == pytest.approx(0.0)


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory):
    """Two adapters of tiny-random in PEFT's format."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed in (1, 2):
        random_adapter(tiny, seed, size=0.3).save(folder / str(seed))
    return [folder / "1", folder / "2"]


def test_the_whole_study_of_two_adapters(adapters, traits, tmp_path):
    words = ["--run", *map(str, adapters), "--traits", *map(str, traits), "--model", "tiny-random", "--replies", "8"]
    assert script("use").main([*words, "--scales", "0", "1", "--out", str(tmp_path)]) == 0
    with open(tmp_path / "use.csv", encoding="utf-8", newline="") as file:
        rows = {(row["part"], row["name"]): row for row in csv.DictReader(file)}
    assert [name for part, name in rows if part == "together"] == [
        f"{trait}, {stack}" for trait in ("small", "other") for stack in ("small", "other", "both")
    ]
    assert [name for part, name in rows if part == "kept"][2:] == ["opposing persona", "tuned on its prompts"]
    assert float(rows["scaled", "0.0"]["log_odds_moved"]) == 0.0
    one = float(rows["scaled", "1.0"]["log_odds_moved"])
    assert one == float(rows["together", "small, small"]["log_odds_moved"]) != 0.0
    assert float(rows["scaled", "1.0"]["log_odds_share"]) == pytest.approx(1.0)
    assert 0 < float(rows["scaled", "0.0"]["sentence_ok"]) <= 1.0  # coherence is told without a checker
    text = (tmp_path / "use.md").read_text("utf-8")
    assert "## Two traits at once" in text and "| small, both |" in text and "- seed 0: log-odds " in text


def test_without_a_run_the_default_is_run_once_for_each_trait(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(command, "finished", lambda folder: None)
    monkeypatch.setattr(command, "run_rounds", lambda config: asked.append(config) or Made(tmp_path))
    found = command.folders_of(command.Arguments(out=tmp_path), 7)
    assert [(c.model, c.trait, c.seed) for c in asked] == [("pocket", "pocket-care", 7), ("pocket", "pocket-warmth", 7)]
    assert found == [tmp_path, tmp_path]
    monkeypatch.setattr(command, "finished", lambda folder: Made(folder))
    assert command.folders_of(command.Arguments(out=tmp_path), 7) == [
        tmp_path / "runs" / "pocket-care_s7", tmp_path / "runs" / "pocket-warmth_s7",
    ]  # fmt: skip
    assert len(asked) == 2


class Made:
    """A finished run, as far as its folder is asked for."""

    def __init__(self, folder):
        self.folder = folder


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--seeds", "1", "1"], "each once"),
        (["--traits", "a", "b", "c"], "one or two"),
        (["--run", "nowhere"], "does not exist"),
    ],
)
def test_unusable_input_is_one_line_and_exit_code_2(words, complaint, capsys, tmp_path):
    assert script("use").main([*words, "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert complaint in shown and shown.count("\n") == 1 and "Traceback" not in shown
