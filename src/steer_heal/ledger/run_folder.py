"""`Ledger`: one run's folder: what it is made with, its events, its rounds, its files, each written whole.

Knows nothing of models.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from steer_heal.errors import InputError, NotWrittenError, printable
from steer_heal.ledger.clock import now
from steer_heal.ledger.environment import environment
from steer_heal.ledger.event_log import EventLog
from steer_heal.ledger.files import (
    PARTIAL,
    indented,
    move_whole,
    plain,
    same_files,
    whole_lines,
    write_json,
    write_text,
)
from steer_heal.ledger.places import FolderLock, made_folder
from steer_heal.ledger.units import Units
from steer_heal.reading import from_json, reachable, read_bytes

SCHEMA_VERSION = 1
CHECKSUM = "config_sha256"
"""Where environment.json keeps the checksum of the config.json that a run was made with."""
SEAL = "sha256.json"
"""Checksums of the files of a finished run."""
WEIGHTS = ".safetensors"
RECORD = (".json", ".jsonl", WEIGHTS)

CHANGED = (
    "is damaged or was changed, it is not what the run wrote: move it (or its round's folder) away and resume again, "
    "it is then written anew"
)


class Ledger:
    """One run's folder. `record` appends an event and tells the listeners; `round_folder` commits a round.

    `units` holds the committed results. `replayed` is true for a run that goes on. `shown` is what a user knows the
    folder by.
    """

    def __init__(self, folder: Path):
        self.folder = self.shown = folder
        self.listeners: list[Callable[[dict], None]] = []
        self.replayed = False
        self._log = EventLog(folder / "events.jsonl")
        self._lock = FolderLock(folder)

    @classmethod
    def create(cls, root: str | Path, label: str, config: Mapping) -> Ledger:
        """Make `root/<time>_<label>/` with `config.json` and `environment.json`.

        Raises InputError when the folder cannot be written.
        """
        root, ledger = reachable(root), None
        try:
            ledger = cls(made_folder(root, label))
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
        options = indented({"schema_version": SCHEMA_VERSION, **config})
        made_with = {CHECKSUM: hashlib.sha256(options.encode("utf-8")).hexdigest()}
        self.write_json("environment.json", {**environment(config.get("engine")), **made_with})
        # The last one: a folder with it is a run folder.
        self.write_text("config.json", options)

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
        config = reachable(folder) / "config.json"
        if not config.is_file():
            raise InputError(f"{str(folder)!r} is no run folder (no config.json): point to one under out/")
        try:
            version = from_json(config.read_bytes()).get("schema_version")
        except (OSError, ValueError, AttributeError) as problem:
            raise InputError(f"{config} is damaged ({problem}): put the original back, or start a new run") from problem
        if version != SCHEMA_VERSION:
            raise InputError(f"{str(folder)!r} was written with schema {version}, this version reads {SCHEMA_VERSION}")
        return cls(config.parent)

    def hold(self) -> None:
        """Take the run folder for this process, until `release`. Raises InputError when another one has it."""
        self._lock.take()

    def release(self) -> None:
        """Let go of the run folder."""
        self._lock.release()

    def replay(self) -> None:
        """Go on with a run: what is recorded from now on is first compared with the events that are there."""
        self._log.replay()
        self.replayed = True

    @cached_property
    def units(self) -> Units:
        """The committed results of this run."""
        return Units(
            self.folder / "units", self._config_hash(), lambda unit, rows: self.record("memory", unit=unit, rows=rows)
        )

    def _config_hash(self) -> str:
        return hashlib.sha256((self.folder / "config.json").read_bytes()).hexdigest()

    def check_record(self) -> dict:
        """What the run was made with; loads nothing. Raises InputError when its options were changed since."""
        path = self.folder / "environment.json"
        try:
            recorded = from_json(read_bytes(path))
            made_with = recorded[CHECKSUM]
        except (ValueError, KeyError, TypeError) as problem:
            raise InputError(f"{path} is damaged ({problem}): start a new run") from problem
        if made_with != self._config_hash():
            raise InputError(
                f"{self.folder / 'config.json'} of this run was changed, its checksum in environment.json does not "
                "fit: put it back, or start a new run"
            )
        return recorded

    def settle(self) -> None:
        """The run is done: its record is sealed, and the results that only a run that goes on needs are removed."""
        if (units := self.folder / "units").is_dir():
            self.write_json(SEAL, {name: _checksum(path) for name, path in self._record().items()})
            os.replace(units, self.folder / f"units{PARTIAL}")  # in one step: from here on the run is finished
        for left in (self.folder / f"units{PARTIAL}", *self.folder.glob("controls/*/units")):
            shutil.rmtree(left, ignore_errors=True)
        (self.folder / "lock").unlink(missing_ok=True)

    def check_seal(self, weights: bool = False) -> None:
        """Raises InputError for a file of a finished run that is gone or not what the run wrote.

        `weights`: also the vectors and adapters, which are large. A run of a version that kept no checksums passes.
        """
        path = self.folder / SEAL
        if not path.exists():
            return
        try:
            sealed = dict(from_json(read_bytes(path)))
        except (ValueError, TypeError) as problem:
            raise InputError(f"{path} is damaged ({problem}): put it back, or run again") from problem
        there = self._record()
        for name, checksum in sealed.items():
            if name.endswith(WEIGHTS) == weights and (name not in there or _checksum(there[name]) != checksum):
                raise InputError(f"{self.folder / name} is not what the run wrote: put it back, or run again")

    def _record(self) -> dict[str, Path]:
        """By name the files that a finished run consists of; pages, which are written again, are none."""
        found = (path for path in sorted(self.folder.rglob("*")) if path.suffix in RECORD and path.is_file())
        names = {path.relative_to(self.folder).as_posix(): path for path in found}
        return {name: path for name, path in names.items() if name != SEAL and not name.startswith("units")}

    @property
    def config(self) -> dict:
        found = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(was := found.get("gradient_checkpointing"), bool):  # so runs of 0.1.0 have it
            found["gradient_checkpointing"] = "on" if was else "off"
        return found

    def record(self, stage: str, round: int | None = None, **figures) -> dict:
        """Append one event (stage, round, seconds since the epoch, figures) and hand it to the listeners.

        In a run that goes on, events that are there already are not written again. Raises InputError when one is not
        what was recorded.
        """
        event = self._log.add({"stage": stage, "round": round, "time": now(), **figures})
        for listener in self.listeners:
            listener(event)
        return event

    def events(self, stage: str | None = None) -> list[dict]:
        """All events in order, or those of one stage. Raises InputError for a line that cannot be read."""
        return self._log.events(stage)

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
        """Add one line to `results.tsv` beside the runs; a new file gets the header first. Lines under another header
        are put under this one.

        A run that goes on replaces its own line, which begins with the folder's name.
        """
        path = self.folder.parent / "results.tsv"
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # other runs may end at the same time
            head, *lines = whole_lines(path) or ["\t".join(row)]
            if (names := head.split("\t")) != list(row):  # written by a version with other columns
                old = [dict(zip(names, line.split("\t"), strict=False)) for line in lines]
                lines = ["\t".join(cells.get(name, "") for name in row) for cells in old]
            if self.replayed:
                lines = [line for line in lines if line.split("\t")[0] != self.folder.name]
            lines.append("\t".join(_cell(value) for value in row.values()))
            write_text(path, "\n".join(["\t".join(row), *lines]) + "\n")
        finally:
            os.close(handle)


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cell(value: object) -> str:
    return (
        "" if value is None else f"{value:.4f}" if isinstance(value, float) else printable(" ".join(str(value).split()))
    )
