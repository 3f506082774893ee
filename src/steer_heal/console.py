"""Live output of a run: progress with the remaining time, the live table of a heal, and every event as it comes.

Knows nothing of models and of what an event looks like (`printing`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from steer_heal import heal_table
from steer_heal.printing import SHOW

PLAIN_INTERVAL = 10.0
"""Seconds between progress lines when the output is no terminal."""


class Reporter:
    """Prints events as they are recorded, and progress in between. `quiet` leaves the final table only."""

    def __init__(self, console: Console | None = None, quiet: bool = False):
        self.console = console or Console(highlight=False, width=None if Console().is_terminal else 120)
        self.quiet = quiet
        self.started = time.monotonic()
        self._bar: Progress | None = None
        self._task = None
        self._stage = ""
        self._last_line = 0.0
        self._marks: list[float] = []
        self._n_rounds = 0
        self._steps: list[dict] = []

    def on_event(self, event: dict) -> None:
        """Print one ledger event."""
        self._end_bar()
        show = SHOW.get(event["stage"])
        if show is None or (self.quiet and event["stage"] != "end"):
            return
        show(self.console, event)
        self._remaining(event)

    def of_control(self, name: str) -> Callable[[dict], None]:
        """A listener for a control's own ledger: one line per round, its tables are in its own report."""

        def on_event(event: dict) -> None:
            if event["stage"] == "verdict" and not self.quiet:
                self._end_bar()
                line = f"control {name}, round {event['round']}: {event['verdict']}. {event['text']}"
                self.console.print(line, markup=False)

        return on_event

    def step(self, row: dict, total: int) -> None:
        """A step of a heal: its progress, and every so often a row of the heal's live table."""
        self.progress("heal", min(row["step"] + 1, total), total, f"nll {row['nll']:.3f}")
        if self.quiet:
            return
        if row["step"] == 0:
            self._steps.clear()
            self._end_bar()
            self.console.print(heal_table.header(row), markup=False, soft_wrap=True)
        self._steps.append(row)
        if len(self._steps) >= max(1, total // heal_table.ROWS):
            self._print_steps()

    def epoch(self, row: dict) -> None:
        """The end of an epoch of a heal: training and held-out nll against their values before the training."""
        if self.quiet:
            return
        self._print_steps()
        self._end_bar()
        self.console.print(heal_table.epoch_line(row), markup=False)

    def _print_steps(self) -> None:
        """One row of the live table for the steps since the last one."""
        if self._steps:
            self._end_bar()
            self.console.print(heal_table.line(self._steps), markup=False, soft_wrap=True)
            self._steps.clear()

    def _remaining(self, event: dict) -> None:
        """After each round, about how long the others will take if they take as long."""
        if event["stage"] == "start":
            self._n_rounds = event["n_rounds"]
        elif event["stage"] == "baseline":
            self._marks = [event["time"]]
        elif event["stage"] == "gate" and not event["ended"] and (left := self._n_rounds - event["round"] - 1):
            self._marks.append(event["time"])
            # The median: a run that was stopped and goes on has a round with the pause in it.
            each = statistics.median(b - a for a, b in pairwise(self._marks))
            self.console.print(f"{left} round(s) to go, about {left * each:.0f} s\n")

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show how far a stage has come; `note` is its rate or current figures."""
        if self.quiet:
            return
        if self.console.is_terminal:
            self._draw_bar(stage, done, total, note)
        elif stage != self._stage or time.monotonic() - self._last_line > PLAIN_INTERVAL:
            self._stage, self._last_line = stage, time.monotonic()
            seconds = time.monotonic() - self.started
            count = f": {done}/{total} {note}" if total > 1 else ""
            self.console.print(f"[{seconds:6.1f} s] {stage}{count}", markup=False)

    def _draw_bar(self, stage: str, done: int, total: int, note: str) -> None:
        if self._bar is None or self._stage != stage:
            self._end_bar()
            self._stage = stage
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(
                *columns, TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                console=self.console, transient=True,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(stage, total=total, note=note)
        self._bar.update(self._task, completed=done, total=total, note=note)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
