"""Live output of a run: one line for the stage at work, with the remaining time, and every event as it comes.

Knows nothing of models and of what an event looks like (`screen`, `printing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from steer_heal.ledger.clock import Clock, duration
from steer_heal.model.memory import memory_in_use
from steer_heal.report import printing
from steer_heal.report.expectations import judge
from steer_heal.report.screen import Screen
from steer_heal.report.tables import counted
from steer_heal.terminal import Terminal

PLAIN_INTERVAL = 60.0
"""Seconds until a stage's first progress line when the output is no terminal; each wait after it is twice as long."""
VERBOSE_INTERVAL = 10.0
"""Seconds between all of them for those who asked for everything."""


@runtime_checkable
class Sampled(Protocol):
    """A reply as far as it is shown here: its dose and its tokens."""

    dose: float
    token_ids: Sequence[int]


@runtime_checkable
class Batches(Protocol):
    """How far sampling has come (`generation.Progress`): replies, rows per batch, tokens sampled, seconds."""

    done: int
    total: int
    rows: int
    tokens: int
    seconds: float
    tokens_per_second: float


class Reporter:
    """Prints events as they are recorded, and progress in between.

    `quiet` leaves the final table only; `verbose` prints every stage's tables, the plan and speed of every batch, every
    step of a heal, and the texts on both sides of each of the filter's limits.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False, verbose: bool = False):
        self.console = console or Terminal()
        self.quiet, self.verbose = quiet, verbose and not quiet
        self.started = time.monotonic()
        self.clock = Clock()
        self.screen = Screen(self.console)
        self._events: list[dict] = []
        self._device = "cpu"
        self._bar: Progress | None = None
        self._task = None
        self._part = ""
        self._stage = ""
        self._wait = self._next_line = 0.0
        self._counted = (0, 0.0, 0)  # in all, since when, and how many were done then

    def plan(self, n_rounds: int, parts: int) -> None:
        """Rounds of the run, and how many runs of so many rounds it is made of: itself and its controls."""
        self.clock.plan(n_rounds, parts)

    def resumed(self, committed: int) -> None:
        """A stopped run goes on: what is printed again is read from its folder, up to where it was stopped."""
        if not self.quiet:
            self.console.print(
                f"going on with a stopped run: {counted(committed, 'result')} of it will be read from its folder, the "
                "rest is computed; what it had printed comes again"
            )

    def on_event(self, event: dict) -> None:
        """Print one ledger event."""
        self._heard(event)
        if event["stage"] == "start":
            self._events, self.screen = [], Screen(self.console)
        self._events.append(event)
        found = [] if self.quiet else judge(event, self._events)
        if self.verbose:
            printing.show(self.console, event, found)
            left = self.clock.remaining() if event["stage"] == "gate" and not event["ended"] else None
            if left:
                self.console.print(f"{counted(self.clock.rounds_left() + 1, 'round')} to go, about {duration(left)}\n")
        elif not self.quiet:
            self.screen.show(event, self._events, found)
        elif event["stage"] == "end":
            self.screen.end(event, self._events)

    def written(self, folder: Path) -> None:
        """Say what to open, once it is there."""
        told = f"Open {folder}/report.html: all tables, replies side by side, every SHOULD, how to load it."
        self.console.print(told, markup=False, soft_wrap=True)

    def of_control(self, name: str) -> Callable[[dict], None]:
        """A listener for a control's own ledger: a line when it has ended (verbose: per round), no more than that."""
        events = []

        def on_event(event: dict) -> None:
            self._heard(event)
            self._part = "" if event["stage"] == "end" else f"control {name}, "
            events.append(event)
            if self.verbose and event["stage"] == "verdict":
                line = f"control {name}, round {event['round']}: {event['verdict']}. {event['text']}"
                self.console.print(printing.in_words(line), markup=False)
            elif event["stage"] == "end" and not (self.quiet or self.verbose):
                self.screen.control(name, events)

        return on_event

    def _heard(self, event: dict) -> None:
        self._end_bar()
        self.clock.event(event)
        self._device, self._stage = event.get("device", self._device), ""

    def batches(self, stage: str) -> Callable[[Sequence[Sampled], Batches], None]:
        """A progress callback for sampling: replies done and tokens/s; verbose, a line for every batch."""
        before = (0, 0.0)

        def report(done: Sequence[Sampled], now: Batches) -> None:
            nonlocal before
            self.progress(stage, now.done, now.total, f"{now.tokens_per_second:.0f} tokens/s")
            if done and self.verbose:
                self.note(printing.batch_line(done, now, *before))
                before = now.tokens, now.seconds

        return report

    def note(self, text: str) -> None:
        """Text for those who asked for everything."""
        if self.verbose:
            self._end_bar()
            self.console.print(text, markup=False, soft_wrap=True)

    def step(self, row: dict, total: int) -> None:
        """A step of a heal: its progress; verbose, a row of the heal's live table as well."""
        self.progress("heal", min(row["step"] + 1, total), total, f"nll {row['nll']:.3f}")
        if self.verbose:
            self.note("\n".join([printing.steps_header(row)] * (row["step"] == 0) + [printing.steps_line(row)]))

    def epoch(self, row: dict) -> None:
        """The end of an epoch of a heal, verbose: training and held-out nll against their values before it."""
        self.note(printing.epoch_line(row))

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show how far a stage has come; `note` is its rate or current figures.

        On a terminal one line that goes when the stage is done, else a line now and then in a stage that takes long.
        """
        if self.quiet:
            return
        now = time.monotonic()
        begins = stage != self._stage
        if begins or total != self._counted[0]:
            self._counted = (total, now, done if done < total else 0)
        if begins:
            self._end_bar()
            self._stage, self._wait = stage, VERBOSE_INTERVAL if self.verbose else PLAIN_INTERVAL
            self._next_line = now + self._wait
            if self.verbose:
                self._line(f"{stage} ({memory_in_use(self._device)})")
        words = self._words(stage, done, total, note, now) if total > 1 else ""
        if self.console.is_terminal:
            self._draw_bar(stage, done, total, words)
        elif total > 1 and now > self._next_line:
            self._wait *= 1 if self.verbose else 2
            self._next_line = now + self._wait
            self._line(f"{self._named(stage)}: {done}/{total} {words} ({memory_in_use(self._device)})")

    def _named(self, stage: str) -> str:
        """A stage with the control and the round that it is part of."""
        return f"{self._part}round {self.clock.round} {stage}" if self.clock.in_rounds else f"{self._part}{stage}"

    def _words(self, stage: str, done: int, total: int, note: str, now: float) -> str:
        """Rate, figures, and the remaining time of the stage and of the run, as far as they are known."""
        _, since, first = self._counted
        seconds, new = now - since, done - first
        rate = f"{new / seconds:.1f}/s" if "/s" not in note and new > 0 and seconds > 0 else ""
        of_stage = seconds * (total - done) / new if new > 0 else 0.0
        of_run = self.clock.remaining((seconds, new, new + total - done) if stage == "heal" else None) or 0.0
        left = [(of_stage, "about {} left"), (of_run, "whole run about {} left")]
        lefts = [words.format(duration(some)) for some, words in left if some >= 1]
        return ", ".join(word for word in (note, rate, *lefts) if word)

    def _line(self, text: str) -> None:
        self.console.print(f"[{time.monotonic() - self.started:6.1f} s] {text}", markup=False)

    def _draw_bar(self, stage: str, done: int, total: int, words: str) -> None:
        counts = f"{done}/{total}" if total > 1 else ""
        if self._bar is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn())
            words_column = TextColumn("{task.fields[words]}", markup=False)
            self._bar = Progress(*columns, words_column, console=self.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._named(stage), total=None, words="")
        total = total if total > 1 else None
        self._bar.update(self._task, completed=done, total=total, words=f"{counts} {words}")

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
