"""What a run shows while it runs: rate, remaining time of stage and run, memory, quiet and verbose."""

import io

import pytest
from resume_runs import config, folder_of, mini_trait
from rich.console import Console

from steer_heal.commands.main import main
from steer_heal.ledger import Ledger
from steer_heal.ledger.clock import LEGS, Clock, duration, time_passed
from steer_heal.model import memory
from steer_heal.report import console
from steer_heal.report.console import Reporter
from steer_heal.texts.engines import transformers
from steer_heal.texts.generation import generate

TOOK = {"calibrate": 5.0, "capture": 2.0, "baseline": 8.0}
LEG = dict(zip(LEGS, (3.0, 10.0, 24.0, 1.0, 4.0, 2.0), strict=True))


class Story:
    """A clock, and a hand that moves it from event to event."""

    def __init__(self, n_rounds=3, parts=1, at=1000.0):
        self.at = at
        self.clock = Clock(lambda: self.at)
        self.clock.plan(n_rounds, parts)

    def tell(self, **seconds):
        """Events, each so many seconds after the one before."""
        for stage, took in seconds.items():
            self.at += took
            self.clock.event({"stage": stage, "time": self.at})

    def begin(self):
        self.tell(start=0.0, **TOOK)


def test_nothing_is_said_before_walk_and_heal_are_known_and_then_the_heal_tells():
    story = Story()
    story.begin()
    assert story.clock.remaining() is None
    story.tell(extract=3.0, walk=10.0)
    assert story.clock.remaining() is None
    story.at += 8.0  # half of it to measure the steered model
    whole = 3 + 10 + (8 + 12) + 3 + 4 + 2  # bake as extract, evaluate as half the baselines, gate as the anchors
    assert story.clock.remaining((4.0, 10, 40)) == pytest.approx(12 + (3 + 4 + 2) + 2 * whole)


def test_a_known_round_is_what_the_others_will_take():
    story = Story()
    story.begin()
    story.tell(**LEG)
    assert story.clock.rounds_left() == 1
    assert story.clock.remaining() == pytest.approx(2 * sum(LEG.values()))
    story.at += 2.0
    assert story.clock.remaining() == pytest.approx(2 * sum(LEG.values()) - 2)
    story.tell(extract=1.0)
    story.at += 100.0  # a walk that takes longer than the last one: nothing is left of it, no less
    assert story.clock.remaining() == pytest.approx(24 + 1 + 4 + 2 + sum(LEG.values()), rel=0.1)
    story.tell(walk=0.0, heal=24.0, bake=1.0, evaluate=4.0, gate=2.0, **{})
    story.tell(**LEG)
    assert story.clock.remaining() == 0.0


def test_controls_are_rounds_to_come():
    story = Story(n_rounds=1, parts=4)
    story.begin()
    story.tell(**LEG)
    assert story.clock.rounds_left() == 2 and story.clock.remaining() == pytest.approx(3 * sum(LEG.values()))
    story.tell(start=1.0, calibrate=0.0, capture=0.0, baseline=0.0)
    assert story.clock.remaining() == pytest.approx(3 * sum(LEG.values()))
    assert story.clock.expected("evaluate") == LEG["evaluate"]


def test_the_pause_of_a_run_that_goes_on_is_not_its_pace():
    story = Story(n_rounds=3)
    times, at = [], 0.0  # recorded long before
    for stage, took in {"start": 0.0, **TOOK, **LEG}.items():
        at += took
        times.append((stage, at))
    for stage, when in times:
        story.clock.event({"stage": stage, "time": when})
    assert story.clock.remaining() == pytest.approx(2 * sum(LEG.values()))
    story.tell(extract=3.0)  # about a thousand seconds after the last event
    assert story.clock.seconds["extract"] == [3.0]


def test_durations_are_read_at_a_glance():
    assert [duration(x) for x in (8.4, 600, 7200, 864000)] == ["8 s", "10 min", "2 h", "10 days"]


def test_the_time_of_a_run_is_all_of_it_but_for_the_pause_before_it_went_on():
    def at(*times):
        return [{"time": time} for time in times]

    assert time_passed(at(100.0, 130.0, 160.0), since=100.5, now=180.0) == pytest.approx(79.5)
    assert time_passed(at(100.0, 160.0, 5010.0), since=5000.0, now=5040.0) == pytest.approx(60 + 40)
    assert time_passed([], since=5.0, now=9.0) == 4.0


@pytest.fixture
def shown(monkeypatch):
    """A reporter that prints every progress line to a text, and that text."""
    monkeypatch.setattr(console, "PLAIN_INTERVAL", -1.0)
    monkeypatch.setattr(console, "VERBOSE_INTERVAL", -1.0)

    def make(terminal=False, **options):
        text = io.StringIO()
        return Reporter(Console(file=text, force_terminal=terminal, width=160), **options), text

    return make


def test_a_progress_line_has_rate_remaining_time_and_the_memory_in_use(shown, monkeypatch):
    reporter, text = shown()
    now = iter(range(1000))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(now)))
    for done in range(1, 5):
        reporter.progress("heal", done, 40, "nll 1.2")
    last = text.getvalue().splitlines()[-1]
    assert "heal: 4/40 nll 1.2, " in last and "/s" in last and " left" in last
    assert "(process" in last and "MiB)" in last


