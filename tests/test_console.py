"""What a run shows while it runs: rate, remaining time of stage and run, memory, quiet and verbose."""

import io

import pytest
from rich.console import Console

from steer_heal.commands.main import main
from steer_heal.ledger import Ledger
from steer_heal.ledger.clock import LEGS, Clock, duration
from steer_heal.model import memory
from steer_heal.report import console
from steer_heal.report.console import Reporter
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


@pytest.fixture
def shown(monkeypatch):
    """A reporter that prints every progress line to a text, and that text."""
    monkeypatch.setattr(console, "PLAIN_INTERVAL", -1.0)

    def make(terminal=False, **options):
        text = io.StringIO()
        return Reporter(Console(file=text, force_terminal=terminal, width=160), **options), text

    return make


def test_a_stage_begins_with_the_memory_in_use_and_goes_on_with_rate_and_remaining_time(shown, monkeypatch):
    reporter, text = shown()
    now = iter(range(1000))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(now)))
    for done in range(1, 5):
        reporter.progress("heal", done, 40, "nll 1.2")
    header, *lines = text.getvalue().splitlines()
    assert "heal (process" in header and "MiB)" in header
    assert "heal: 4/40 nll 1.2, " in lines[-1] and "/s" in lines[-1] and " left" in lines[-1]
    reporter.progress("extract", 0, 1)
    assert "extract (process" in text.getvalue().splitlines()[-1]


def test_the_time_of_the_whole_run_stands_in_lines_and_in_the_bar(shown, monkeypatch):
    for terminal in (False, True):
        reporter, text = shown(terminal)
        monkeypatch.setattr(reporter.clock, "remaining", lambda training=None: 600.0)
        reporter.progress("extract", 1, 9)
        reporter.progress("extract", 2, 9)
        reporter._end_bar()
        assert "whole run about 10 min left" in text.getvalue()


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


def test_a_run_that_goes_on_says_how_much_of_it_is_there(tmp_path, shown):
    from steer_heal.config import RunConfig
    from steer_heal.loop import rounds
    from steer_heal.loop.resume import reopen

    class Stopped(Reporter):
        def on_event(self, event):
            if event["stage"] == "baseline":
                raise KeyboardInterrupt

    config = RunConfig(fast_dev_run=True, gate="watch", n_rounds=1, out=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        rounds.run_rounds(config, Stopped(quiet=True))
    (folder,) = tmp_path.iterdir()
    committed = len(list((folder / "units").glob("*.unit")))
    reporter, text = shown()
    rounds.run_rounds(reporter=reporter, resume=reopen(folder))
    assert text.getvalue().startswith(f"going on with a stopped run: {committed} results") and committed > 2


def test_steps_of_a_heal_make_about_a_dozen_rows_and_the_last_says_how_many_there_were(shown):
    reporter, text = shown()
    for i in range(53):
        reporter.step({"step": i, "nll": 1.0, "grad_norm": 0.5, "lr": 1e-3}, 53)
    reporter.epoch({"epoch": 0, "train_nll": 1.0, "train_nll_before": 2.0})
    rows = [line.split() for line in text.getvalue().splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["5", "10", "15", "20", "25", "30", "35", "40", "45", "50", "53"]


def test_verbose_shows_every_step(shown):
    row = {"nll": 1.0, "grad_norm": 0.5, "lr": 1e-3}
    for options, expected in (({"verbose": True}, 48), ({}, 12)):
        reporter, text = shown(**options)
        for i in range(48):
            reporter.step({"step": i, **row}, 48)
        assert sum(line.strip()[:1].isdigit() for line in text.getvalue().splitlines()) == expected


def test_verbose_is_no_part_of_a_run_and_prints_the_texts_at_the_filters_limits(tmp_path, capsys):
    words = ["run", "--fast-dev-run", "--n-rounds", "1", "--gate", "watch", "--out", str(tmp_path)]
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
