"""What a run prints of its events: it says what was seen, in grammar, and nothing twice."""

import io

import pytest
from rich.console import Console

from steer_heal.loop.rounds import run_rounds
from steer_heal.report.printing import SHOW
from steer_heal.report.tables import counted, fired, result_line, share
from steer_heal.texts.coherence.rules import RULES, default_limits


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """The events of a fast run of two standing rounds, by stage and round."""
    from steer_heal.config import RunConfig

    out = tmp_path_factory.mktemp("printed")
    result = run_rounds(RunConfig(fast_dev_run=True, gate="watch", n_rounds=2, out=str(out)))
    return {(e["stage"], e["round"]): e for e in result.run.ledger.events()}


def shown(event, **changes):
    """A stage as it is printed, in one line of words."""
    text = io.StringIO()
    SHOW[event["stage"]](Console(file=text, width=120, highlight=False), {**event, **changes})
    return " ".join(text.getvalue().split())


def healed(event, fired, ratio):
    """A heal whose barrier fired on so many rows."""
    return shown(event, figures=event["figures"] | {"base_fired": fired, "base_ratio": ratio}, notes=[])


def test_a_barrier_that_hardly_fired_is_not_as_it_should_be(events):
    heal = events["heal", 0]
    rare = healed(heal, 0.0016, 0.001)
    assert "fired on 0.16% of rows" in rare and "the barrier against base hardly fired" in rare
    assert "as it should be" not in rare
    assert "Here: as it should be." in healed(heal, 0.2, 0.1)
    assert "Here: as it should be." in healed(heal, 0.005, 0.1)  # on few rows, but hard


def test_a_small_share_never_reads_as_none():
    assert [share(x) for x in (0.0, 0.0016, 0.01, 0.5)] == ["0%", "0.16%", "1%", "50%"]
    assert fired({"tau": {}, "figures": {}}) == "-"
    assert fired({"tau": {"base": 0.5}, "figures": {"base_fired": 0.002}}) == "0.20%"
    both = {"tau": {"prev": 0.5, "base": 0.5}, "figures": {"prev_fired": 0.5, "base_fired": 0.0}}
    assert fired(both) == "prev 50%, base 0%"


def test_one_is_singular(events):
    assert (counted(1, "round"), counted(2, "round")) == ("1 round", "2 rounds")
    assert "(adapter of round 0 folded in)" in result_line({"best_round": 0, "folded": [0]})
    assert "(adapters of rounds 0, 2 folded in)" in result_line({"best_round": 2, "folded": [0, 2]})
    assert "1 adapter folded" in shown(events["bake", 0]) and "2 adapters folded" in shown(events["bake", 1])


def test_the_first_round_is_not_compared_with_itself(events):
    first, second = (shown(events["evaluate", number]) for number in (0, 1))
    assert "healed - base" in first and "healed - previous round" not in first
    assert "healed - base" in second and "healed - previous round" in second
    for stage in ("extract", "bake"):
        assert "with round 0" not in shown(events[stage, 0]) and "with round 0" in shown(events[stage, 1])


def test_limits_that_the_model_set_are_told_in_words_and_fixed_ones_are_not(events):
    calibrated = events["calibrate", None]
    words = {rule.key: rule.words for rule in RULES}
    told = shown(calibrated)
    assert calibrated["limits"]["nll.high"] is not None and words["nll.high"] in told and "nll.high" not in told
    assert words["rep_word2.high"] not in shown(calibrated, limits=default_limits())
    assert words["rep_word2.high"] in shown(calibrated, limits=default_limits() | {"rep_word2.high": 0.6})


def test_the_end_says_what_its_comparison_shows_and_what_to_open(events):
    end = shown(events["end", None])
    assert "paired differences with 95 % intervals" in end and "No controls were run" in end
    assert end.endswith("open report.html there")
    assert "its verdict" not in end  # of controls, and there are none


def test_words_of_the_method_are_explained_where_they_stand(events):
    verdict, evaluated = events["verdict", 0], events["evaluate", 0]
    assert "a cluster: one prompt" in shown(verdict, text="It did, retain 0.50.")
    assert "a cluster" not in shown(verdict, text="It did not.")
    assert f"steered at dose {evaluated['steered_dose']:.2f}" in shown(evaluated)
    assert "enough ends the walk" in shown(events["walk", 0])
