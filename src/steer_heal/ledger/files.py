"""Files that appear whole or not at all: a temporary name, flushed to the disk, renamed. Ctrl-C waits for the rename.

Knows nothing of runs. A write that fails is one clear error, and what was there before is still there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from steer_heal.errors import NotWrittenError
from steer_heal.reading import check_plain

PARTIAL = ".partial"
"""Suffix of what is not written to its end; it never counts as a result."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step. Raises NotWrittenError; the file is then the old one, or none."""
    partial = path.with_name(path.name + PARTIAL)
    with uninterrupted(), _clear_errors(path):
        _write(partial, "wb", content)
        os.replace(partial, path)
        _flush(path.parent)


def readable(path: str | Path) -> None:
    """Give a file the mode that any new one has; safetensors makes its own for the owner alone."""
    os.umask(mask := os.umask(0))
    os.chmod(path, 0o666 & ~mask)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    write_whole(path, text.encode("utf-8"))


def indented(content: object) -> str:
    """Indented JSON; NaN and infinity become null."""
    return json.dumps(plain(content), indent=1, ensure_ascii=False) + "\n"


def write_json(path: Path, content: object) -> None:
    """Write indented JSON in one step; NaN and infinity become null."""
    write_text(path, indented(content))


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


def append_whole(path: Path, line: str) -> None:
    """Add one line to a file. Raises NotWrittenError; a torn line has no line end, see `whole_lines`."""
    with uninterrupted(), _clear_errors(path):
        new = not path.exists()
        _write(path, "ab", f"{line}\n".encode())
        if new:
            _flush(path.parent)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file without a torn last one; empty without the file."""
    check_plain(path)
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].decode("utf-8", "replace").split("\n")[:-1]


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that was not written to its end."""
    with _clear_errors(path), open(path, "r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def move_whole(partial: Path, final: Path) -> None:
    """Flush a filled folder to the disk and give it its name. Raises NotWrittenError."""
    with uninterrupted(), _clear_errors(final):
        for path in (*sorted(partial.rglob("*")), partial):
            _flush(path)
        os.replace(partial, final)
        _flush(final.parent)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to fill; it gets its name when the block ends without an exception, in place of one that has it.

    Raises NotWrittenError.
    """
    partial, before = (final.with_name(f"{final.name}{suffix}") for suffix in (PARTIAL, f".before{PARTIAL}"))
    with _clear_errors(final):
        for left in (partial, before):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()
    yield partial
    with uninterrupted(), _clear_errors(final):
        if final.exists():
            os.replace(final, before)
        move_whole(partial, final)
        shutil.rmtree(before, ignore_errors=True)


def _write(path: Path, mode: str, content: bytes) -> None:
    check_plain(path)
    with open(path, mode) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    """A file, or a folder: without it a new name may be lost with the power, even if its content is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def same_files(one: Path, other: Path) -> str | None:
    """Name of the first file that two folders do not share byte for byte; None when they are equal."""
    names = sorted({p.relative_to(f) for f in (one, other) for p in f.rglob("*") if p.is_file()})
    for name in names:
        both = one / name, other / name
        if not all(p.is_file() for p in both) or both[0].read_bytes() != both[1].read_bytes():
            return str(name)
    return None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C inside the block takes effect at its end. Only the main thread gets it, so elsewhere nothing is to do."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    waiting: list[tuple] = []
    signal.signal(signal.SIGINT, lambda *got: waiting.append(got))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            before(*waiting[0])


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise NotWrittenError(f"{path} cannot be written ({problem.strerror or problem})") from problem