def test_without_a_terminal_only_a_stage_that_takes_minutes_prints_a_line_and_ever_more_rarely(monkeypatch):
    text, now = io.StringIO(), iter(range(100000))
    reporter = Reporter(Console(file=text, width=160))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(now)))
    for done in range(50):
        reporter.progress("extract", done, 50)
    assert text.getvalue() == ""
    for done in range(1000):
        reporter.progress("heal", done, 1000)
    assert len(text.getvalue().splitlines()) == 4  # after about 1, 3, 7 and 15 minutes


def test_the_time_of_the_whole_run_stands_in_lines_and_in_the_live_line(shown, monkeypatch):
    for terminal in (False, True):
        reporter, text = shown(terminal)
        monkeypatch.setattr(reporter.clock, "remaining", lambda training=None: 600.0)
        reporter.progress("extract", 1, 9)
        reporter.progress("extract", 2, 9)
        reporter._end_bar()
        assert "whole run about 10 min left" in text.getvalue()


def test_the_live_line_says_which_round_of_what_it_belongs_to(shown):
    reporter, text = shown()
    for stage in ("start", "baseline"):
        reporter.clock.event({"stage": stage, "time": 1.0})
    reporter.progress("heal", 1, 9)
    assert "round 0 heal: 1/9" in text.getvalue()
    listener = reporter.of_control("unsteered")
    for stage in ("start", "baseline", "gate"):
        listener({"stage": stage, "time": 2.0, "round": None})
    reporter.progress("extract", 1, 9)
    assert "control unsteered, round 1 extract: 1/9" in text.getvalue()


def test_replies_count_as_they_end_and_not_when_their_batch_does(tiny, monkeypatch):
    monkeypatch.setattr(transformers, "TICK", 0.0)
    first = generate(tiny, ["a"] * 40, max_new_tokens=60, seed=2)
    seen = []
    again = generate(tiny, ["a"] * 40, max_new_tokens=60, seed=2, on_batch=lambda done, now: seen.append(now.done))
    ended = [sum(c.finished and len(c.token_ids) <= n for c in first) for n in range(1, 61)]
    assert again == first and 0 < ended[40] < 40
    assert seen == [*ended[: len(seen) - 1], 40]


def test_verbose_tells_of_every_batch_and_quiet_of_none(shown, tiny):
    for options, expected in (
        ({"verbose": True}, 2),
        ({}, 0),
        ({"quiet": True}, 0),
        ({"quiet": True, "verbose": True}, 0),
    ):
        reporter, text = shown(**options)
        generate(tiny, ["a", "b", "c"], max_new_tokens=3, batch_rows=2, on_batch=reporter.batches("generate"))
        found = text.getvalue()
        assert found.count("batch of") == expected and (not options.get("quiet") or not found)
        if expected:
            assert "planned: 3 replies, up to 2 at once" in found and "tokens/s" in found


def test_what_is_read_back_has_no_speed(shown, tiny, tmp_path):
    ledger = Ledger.create(tmp_path, "any", {})
    generate(tiny, ["a"], max_new_tokens=3, keep=ledger.units)
    reporter, text = shown(verbose=True)
    again = Ledger.open(ledger.folder)
    generate(tiny, ["a"], max_new_tokens=3, keep=again.units, on_batch=reporter.batches("generate"))
    assert "read from the run folder" in text.getvalue()


def test_a_run_that_goes_on_says_how_much_of_it_is_there(tmp_path, shown, undrawn):
    from steer_heal.loop import rounds
    from steer_heal.loop.resume import reopen

    class Stopped(Reporter):
        def on_event(self, event):
            if event["stage"] == "baseline":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rounds.run_rounds(config(tmp_path, n_rounds=1), Stopped(quiet=True))
    folder = folder_of(tmp_path)
    committed = len(list((folder / "units").glob("*.unit")))
    reporter, text = shown()
    rounds.run_rounds(reporter=reporter, resume=reopen(folder))
    assert text.getvalue().startswith(f"going on with a stopped run: {committed} results") and committed > 2


def test_verbose_shows_every_step_and_epoch_of_a_heal_and_nobody_else_any(shown, monkeypatch):
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 1e9)
    row = {"nll": 1.0, "grad_norm": 0.5, "lr": 1e-3}
    for options, expected in (({"verbose": True}, 48), ({}, 0)):
        reporter, text = shown(**options)
        for i in range(48):
            reporter.step({"step": i, **row}, 48)
        reporter.epoch({"epoch": 0, "train_nll": 1.0, "train_nll_before": 2.0})
        rows = [line.split() for line in text.getvalue().splitlines() if line.strip()[:1].isdigit()]
        assert [line[0] for line in rows] == [str(i + 1) for i in range(expected)]
        assert ("epoch 0: nll train 1.000 (before training 2.000)" in text.getvalue()) == bool(expected)


def test_verbose_is_no_part_of_a_run_and_prints_the_texts_at_the_filters_limits(tmp_path, capsys, undrawn):
    words = ["run", "--fast-dev-run", "--n-rounds", "1", "--gate", "watch", "--out", str(tmp_path)]
    words += ["--trait", str(mini_trait(tmp_path))]
    main([*words, "--verbose"])
    assert "just inside (" in capsys.readouterr().out
    (folder,) = [path.parent for path in tmp_path.glob("*/config.json")]
    assert "verbose" not in Ledger.open(folder).config


def test_memory_is_that_of_this_process_in_bytes():
    import torch

    before = memory.resident()
    block = torch.ones(2**26)
    assert 0.8 * 2**28 < memory.resident() - before < 1.5 * 2**28 and len(block)
    assert memory.memory_in_use("cpu").startswith("process ") and 2**26 < before < 2**40
