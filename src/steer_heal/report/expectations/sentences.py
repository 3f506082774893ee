"""What an expectation is: a sentence of what SHOULD be seen after a stage, its check, and what a failure means.

Knows nothing of any stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Events = Mapping[tuple[str, int | None], Mapping]
"""Events by stage and round."""
Seen = tuple[bool, str] | None
"""Whether a sentence holds, and the figures that say so; None where there is nothing to judge."""
Check = Callable[[Mapping, Events], Seen]


@dataclass(frozen=True)
class Expectation:
    """What SHOULD be seen after a stage; `check` judges it from the stage's event and all events of the run so far."""

    name: str
    stage: str
    should: str
    meaning: str
    check: Check


def expected(stage: str, should: str, meaning: str) -> Callable[[Check], Expectation]:
    """Makes a check an expectation, under the check's own name."""

    def make(check: Check) -> Expectation:
        return Expectation(check.__name__, stage, should, meaning, check)

    return make


def of_round(events: Events, stage: str, number: int | None) -> Mapping | None:
    """The event of a stage in a round, if it has come."""
    return events.get((stage, number))
