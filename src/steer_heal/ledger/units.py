"""Units of a run: each result is computed once and committed to `units/` with a checksum; a resumed run reads it.

Knows nothing of what a unit is. The loop is replayed from its start, so it needs no bookmark: what is committed is
read, the first unit that is not is computed, and every seed is derived from its use, so nothing shifts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

from steer_heal.errors import InputError
from steer_heal.ledger.files import write_whole
from steer_heal.processes import told
from steer_heal.reading import from_json

UNIT_SCHEMA = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """How a kind of result becomes bytes, and comes back equal in every bit."""

    dump: Callable[[T], bytes]
    load: Callable[[bytes], T]


def json_kind(take_apart: Callable = lambda value: value, put_together: Callable = lambda data: data) -> Kind:
    """A kind kept as JSON; floats come back bit for bit, NaN and infinities too."""

    def number(value):
        return value.item()

    return Kind(
        lambda value: json.dumps(take_apart(value), ensure_ascii=False, default=number).encode("utf-8"),
        lambda content: put_together(json.loads(content)),
    )


PLAIN = json_kind()
"""Numbers, strings, lists and mappings with string keys."""


@runtime_checkable
class Keep(Protocol):
    """Where results go that are not to be computed twice."""

    def once(self, name: str, compute: Callable[[], T], kind: Kind[T]) -> T: ...

    def part(self, *labels: object) -> Keep: ...

    def halved(self, rows: int) -> None: ...


class Forgetful:
    """Keeps nothing: everything is computed. For stages that are used outside a run."""

    def once(self, name: str, compute: Callable[[], T], kind: Kind[T]) -> T:
        return compute()

    def part(self, *labels: object) -> Forgetful:
        return self

    def halved(self, rows: int) -> None:
        """Memory ran out and the batch was halved; nobody keeps a record here."""


FORGET = Forgetful()


@dataclass(frozen=True)
class Units:
    """The committed results of a run.

    Attributes:
        folder: `units/` of the run folder.
        config: hash of the configuration that they were computed under.
        on_halved: called with the unit's name and the new number of rows when memory ran out.
        prefix: what the names begin with, such as round and stage.
    """

    folder: Path
    config: str
    on_halved: Callable[[str, int], None]
    prefix: tuple[str, ...] = ()
    used: set[str] = field(default_factory=set)

    def part(self, *labels: object) -> Units:
        """The same units under a longer prefix."""
        return Units(self.folder, self.config, self.on_halved, (*self.prefix, *map(str, labels)), self.used)

    def halved(self, rows: int) -> None:
        """Memory ran out and the batch was halved: the run has to say so, its bits differ from then on."""
        self.on_halved(".".join(self.prefix), rows)

    def once(self, name: str, compute: Callable[[], T], kind: Kind[T]) -> T:
        """The committed result of this name, or what `compute` gives, committed.

        A result is handed out as it is read back, so that an uninterrupted run goes on with what a resumed one sees,
        and of several processes each with what the first one committed.
        Raises InputError for a damaged file and for one of another configuration, NotWrittenError when it cannot be
        committed, and RuntimeError for a name that is used twice in a run.
        """
        label = ".".join((*self.prefix, name)).replace(" ", "-")
        if label in self.used:
            raise RuntimeError(f"unit {label} is asked for twice in one run: give each result a name of its own")
        path = self.folder / f"{label}.unit"
        content = told(partial(self._committed, path, label))
        if content is None:
            value = compute()
            content = told(lambda: self._commit(path, label, kind.dump(value)))
        self.used.add(label)
        return kind.load(content)

    def _committed(self, path: Path, label: str) -> bytes | None:
        if path.is_file():
            return self._read(path, label)
        if path.exists():
            raise _damaged(path, "it is no file")
        return None

    def _commit(self, path: Path, label: str, content: bytes) -> bytes:
        write_whole(path, self._header(label, content) + content)
        return content

    def _header(self, label: str, content: bytes) -> bytes:
        digest = hashlib.sha256(content).hexdigest()
        header = {"schema": UNIT_SCHEMA, "unit": label, "config": self.config, "sha256": digest}
        return json.dumps(header).encode() + b"\n"

    def _read(self, path: Path, label: str) -> bytes:
        head, _, content = path.read_bytes().partition(b"\n")
        try:
            header = from_json(head)
            schema, config = header["schema"], header["config"]
        except (ValueError, TypeError, KeyError) as problem:
            raise _damaged(path, "its first line is unreadable") from problem
        if schema != UNIT_SCHEMA:
            raise InputError(f"{path} was written with schema {schema}, this version reads {UNIT_SCHEMA}: use that one")
        if config != self.config:
            raise InputError(
                f"{path} was computed under another configuration: config.json of this run was changed; put it back, "
                "or start a new run"
            )
        if head + b"\n" != self._header(label, content):
            raise _damaged(path, "its checksum does not fit")
        return content


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is damaged ({why}): delete that file and resume again, it is then computed anew")
