"""A run held to what SHOULD be seen in it: sentence by sentence whether it holds, and what was seen instead.

Knows nothing of where it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from steer_heal.report.expectations import of_result, of_training
from steer_heal.report.expectations.sentences import Events, Expectation

EXPECTATIONS = tuple(
    one for part in (of_training, of_result) for one in vars(part).values() if isinstance(one, Expectation)
)
"""In the order of the stages."""


@dataclass(frozen=True)
class Found:
    """An expectation as it was judged, in a round or (None) before or after them."""

    of: Expectation
    round: int | None
    holds: bool
    seen: str

    def __str__(self) -> str:
        told = f"SHOULD: {self.of.should}. {'Holds' if self.holds else 'FAILS'}: {self.seen}."
        return told if self.holds else f"{told} It means: {self.of.meaning}."


def judge(event: Mapping, events: Sequence[Mapping]) -> list[Found]:
    """What SHOULD be seen in an event of a run, judged."""
    return _judge(event, _by_place(events))


def judged(events: Sequence[Mapping]) -> list[Found]:
    """The same for all events of a run."""
    by_place = _by_place(events)
    return [found for event in events for found in _judge(event, by_place)]


def _by_place(events: Sequence[Mapping]) -> Events:
    return {(event["stage"], event["round"]): event for event in events}


def _judge(event: Mapping, events: Events) -> list[Found]:
    seen = [(one, one.check(event, events)) for one in EXPECTATIONS if one.stage == event["stage"]]
    return [Found(one, event["round"], *found) for one, found in seen if found is not None]


COLUMNS = ["stage", "SHOULD be seen", "was it"]


def table(events: Sequence[Mapping]) -> list[list[str]]:
    """A row for each expectation that the run could be held to (see `COLUMNS`); the last figures where it holds."""
    rows = []
    for one, founds in grouped(judged(events)).items():
        was = outcome(founds)
        rows.append([one.stage, one.should, f"holds: {founds[-1].seen}" if was == "holds" else was])
    return rows


def legend(events: Sequence[Mapping], *names: str) -> str:
    """The named expectations in sentences, with what was seen; what the run could not be held to is left out."""
    founds = grouped(found for found in judged(events) if found.of.name in names)
    return " ".join(f"SHOULD: {one.should}: {outcome(these)}." for one, these in founds.items())


def grouped(founds: Iterable[Found]) -> dict[Expectation, list[Found]]:
    """By expectation, in the order of the stages."""
    founds = list(founds)
    these = {one: [found for found in founds if found.of == one] for one in EXPECTATIONS}
    return {one: found for one, found in these.items() if found}


def outcome(founds: Sequence[Found]) -> str:
    """`holds`, or where it fails, the figures, and what that means."""
    failed = [found for found in founds if not found.holds]
    if not failed:
        return "holds"
    parts = [(f"in round {f.round}, " if f.round is not None else "") + f.seen for f in failed]
    return f"fails: {'; '.join(parts)}. It means: {founds[0].of.meaning}"
