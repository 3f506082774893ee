"""Names and files that a user gave or that a run left: looked at before they are used, refused with one line.

Knows nothing of what is in them. Nothing here waits on a pipe or a device.
"""

from __future__ import annotations

import json
from pathlib import Path

from steer_heal.errors import InputError


def reachable(given: str | Path) -> Path:
    """The path with `~` filled in, whether or not something is there.

    Raises InputError for a name that nothing here can have: too long, in a circle of links, of nobody's home.
    """
    try:
        path = Path(given).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, RuntimeError) as problem:
        why = getattr(problem, "strerror", None) or problem
        short = f"{str(given)[:60]}..." if len(str(given)) > 60 else str(given)
        raise InputError(f"{short!r} names no file or folder that can be reached ({why}): give another") from problem
    return path


def check_plain(path: Path, shown: str | None = None) -> None:
    """Raises InputError where something is that is no file: opening a pipe waits, a device takes and gives anything."""
    if path.exists() and not path.is_file():
        raise InputError(f"{shown or path}: is a folder, pipe or device: give a file")


def read_bytes(path: str | Path, shown: str | None = None) -> bytes:
    """The content of a file, which a complaint calls `shown`. Raises InputError."""
    path, shown = reachable(path), shown or str(path)
    check_plain(path, shown)
    try:
        return path.read_bytes()
    except OSError as problem:
        raise InputError(f"{shown}: cannot be read ({problem.strerror}): check the path") from problem


def read_text(path: str | Path, shown: str | None = None) -> str:
    """A file as UTF-8 text, which a complaint calls `shown`. Raises InputError."""
    raw = read_bytes(path, shown)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw[: problem.start].count(b"\n") + 1
        raise InputError(f"{shown or path}, line {line}: not UTF-8 text: save the file as UTF-8") from problem


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def from_json(text: str | bytes, once: bool = False) -> object:
    """As `json.loads`, but every text that is no JSON is a ValueError: nested too deep, halves of characters too.

    `once`: so is one with a key twice, of which JSON takes the last; for what a person writes.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once if once else None)
        if "\\ud" in str(text).lower():
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        return found
    except RecursionError:
        raise ValueError("it is nested too deep") from None
