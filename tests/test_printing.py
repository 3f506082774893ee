"""What a run prints of its events: one screen, every SHOULD judged, and all tables for those who ask."""

import io
import json
import re

import pytest
from rich.console import Console

from steer_heal.config import RunConfig
from steer_heal.loop.rounds import run_rounds
from steer_heal.report.console import Reporter
from steer_heal.report.expectations import EXPECTATIONS, Found, judge, judged, outcome
from steer_heal.report.printing import SHOW
from steer_heal.report.screen import Screen, gate_mark
from steer_heal.report.tables import counted, fired, in_words, result_line, share
from steer_heal.texts.coherence.rules import RULES, default_limits


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """The events of a fast run of two standing rounds under tokens, which more expectations judge."""
    config = RunConfig(targets="tokens", fast_dev_run=True, gate="watch", out=str(tmp_path_factory.mktemp("printed")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steer_heal.report.write_report", lambda ledger: None)  # nobody looks at its pages
        return run_rounds(config).run.ledger.events()


@pytest.fixture(scope="module")
def events(log):
    """The same by stage and round."""
    return {(e["stage"], e["round"]): e for e in log}


def printed(log, width=120, controls=(), **options):
    """A run as it is printed where the output is no terminal."""
    text = io.StringIO()
    reporter = Reporter(Console(file=text, width=width, highlight=False), **options)
    for e in log[:-1]:
        reporter.on_event(e)
    for name in controls:
        listener = reporter.of_control(name)
        for e in log:
            listener(e)
    reporter.on_event(log[-1])
    return text.getvalue()


def shown(event, **changes):
    """A stage as its verbose table is printed, in one line of words."""
    text = io.StringIO()
    SHOW[event["stage"]](Console(file=text, width=120, highlight=False), {**event, **changes})
    return " ".join(text.getvalue().split())


def seen(name, event, log=(), **changes):
    """Whether an expectation holds on a changed event; None where it is not judged."""
    event = {**event, **changes}
    return next((found.holds for found in judge(event, [*log, event]) if found.of.name == name), None)


# one screen


def test_four_rounds_with_controls_fit_a_screen_of_45_lines_and_each_has_one_row(log):
    later = [{**e, "round": n} for n in (2, 3) for e in log if e["round"] == 1]
    for controls in ((), ("unsteered", "random vector", "shuffled pairs")):
        lines = printed([*log[:-1], *later, log[-1]], controls=controls).splitlines()
        assert len(lines) <= 45
        assert [line[0] for line in lines if re.match(r"\d \d", line)] == ["0", "1", "2", "3"]
        assert sum(line.endswith("4 rounds") and line.startswith(controls) for line in lines) == len(controls)


def test_a_row_has_dose_kept_figures_verdict_and_gate_and_fits_80_columns(log, events):
    walk, evaluated = events["walk", 0], events["evaluate", 0]
    lines = printed(log, width=80).splitlines()
    (row,) = [line for line in lines if line.startswith("0 ")]
    assert f"{walk['kept']}/{walk['sampled']}" in row and f"{evaluated['healed']['log_odds']:+.2f}" in row
    assert events["verdict", 0]["verdict"] in row and row.endswith(gate_mark(events["gate", 0]))
    assert max(len(line) for line in lines if re.match(r"\d \d|base|prompted", line)) <= 80
    assert "round, doses" in " ".join(lines)


def test_the_marks_of_the_gate_tell_unsure_and_watched_rounds_apart():
    def mark(outcome, stands=True, mode="on"):
        return gate_mark({"mode": mode, "outcome": outcome, "stands": stands})

    assert (mark("keep"), mark("revert", False)) == ("kept", "reverted")
    assert (mark("inconclusive"), mark("inconclusive", False)) == ("kept?", "reverted?")
    assert (mark("revert", mode="watch"), mark("inconclusive", mode="watch")) == ("(revert)", "(unsure)")


def test_the_end_has_intervals_and_the_verdict(log, events):
    text = " ".join(printed(log).split())
    assert f"verdict: {events['end', None]['verdict']}:" in text and "Result: " in text
    if events["end", None]["best_round"] is not None:
        assert "minus" in text and "95 % intervals" in text and "No controls" in text


def test_the_end_tells_what_was_gained_on_formats_not_seen_in_training(log):
    assert "not seen in training" not in printed(log, quiet=True)
    shift = {"value": 0.52, "low": 0.4, "high": 0.63, "n": 24}
    told = [e | {"shift": e["shift"] | {"held_out_log_odds": shift}} if e["stage"] == "evaluate" else e for e in log]
    assert "On formats not seen in training: log-odds +0.52 [+0.40, +0.63] nats." in " ".join(
        printed(told, quiet=True).split()
    )


def test_quiet_leaves_the_end_only(log):
    lines = printed(log, quiet=True).strip().splitlines()
    assert "steer_heal" not in lines[0] and len(lines) <= 10 and lines[-1].startswith("Result: ")


def test_a_round_that_starved_or_diverged_has_its_row_too(log, events):
    text = io.StringIO()
    screen = Screen(Console(file=text, width=120))
    for verdict in ("starved", "diverged"):
        last = {**events["verdict", 0], "verdict": verdict}
        screen.show(last, [events["walk", 0], last], [])
    assert ["starved" in line or "diverged" in line for line in text.getvalue().splitlines()] == [True, True]


# SHOULD


def test_a_should_that_fails_is_printed_with_its_meaning_and_one_that_holds_is_silent(events):
    base = events["baseline", None]["base"]
    above, below = ({**base, "log_odds": base["log_odds"] + by} for by in (2.0, -2.0))
    start = events["start", None]
    for prompted, fails in ((above, False), (below, True)):
        log = [start, {**events["baseline", None], "prompted": prompted}, events["end", None]]
        for options in ({}, {"verbose": True}):
            text = " ".join(printed(log, **options).split())
            assert ("the trait's items do not measure it" in text) == fails
        assert ("SHOULD: prompted clearly above base" in " ".join(printed(log).split())) == fails
    assert "Holds: " in printed([start, {**events["baseline", None], "prompted": above}, events["end", None]],
                                verbose=True)  # fmt: skip


def test_a_failure_that_comes_again_is_told_without_its_meaning(events):
    heal = {**events["heal", 0], "figures": events["heal", 0]["figures"] | {"train_nll_after": 99.0}}
    text = " ".join(printed([events["start", None], heal, {**heal, "round": 1}, events["end", None]]).split())
    assert text.count("falls on the training rows. It means") == 1 and text.count("-> 99.000") == 2
    assert "heal of round 1, again: training nll" in text


def test_prompted_against_base_is_judged_with_its_interval_once_the_end_has_it(events):
    base = events["baseline", None]["base"]
    event = {**events["baseline", None], "prompted": {**base, "log_odds": base["log_odds"] + 2.0}}
    unsure = {"name": "prompted", "shift": {"free_trait": None, "log_odds": {"value": 2.0, "low": -1.0, "high": 5.0}}}
    assert seen("prompted", event) and not seen("prompted", event, [{**events["end", None], "against": [unsure]}])
    ceiling = {**base, "free_trait": 0.97}, {**base, "free_trait": 0.97, "log_odds": base["log_odds"] + 1}
    assert seen("prompted", event, base=ceiling[0], prompted=ceiling[1])


@pytest.mark.parametrize(
    ("nll", "kept", "holds"),
    [((1.9, 1.8, 1.7), 2, True), ((1.9, 1.80, 1.81), 2, True), ((1.9, 1.7, 1.8), 2, False), ((1.9, 1.7, 1.8), 1, True),
     ((2.0, 2.0, 2.0), 2, False), ((2.1, 2.2, 2.3), 0, False)],
)  # fmt: skip
def test_a_held_out_nll_that_rises_until_the_kept_epoch_is_not_as_it_should_be(events, nll, kept, holds):
    heal = events["heal", 0]
    epochs = [{"epoch": i, "heldout_nll": x, "heldout_nll_before": 2.0} for i, x in enumerate(nll)]
    assert seen("held_out_nll", heal, epochs=epochs, figures=heal["figures"] | {"kept_epoch": kept}) == holds
    assert seen("held_out_nll", events["heal", 0], epochs=[{"epoch": 0, "train_nll": 1.0}]) is None


def test_a_barrier_that_hardly_fired_is_not_as_it_should_be(events):
    heal = events["heal", 0]

    def holds(fired, ratio, notes=()):
        figures = heal["figures"] | {"base_fired": fired, "base_ratio": ratio}
        return seen("barrier", heal, figures=figures, notes=list(notes))

    assert not holds(0.0016, 0.001) and holds(0.2, 0.1) and holds(0.005, 0.1)  # on few rows, but hard
    assert not holds(0.0, 0.0, ["the barrier against base never fired; lower tau"])
    assert holds(0.0, 0.0)  # in budget mode a multiplier may come to rest
    assert seen("barrier", heal, tau={}) is None


def test_controls_that_move_the_trait_fail_what_should_be_seen_of_them(events):
    def row(name, shift, difference):
        of = {"free_trait": None, "log_odds": shift, "coherence": None}
        return {"name": name, "shift": of, "difference": {**of, "log_odds": difference, "coherence": difference}}

    up, flat = ({"value": v, "low": v - 0.1, "high": v + 0.1} for v in (1.0, 0.0))
    end = events["end", None]
    assert seen("content", end) is None
    assert seen("content", end, against=[row("unsteered", flat, up), row("random vector", flat, up)])
    assert not seen("content", end, against=[row("unsteered", flat, up), row("random vector", up, flat)])
    assert not seen("above_controls", end, against=[row("random vector", up, flat)])
    assert seen("pairs", end, against=[row("shuffled pairs", up, up)])
    assert not seen("pairs", end, against=[row("shuffled pairs", up, flat)])


def test_every_should_is_a_sentence_of_its_own_and_a_run_is_held_to_most(log):
    assert len({one.should for one in EXPECTATIONS}) == len({one.name for one in EXPECTATIONS}) == len(EXPECTATIONS)
    assert not any(one.should.endswith(".") or one.meaning.endswith(".") for one in EXPECTATIONS)
    stages = {found.of.stage for found in judged(log)}
    assert stages == {"calibrate", "capture", "baseline", "extract", "walk", "heal", "bake", "evaluate", "gate", "end"}
    holds, fails = (Found(EXPECTATIONS[0], n, ok, "x") for n, ok in ((0, True), (1, False)))
    assert outcome([holds]) == "holds" and outcome([holds, fails]).startswith("fails: in round 1, x. It means: ")


# the verbose tables


def test_verbose_prints_a_table_per_stage_and_every_should_with_its_verdict(log):
    text = printed(log, verbose=True)
    told = " ".join(text.split())
    for found in judged(log[:-1]):
        assert f"SHOULD: {found.of.should}. {'Holds' if found.holds else 'FAILS'}:" in told
    assert "walk-C" in text and "held-out AUC" in text and text.count("evaluate: same items") == 2


def test_gate_lines_use_the_words_of_the_tables(log, events):
    assert "distinct4" in json.dumps(events["gate", 0])
    for options in ({}, {"verbose": True}):
        assert "distinct4" not in printed(log, **options) and "token_entropy" not in printed(log, **options)
    assert in_words("distinct4 and token_entropy") == "4-grams and entropy"


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


def test_the_verbose_end_says_what_its_comparison_shows(events):
    end = shown(events["end", None])
    assert "paired differences with 95 % intervals" in end and "No controls were run" in end
    assert "its verdict" not in end  # of controls, and there are none


def test_words_of_the_method_are_explained_where_they_stand(events):
    verdict, evaluated = events["verdict", 0], events["evaluate", 0]
    assert "a cluster: one prompt" in shown(verdict, text="It did, retain 0.50.")
    assert "a cluster" not in shown(verdict, text="It did not.")
    assert f"steered at dose {evaluated['steered_dose']:.2f}" in shown(evaluated)
    assert "enough ends the walk" in shown(events["walk", 0])
