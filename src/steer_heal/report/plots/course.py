"""A run's figures by round, with intervals, for pictures: what steering did to each, and what healing did.

Knows nothing of drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from steer_heal.ledger import Ledger
from steer_heal.report.headline import event

Pick = Callable[[Mapping], Mapping | None]
"""From a shift against base, as an event holds it, the figure that is asked for; None where it was not measured."""


@dataclass(frozen=True)
class Span:
    """A figure with its 95 % interval; the ends are NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def above(self, base: float) -> Span:
        """The same, counted from another zero."""
        return Span(base + self.value, base + self.low, base + self.high)

    @property
    def arms(self) -> tuple[float, float]:
        """How far the interval reaches down and up from the value; 0 without one."""
        return tuple(
            0.0 if math.isnan(arm) else max(arm, 0.0) for arm in (self.value - self.low, self.high - self.value)
        )


@dataclass(frozen=True)
class Step:
    """A round: its steered and its healed model, None where the figure does not exist; whether it stands, is best."""

    number: int
    steered: Span | None
    healed: Span | None
    stands: bool
    best: bool


@dataclass(frozen=True)
class Course:
    """A figure through a run. `others`: (name, span) of the prompted model and of every control."""

    base: float
    steps: tuple[Step, ...]
    others: tuple[tuple[str, Span], ...]

    @property
    def standing(self) -> list[tuple[int, Span]]:
        """(round, healed) of base, as round -1, and of the rounds that stand."""
        kept = [(step.number, step.healed) for step in self.steps if step.stands and step.healed]
        return [(-1, Span(self.base)), *kept]

    @property
    def known(self) -> bool:
        """Some round or other model has the figure."""
        return bool(self.others) or any(step.steered or step.healed for step in self.steps)

    def other(self, name: str) -> Span | None:
        return dict(self.others).get(name)


def span(found: Mapping | None) -> Span | None:
    """A recorded figure with its interval."""
    if not found or found["value"] is None:
        return None
    return Span(found["value"], *(math.nan if found[end] is None else found[end] for end in ("low", "high")))


def shifts(ledger: Ledger, pick: Pick) -> Course:
    """A figure as its difference to base, by round."""

    fates = _fates(ledger)
    steps = [
        Step(e["round"], span(pick(e["steered_shift"])), span(pick(e["shift"])), *fates[e["round"]])
        for e in ledger.events("evaluate")
    ]
    rows = [(row["name"], row["shift"] and span(pick(row["shift"]))) for row in event(ledger, "end")["against"]]
    return Course(0.0, tuple(steps), tuple((n, s) for n, s in rows if s))


def levels(ledger: Ledger, key: str, pick: Pick | None = None) -> Course | None:
    """A figure of the models' summaries by round, with the intervals of its difference to base; None if unmeasured."""
    baseline = event(ledger, "baseline")
    base = baseline["base"][key]
    if base is None:
        return None
    if pick is not None:
        moved = shifts(ledger, pick)
        steps = tuple(
            Step(s.number, s.steered and s.steered.above(base), s.healed and s.healed.above(base), s.stands, s.best)
            for s in moved.steps
        )
        return Course(base, steps, tuple((name, found.above(base)) for name, found in moved.others))

    def bare(state: Mapping | None) -> Span | None:
        return None if not state or state[key] is None else Span(state[key])

    fates = _fates(ledger)
    steps = tuple(
        Step(e["round"], bare(e["steered"]), bare(e["healed"]), *fates[e["round"]]) for e in ledger.events("evaluate")
    )
    prompted = bare(baseline["prompted"])
    return Course(base, steps, (("prompted", prompted),) if prompted else ())


def _fates(ledger: Ledger) -> dict[int, tuple[bool, bool]]:
    """Of every measured round whether it stands and whether it is the best."""
    stands = {e["round"]: e["stands"] for e in ledger.events("gate")}
    best, measured = event(ledger, "end")["best_round"], ledger.events("evaluate")
    return {e["round"]: (stands.get(e["round"], True), e["round"] == best) for e in measured}
