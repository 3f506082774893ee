"""What a reader sees of a run: tables that hold what was measured, and sentences that say how sure it is."""

import json
import math
from dataclasses import asdict, replace

import pytest

from steer_heal.evaluation import AnchorRow, ChoiceRow, Metrics, ReplyRow, VignetteRow, compare
from steer_heal.ledger import plain
from steer_heal.report.headline import against_line, cost_line, off_target_line, trait_line
from steer_heal.report.tables import interval, round_table, state_legend, state_table, sure, vignette_table
from steer_heal.trait import FOUNDATIONS


def metrics(log_odds=0.0, trait=0.5, off=0.0, words=10, **more):
    """A model with its log-odds, share of replies on the trait's side, and an off-target category."""

    def items(value, category):
        half = (math.log(0.5),) * 2
        values = [value + 0.1 * (i % 3) for i in range(12)]
        return tuple(ChoiceRow(str(i), category, ("a", "b"), ("a",), half, (x, x), x, 1.0)
                     for i, x in enumerate(values))  # fmt: skip

    def reply(i):
        text = " ".join(f"{i}w{k}" for k in range(words))
        return ReplyRow(str(i), text, words, True, False, float(i < 20 * trait), 0.9, True, 1.0)

    replies = tuple(map(reply, range(20)))
    anchors = (AnchorRow("a", "", True),)
    return replace(Metrics("t", "", 0.0, "key", items(log_odds, "care"), items(off, "warmth"), replies, anchors, 2.0),
                   **more)  # fmt: skip


def seen(metrics, care, human=None, wrong=None, closed=None):
    """The same with vignettes in which Care is named `care` nats more often than each of the others."""
    logits = [care if name == "Care" else 0.0 for name in FOUNDATIONS]
    total = math.log(sum(map(math.exp, logits)))
    rows = tuple(
        VignetteRow(str(i), "Care", "", tuple(x - total for x in logits), 1.0, wrong, human, closed) for i in range(10)
    )
    return replace(metrics, vignettes=rows, vignette_up=("Care",), vignette_down=("Authority",))


def evaluated(base, healed, prompted=None):
    """The `evaluate` event of a round, as it comes from the ledger."""
    event = {
        "round": 0, "base": base.summary(), "healed": healed.summary(), "prompted": (prompted or base).summary(),
        "shift": asdict(compare(base, healed)),
    }  # fmt: skip
    return json.loads(json.dumps(plain(event)))


GATE = {"regressed": {"anchors": ["a1", "a2"]}, "anchors": 94}


def test_the_table_of_models_has_a_column_only_for_what_was_measured():
    plain_ones = [("base", metrics().summary()), ("healed", metrics(1.0).summary())]
    columns, rows = state_table(plain_ones)
    assert (
        columns[:4] == ["model", "trait", "stance", "log-odds"]
        and "vignettes" not in columns
        and "closed" not in columns
    )
    assert rows[1][:4] == ["healed", "0.50", "1.00", "+1.10"] and all(len(row) == len(columns) for row in rows)
    assert "raters" not in state_legend(plain_ones)

    human = tuple(float(name == "Care") for name in FOUNDATIONS)
    whole = seen(metrics(), 2.0, human, wrong=1.5, closed=0.75)
    columns, rows = state_table([plain_ones[0], ("healed", whole.summary())])
    shown = dict(zip(columns, rows[1], strict=True))
    assert (shown["closed"], shown["vignettes"], shown["wrong"], shown["human top"]) == (
        "0.75",
        "+2.00",
        "+1.50",
        "1.00",
    )
    assert shown["human KL"] == f"{math.log(math.exp(2) + 6) - 2:.2f}"
    assert dict(zip(columns, rows[0], strict=True))["vignettes"] == "-"
    assert "human KL: " in state_legend([("healed", whole.summary())])


def test_formats_not_seen_in_training_have_a_column_and_a_word_in_the_first_answer():
    before, after = (replace(metrics(x), held_out=metrics(x - 0.5).items) for x in (0.0, 1.0))
    columns, rows = state_table([("base", before.summary()), ("steered", metrics().summary())])
    at = columns.index("unseen formats")
    assert [row[at] for row in rows] == ["-0.40", "-"] and "no training text has" in state_legend(
        [("a", before.summary())]
    )
    line = trait_line(evaluated(before, after))
    assert "; +1.00 [" in line and "nats on formats not seen in training (-0.40 -> +0.60), surely up" in line
    assert "formats" not in trait_line(evaluated(metrics(), metrics(1.0)))


def test_columns_of_a_checker_are_left_out_where_there_is_none():
    unjudged = metrics()
    unjudged = replace(unjudged, replies=tuple(replace(r, trait=None, sentence_ok=None) for r in unjudged.replies))
    columns, _ = state_table([("base", unjudged.summary())])
    assert "trait" not in columns and "sentence ok" not in columns and "words" in columns


def test_empty_replies_are_a_column_only_where_some_model_has_any():
    broken = metrics()
    broken = replace(broken, replies=(replace(broken.replies[0], text="", words=0), *broken.replies[1:]))
    assert "empty" not in state_table([("base", metrics().summary())])[0]
    columns, rows = state_table([("base", metrics().summary()), ("healed", broken.summary())])
    at = columns.index("empty")
    assert [row[at] for row in rows] == ["0.00", "0.05"]


