"""How long a run will still take, from the times of its events: what each part of a round took is what it will take.

Knows nothing of models and of printing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

LEGS = ("extract", "walk", "heal", "bake", "evaluate", "gate")
"""Events that end a part of a round, in their order."""
SETUP = ("start", "calibrate", "capture", "baseline")
_SET = time.time() - time.monotonic()


def now() -> float:
    """Seconds since the epoch, which never go backwards in a process.

    A wall clock that is set again does not count, nor does the time that a machine sleeps.
    """
    return _SET + time.monotonic()


class Clock:
    """Hears of every event of a run and its controls, and estimates the seconds that are left.

    `since` is when this process took up the run, or the control, that is under way.

    The first round needs a guess for what it has not come to yet: measuring a student takes as long as measuring one
    of the two baselines, folding as long as extracting, the gate's anchors as long as capturing them. For walk and heal
    there is no such guess, so there is no estimate before the first heal is under way.
    """

    def __init__(self, now: Callable[[], float] = now):
        self.now, self.started = now, now()
        self.n_rounds, self.parts, self.part, self.round = 0, 1, -1, 0
        self.since = self.started
        self.seconds: dict[str, list[float]] = {}
        self._last: tuple[str, float] | None = None

    def plan(self, n_rounds: int, parts: int) -> None:
        """Rounds of the run, and how many runs of so many rounds it is made of: itself and its controls."""
        self.n_rounds, self.parts = n_rounds, parts

    def event(self, event: Mapping) -> None:
        """Take note of an event; those of a run that goes on come with the times at which they were recorded."""
        stage, at = event["stage"], event["time"]
        if stage not in (*SETUP, *LEGS):
            return
        if stage == "start":
            self.part, self.round, self.since = self.part + 1, 0, self.now()
        elif self._last and not (self.part and stage in SETUP):  # a control takes its setup over
            before = self._last[1]
            if (before < self.started) == (at < self.started):  # else the run was stopped in between
                self.seconds.setdefault(stage, []).append(at - before)
        self.round += stage == "gate"
        self._last = stage, at

    @property
    def in_rounds(self) -> bool:
        """The setup is done: what comes belongs to a round."""
        return self._last is not None and self._last[0] in ("baseline", *LEGS)

    def remaining(self, training: tuple[float, int, int] | None = None) -> float | None:
        """About the seconds to the end of the run; None as long as nothing can be said.

        Args:
            training: of the heal that is under way: its seconds so far, its steps done and in all.
        """
        if not self.in_rounds:
            return None
        last, at = self._last
        leg = LEGS[(LEGS.index(last) + 1) % len(LEGS) if last in LEGS else 0]
        elapsed = self.now() - max(at, self.started)
        expected = {name: self.expected(name) for name in LEGS}
        if training and leg == "heal" and training[1]:
            seconds, done, total = training
            left = seconds * (total - done) / done
            expected["heal"] = self.expected("heal") or elapsed + left
        elif expected[leg] is None:
            return None
        else:
            left = max(0.0, expected[leg] - elapsed)
        whole = [expected[name] for name in LEGS]
        if None in whole:
            return None
        rounds = self.rounds_left()
        if rounds < 0:  # all rounds are done
            return 0.0
        return left + sum(whole[LEGS.index(leg) + 1 :]) + rounds * sum(whole)

    def rounds_left(self) -> int:
        """Rounds to come after the one that is under way, those of the controls included."""
        return self.n_rounds - self.round - 1 + self.n_rounds * (self.parts - self.part - 1)

    def expected(self, leg: str) -> float | None:
        """Seconds that a part of a round takes: the median of what it took, else a guess (see the class)."""
        if leg in self.seconds:
            return statistics.median(self.seconds[leg])
        like, share = {"evaluate": ("baseline", 0.5), "bake": ("extract", 1.0), "gate": ("capture", 1.0)}.get(
            leg, (leg, 1.0)
        )
        return statistics.median(self.seconds[like]) * share if like in self.seconds else None


def time_passed(events: Sequence[Mapping], since: float, now: float) -> float:
    """Seconds that a run took: until the last event before `since`, when this process took it up, and after that.

    So the pause before a run went on is not in it; where it was stopped more than once, the earlier pauses are.
    """
    before = [event["time"] for event in events if event["time"] < since]
    return now - since + (before[-1] - before[0] if before else 0.0)


def duration(seconds: float) -> str:
    """Seconds as a reader takes them in: `45 s`, `12 min`, `3.5 h`, `6 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.2g} h" if seconds < 360000 else f"{seconds / 86400:.0f} days"
