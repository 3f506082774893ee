"""The run folder: configuration, environment, an append-only event log, rounds that appear whole or not at all.

Knows nothing of models. Everything a report shows can be redrawn from what is here. A run that goes on is replayed:
what it records again has to be what is there already.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from steer_heal.environment import environment
from steer_heal.errors import InputError, NotWrittenError
from steer_heal.files import (
    PARTIAL,
    append_whole,
    drop_torn_line,
    move_whole,
    same_files,
    whole_lines,
    write_whole,
)
from steer_heal.units import Units

SCHEMA_VERSION = 1


TIMES = ("time", "seconds", "folder")
"""Figures of an event that may differ when it is recorded again: when, how long, and where the folder now is."""
CHANGED = (
    "is damaged or was changed, it is not what the run wrote: move it (or its round's folder) away and resume again, "
    "it is then written anew"
)
MARKS = ("memory",)
"""Events that a resumed run need not see again: they depend on the machine's state and not on the run."""


class Ledger:
    """One run's folder. `record` appends an event and tells the listeners; `round_folder` commits a round.

    `units` holds the committed results. `replayed` is true for a run that goes on.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.listeners: list[Callable[[dict], None]] = []
        self.replayed = False
        self._recorded: list[dict] = []
        self._lock = None

    @classmethod
    def create(cls, root: str | Path, label: str, config: Mapping) -> Ledger:
        """Make `root/<time>_<label>/` with `config.json` and `environment.json`.

        Raises InputError when the folder cannot be written.
        """
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}_{_safe(label)}"
        root, ledger = Path(root), None
        try:
            root.mkdir(parents=True, exist_ok=True)
            ledger = cls(next(f for f in _candidates(root, stem) if _made(f)))
            ledger.hold()
            ledger._furnish(config)
        except (OSError, NotWrittenError) as problem:
            if ledger:
                ledger.release()
            why = getattr(problem, "strerror", None) or problem
            raise InputError(f"output folder {str(root)!r} cannot be written ({why}): choose another with --out") from (
                problem
            )
        return ledger

    def _furnish(self, config: Mapping) -> None:
        for name in ("rounds", "units"):
            (self.folder / name).mkdir(exist_ok=True)
        self.write_json("environment.json", environment())
        # The last one: a folder with it is a run folder.
        self.write_json("config.json", {"schema_version": SCHEMA_VERSION, **config})

    def part(self, name: str, config: Mapping) -> Ledger:
        """A ledger of its own for a part of this run, such as a control, in the folder `name` inside this one.

        In a run that goes on it goes on too. Raises InputError when it was made with another configuration.
        """
        folder = self.folder / name
        if self.replayed and (folder / "config.json").is_file():
            ledger = Ledger.open(folder)
            if ledger.config != plain({"schema_version": SCHEMA_VERSION, **config}):
                raise InputError(f"{str(folder)!r} was made with another configuration: start a new run")
            ledger.replay()
            return ledger
        folder.mkdir(parents=True, exist_ok=self.replayed)
        ledger = Ledger(folder)
        ledger._furnish(config)
        return ledger

    @classmethod
    def open(cls, folder: str | Path) -> Ledger:
        """An existing run. Raises InputError when the folder is none or was made by another version."""
        config = Path(folder) / "config.json"
        if not config.is_file():
            raise InputError(f"{str(folder)!r} is no run folder (no config.json): point to one under out/")
        try:
            version = json.loads(config.read_text(encoding="utf-8")).get("schema_version")
        except (ValueError, AttributeError) as problem:
            raise InputError(f"{config} is damaged ({problem}): put the original back, or start a new run") from problem
        if version != SCHEMA_VERSION:
            raise InputError(f"{str(folder)!r} was written with schema {version}, this version reads {SCHEMA_VERSION}")
        return cls(Path(folder))

    def hold(self) -> None:
        """Take the run folder for this process, until `release`. Raises InputError when another one has it."""
        self._lock = open(self.folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            self._lock.seek(0)
            who = self._lock.read().strip() or "unknown"
            self.release()
            raise InputError(
                f"{str(self.folder)!r} is in use by process {who}: wait for it to end, or choose another run"
            ) from problem
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def release(self) -> None:
        """Let go of the run folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def replay(self) -> None:
        """Go on with a run: what is recorded from now on is first compared with the events that are there."""
        self._recorded, self.replayed = self.events(), True
        if (log := self.folder / "events.jsonl").is_file():
            drop_torn_line(log)

    @cached_property
    def units(self) -> Units:
        """The committed results of this run."""
        config = hashlib.sha256((self.folder / "config.json").read_bytes()).hexdigest()
        return Units(self.folder / "units", config, lambda unit, rows: self.record("memory", unit=unit, rows=rows))

    def settle(self) -> None:
        """The run is done: the committed results, which only a run that goes on needs, are removed."""
        if (units := self.folder / "units").is_dir():
            os.replace(units, self.folder / f"units{PARTIAL}")  # in one step: from here on the run is finished
        for left in (self.folder / f"units{PARTIAL}", *self.folder.glob("controls/*/units")):
            shutil.rmtree(left, ignore_errors=True)
        (self.folder / "lock").unlink(missing_ok=True)

    @property
    def config(self) -> dict:
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

    def record(self, stage: str, round: int | None = None, **figures) -> dict:
        """Append one event (stage, round, seconds since the epoch, figures) and hand it to the listeners.

        In a run that goes on, events that are there already are not written again. Raises InputError when one is not
        what was recorded.
        """
        event = plain({"stage": stage, "round": round, "time": time.time(), **figures})
        line = json.dumps(event, ensure_ascii=False)
        if (there := self._there(json.loads(line))) is not None:
            event = there
        else:
            append_whole(self.folder / "events.jsonl", line)
        for listener in self.listeners:
            listener(event)
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
                f"{str(self.folder)!r} cannot be continued: {what} differs from what was recorded in "
                f"{', '.join(other)}: the model, the trait, the program or events.jsonl was changed since; start a new "
                "run"
            )
        return self._recorded.pop(0)

    def events(self, stage: str | None = None) -> list[dict]:
        """All events in order, or those of one stage. Raises InputError for a line that cannot be read."""
        found, path = [], self.folder / "events.jsonl"
        for number, line in enumerate(whole_lines(path), 1):
            try:
                event = json.loads(line)
                found.append({"stage": event["stage"], **event})
            except (ValueError, TypeError, KeyError) as problem:
                raise InputError(f"{path}, line {number}: not an event, the file is damaged ({problem})") from problem
        return found if stage is None else [event for event in found if event["stage"] == stage]

    @contextmanager
    def round_folder(self, round: int) -> Iterator[Path]:
        """A folder to fill; it appears as `rounds/NN` only when the block ends without an exception.

        In a run that goes on, a round that is there already stays; InputError when it is not what is filled in.
        """
        final = self.folder / "rounds" / f"{round:02d}"
        partial = final.with_name(final.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        if not final.exists():
            move_whole(partial, final)
            # What an interrupted attempt at this round left for readers.
            for left in final.parent.glob(f"{final.name}.interrupted*"):
                shutil.rmtree(left, ignore_errors=True)
            return
        other = same_files(partial, final)
        shutil.rmtree(partial)
        if other:
            raise InputError(f"{final / other} {CHANGED}")

    def write_json(self, name: str, content: object) -> None:
        """Write a JSON file of the run folder in one step."""
        write_json(self.folder / name, content)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run folder in one step."""
        write_text(self.folder / name, text)

    def write_once(self, name: str, text: str) -> None:
        """Write a text file that stays as it is; InputError when a run that goes on finds another one there."""
        path = self.folder / name
        if not (self.replayed and path.is_file()):
            write_text(path, text)
        elif path.read_bytes() != text.encode("utf-8"):
            raise InputError(f"{path} {CHANGED}")

    def append_result(self, row: Mapping[str, object]) -> None:
        """Add one line to `results.tsv` beside the runs; a new file gets the header first.

        A run that goes on replaces its own line.
        """
        path = self.folder.parent / "results.tsv"
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # other runs may end at the same time
            lines = whole_lines(path) or ["\t".join(row)]
            if self.replayed:
                lines = [line for line in lines if line.split("\t")[0] != self.folder.name]
            lines.append("\t".join(_cell(value) for value in row.values()))
            write_text(path, "\n".join(lines) + "\n")
        finally:
            os.close(handle)


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


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, flush to disk, rename."""
    write_whole(path, text.encode("utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write indented JSON in one step; NaN and infinity become null."""
    write_text(path, json.dumps(plain(content), indent=1, ensure_ascii=False) + "\n")


def plain(value):
    """JSON types only: mappings, lists, strings, numbers; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    if hasattr(value, "item"):
        return plain(value.item())
    raise TypeError(f"{type(value).__name__} does not belong in a ledger")


def _candidates(root: Path, stem: str) -> Iterator[Path]:
    yield root / stem
    for n in range(2, 1000):
        yield root / f"{stem}-{n}"


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _safe(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in label).strip("-.") or "run"


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value).replace("\t", " ")
