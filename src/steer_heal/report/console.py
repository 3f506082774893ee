"""Live output of a run: progress with the remaining time, the live table of a heal, and every event as it comes.

Knows nothing of models and of what an event looks like (`printing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from steer_heal.ledger.clock import Clock, duration
from steer_heal.model.memory import memory_in_use
from steer_heal.report import heal_table
from steer_heal.report.printing import SHOW
from steer_heal.report.tables import counted

PLAIN_INTERVAL = 10.0
"""Seconds between progress lines when the output is no terminal."""


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

    `quiet` leaves the final table only; `verbose` adds the plan and speed of every batch, every step of a heal, and
    the texts on both sides of each of the filter's limits.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False, verbose: bool = False):
        self.console = console or Console(highlight=False, width=None if Console().is_terminal else 120)
        self.quiet, self.verbose = quiet, verbose and not quiet
        self.started = time.monotonic()
        self.clock = Clock()
        self._device = "cpu"
        self._bar: Progress | None = None
        self._task = None
        self._stage = ""
        self._last_line = 0.0
        self._counted = (0, 0.0, 0)  # in all, since when, and how many were done then
        self._steps: list[dict] = []

    def plan(self, n_rounds: int, parts: int) -> None:
        """Rounds of the run, and how many runs of so many rounds it is made of: itself and its controls."""
        self.clock.plan(n_rounds, parts)

    def resumed(self, committed: int) -> None:
        """A stopped run goes on: what is printed again is read from its folder, up to where it was stopped."""
        if not self.quiet:
            self.console.print(
                f"going on with a stopped run: {counted(committed, 'result')} of it will be read from its folder, the "
                "rest is computed; tables that it had printed come again"
            )

    def on_event(self, event: dict) -> None:
        """Print one ledger event."""
        self._end_bar()
        self.clock.event(event)
        self._device = event.get("device", self._device)
        self._stage = ""
        show = SHOW.get(event["stage"])
        if show is None or (self.quiet and event["stage"] != "end"):
            return
        show(self.console, event)
        left = self.clock.remaining() if event["stage"] == "gate" and not event["ended"] else None
        if left:
            self.console.print(f"{counted(self.clock.rounds_left() + 1, 'round')} to go, about {duration(left)}\n")

    def of_control(self, name: str) -> Callable[[dict], None]:
        """A listener for a control's own ledger: one line per round, its tables are in its own report."""

        def on_event(event: dict) -> None:
            self.clock.event(event)
            if event["stage"] == "verdict" and not self.quiet:
                self._end_bar()
                line = f"control {name}, round {event['round']}: {event['verdict']}. {event['text']}"
                self.console.print(line, markup=False)

        return on_event

    def batches(self, stage: str) -> Callable[[Sequence[Sampled], Batches], None]:
        """A progress callback for sampling: replies done and tokens/s; verbose, a line for every batch."""
        before = (0, 0.0)

        def report(done: Sequence[Sampled], now: Batches) -> None:
            nonlocal before
            self.progress(stage, now.done, now.total, f"{now.tokens_per_second:.0f} tokens/s")
            if done and self.verbose:
                tokens, seconds = now.tokens - before[0], now.seconds - before[1]
                speed = f"{tokens / max(seconds, 1e-9):.0f} tokens/s" if tokens else "read from the run folder"
                doses = ", ".join(f"{dose:.3g}" for dose in sorted({reply.dose for reply in done}))
                self.note(
                    f"  batch of {len(done)} (planned: {now.total} replies, up to {now.rows} at once), doses {doses}, "
                    f"longest {max(len(reply.token_ids) for reply in done)} tokens, {speed}"
                )
                before = now.tokens, now.seconds

        return report

    def note(self, text: str) -> None:
        """Text for those who asked for everything."""
        if self.verbose:
            self._end_bar()
            self.console.print(text, markup=False, soft_wrap=True)

    def step(self, row: dict, total: int) -> None:
        """A step of a heal: its progress, and every so often (verbose: each time) a row of the heal's live table."""
        self.progress("heal", min(row["step"] + 1, total), total, f"nll {row['nll']:.3f}")
        if self.quiet:
            return
        if row["step"] == 0:
            self._steps.clear()
            self._end_bar()
            self.console.print(heal_table.header(row), markup=False, soft_wrap=True)
        self._steps.append(row)
        if self.verbose or len(self._steps) >= -(-total // heal_table.ROWS):
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

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show how far a stage has come; `note` is its rate or current figures.

        A stage begins with a header that has the memory in use; then a bar on a terminal, else a line now and then.
        """
        if self.quiet:
            return
        now = time.monotonic()
        header = stage != self._stage
        if header or total != self._counted[0]:
            self._counted = (total, now, done if done < total else 0)
        if header:
            self._end_bar()
            self._stage, self._last_line = stage, now
            self._line(f"{stage} ({memory_in_use(self._device)})")
        if total <= 1:
            return
        words = self._words(stage, done, total, note, now)
        if self.console.is_terminal:
            self._draw_bar(stage, done, total, words)
        elif now - self._last_line > PLAIN_INTERVAL:
            self._last_line = now
            self._line(f"{stage}: {done}/{total} {words}")

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
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[words]}"), console=self.console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(stage, total=total, words=words)
        self._bar.update(self._task, completed=done, total=total, words=words)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
