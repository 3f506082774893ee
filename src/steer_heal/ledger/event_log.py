"""The event log: lines of JSON, only ever added to; in a replay what is added is first compared with what is there.

Knows nothing of what the events mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from steer_heal.errors import InputError
from steer_heal.ledger.files import append_whole, drop_torn_line, plain, whole_lines

TIMES = ("time", "seconds", "folder")
"""Figures of an event that may differ when it is recorded again: when, how long, and where the folder now is."""
MARKS = ("memory",)
"""Events that a resumed run need not see again: they depend on the machine's state and not on the run."""


class EventLog:
    """The events in one file. An event has at least a `stage` and a `round` (or None)."""

    def __init__(self, path: Path):
        self.path = path
        self._recorded: list[dict] = []
        self._read: tuple[object, dict[str | None, list[dict]]] = (None, {})

    def replay(self) -> None:
        """From now on events that are there already are expected again, in their order."""
        self._recorded = self.events()
        if self.path.is_file():
            drop_torn_line(self.path)

    def add(self, event: Mapping) -> dict:
        """Append an event, or find it among those that are repeated; returns it as it stands in the file.

        Raises InputError when it is not the one that was recorded.
        """
        event = plain(event)
        line = json.dumps(event, ensure_ascii=False)
        if (there := self._there(json.loads(line))) is not None:
            return there
        append_whole(self.path, line)
        return event

    def _there(self, event: dict) -> dict | None:
        """The recorded event that this one repeats; None when all of them were repeated."""
        while self._recorded and self._recorded[0]["stage"] in MARKS and event["stage"] not in MARKS:
            self._recorded.pop(0)
        other = _differing(self._recorded[0], event) if self._recorded else ()
        if not self._recorded or (other and event["stage"] in MARKS):
            return None
        if other:
            what = event["stage"] if event["round"] is None else f"{event['stage']} of round {event['round']}"
            raise InputError(
                f"{str(self.path.parent)!r} cannot be continued: {what} differs from what was recorded in "
                f"{', '.join(other)}: the model, the trait, the program or events.jsonl was changed since; start a new "
                "run"
            )
        return self._recorded.pop(0)

    def events(self, stage: str | None = None) -> list[dict]:
        """All events in order, or those of one stage; the file is read again only when it has changed.

        Raises InputError for a line that cannot be read.
        """
        state = self.path.stat() if self.path.is_file() else None
        stamp = state and (state.st_ino, state.st_size, state.st_mtime_ns)
        if stamp != self._read[0]:
            self._read = stamp, self._parsed()
        return list(self._read[1].get(stage, ()))

    def _parsed(self) -> dict[str | None, list[dict]]:
        """The events by stage, all of them under None."""
        found: dict[str | None, list[dict]] = {None: []}
        for number, line in enumerate(whole_lines(self.path), 1):
            try:
                event = json.loads(line)
                found.setdefault(event["stage"], []).append(event)
            except (ValueError, TypeError, KeyError, RecursionError) as problem:
                raise InputError(
                    f"{self.path}, line {number}: not an event, the file is damaged ({problem})"
                ) from problem
            found[None].append(event)
        return found


def _differing(there: Mapping, now: Mapping) -> list[str]:
    """Names of the figures in which two events differ, one level down where they are mappings; times do not count."""
    out = []
    for key in {**there, **now}:
        one, other = there.get(key), now.get(key)
        if one == other or key in TIMES:
            continue
        inner = isinstance(one, Mapping) and isinstance(other, Mapping)
        out += [f"{key}.{k}" for k in {**one, **other} if one.get(k) != other.get(k)] if inner else [key]
    return out