def test_vignettes_have_a_table_with_the_traits_foundations_first():
    event = evaluated(seen(metrics(), 0.0, wrong=0.0), seen(metrics(), 2.0, wrong=1.0))
    columns, ((number, contrast, wrong, care, authority, *others),) = vignette_table([event])
    assert columns[:5] == ["round", "contrast", "wrong", "Care (trait)", "Authority (trait)"]
    assert set(columns[5:]) == set(FOUNDATIONS) - {"Care", "Authority"} and len(others) == 5
    assert number == "0" and contrast.startswith("+2.00 [") and wrong.startswith("+1.00 [")
    assert care.startswith("+2.00 [") and authority.startswith("-0.")
    assert vignette_table([evaluated(metrics(), metrics(1.0))]) is None


@pytest.mark.parametrize(
    ("log_odds", "trait", "short"),
    [(1.0, 1.0, "Surely up."), (-1.0, 0.0, "Surely down."), (0.0, 0.5, "Not surely different."),
     (1.0, 0.5, "Not the same in every instrument.")],
)  # fmt: skip
def test_the_first_words_say_whether_the_trait_moved(log_odds, trait, short):
    line = trait_line(evaluated(metrics(), metrics(log_odds, trait)))
    assert line.startswith(short) and f"(0.50 -> {trait:.2f})" in line and "nats of log-odds" in line


def test_the_trait_on_vignettes_is_told_with_its_foundations():
    line = trait_line(evaluated(seen(metrics(), 0.0), seen(metrics(1.0, 1.0), 2.0)))
    assert "+2.00 [" in line and "on the vignettes (contrast of Care and Authority), surely up" in line


def test_off_target_is_told_as_a_share_of_the_target_only_where_the_target_surely_moved():
    line = off_target_line(evaluated(metrics(), metrics(1.0, off=-0.5))["shift"])
    assert "warmth -0.50 [" in line and "(the largest, warmth, is 50% of the target's)" in line
    assert "target's" not in off_target_line(evaluated(metrics(), metrics(0.0, off=-0.5))["shift"])
    line = off_target_line(evaluated(seen(metrics(), 0.0), seen(metrics(1.0), 2.0))["shift"])
    assert "on the vignettes: Fairness" in line and "Care" not in line and "Authority" not in line


def test_the_cost_names_what_was_lost_and_what_asking_costs():
    human = tuple(float(name == "Care") for name in FOUNDATIONS)
    base, healed = seen(metrics(), 0.5, human, 0.0, 1.0), seen(metrics(1.0, words=8), 2.0, human, 1.0, 0.5)
    line = cost_line(evaluated(base, healed, metrics(words=9)), GATE)
    assert "words 0.80" in line and "(the prompted model: words 0.90" in line and "anchors lost: 2 of 94" in line
    assert "thinking closed in time: 1.00 -> 0.50" in line and "raters of 10 vignettes: same first 1.00 -> 1.00" in line
    assert 'log-odds of "wrong" on the vignettes +1.00' in line
    line = cost_line(evaluated(metrics(), metrics(1.0)), GATE, replayed=46)
    assert "anchors lost: 2 of 94 that are counted (46 others were replayed)" in line
    line = cost_line(evaluated(metrics(), metrics(1.0)), {"regressed": {}, "anchors": 0})
    assert "none to lose" in line and "thinking" not in line and "raters" not in line and "empty" not in line


def test_a_comparison_says_how_sure_it_is():
    row = {"name": "unsteered", "shift": asdict(compare(metrics(), metrics(0.2))),
           "difference": asdict(compare(metrics(0.2), metrics(1.0)))}  # fmt: skip
    line = against_line(json.loads(json.dumps(plain(row))))
    assert "log-odds in nats +0.80 [" in line and "surely more (its own shift: +0.20 [" in line
    assert "trait of replies +0.00" in line and "not surely different" in line
    assert sure({"low": None, "high": None}, "more", "less") == "not surely different"


def test_an_interval_of_too_few_clusters_says_so():
    assert interval({"value": 0.5, "low": None, "high": None}) == "+0.50 [too few]"
    assert interval({"value": 0.5, "low": 0.4, "high": 0.6}) == "+0.50 [+0.40, +0.60]" and interval(None) == "-"


def test_the_table_of_rounds_leaves_out_what_no_round_has_and_rounds_that_were_not_finished():
    def events(number, **figures):
        walk = {"per_dose": [{"dose": 0.5, "kept": 0.5}], "survival": 0.5, "kept": 8, "sampled": 16, "trait_kept": None}
        heal = {"figures": {"kl_prev_after": 0.1, "kl_base_after": 0.2, "base_fired": 0.002, **figures},
                "tau": {"base": 0.5}, "lengths": {"mean": 28.0, "weighted": 33.0}}  # fmt: skip
        bake = {"cosine_first": 1.0, "cosine_vector": 0.5, "shift_dose": 0.3, "rounding_loss": 1e-6}
        gate = {"outcome": "keep", "mode": "on", "stands": True}
        stages = {"extract": {"cosine_first": 1.0}, "walk": walk, "heal": heal, "bake": bake, "gate": gate}
        return [{"stage": stage, "round": number, **e} for stage, e in stages.items()]

    columns, rows = round_table([*events(0), *events(1)[:2]])
    assert len(rows) == 1 and not {"trait of kept", "KL to base on replay"} & set(columns)
    assert dict(zip(columns, rows[0], strict=True))["tokens"] == "28.0 -> 33.0"
    assert dict(zip(columns, rows[0], strict=True))["fired"] == "0.20%"
    assert "KL to base on replay" in round_table(events(0, kl_base_replay_after=0.3))[0]
