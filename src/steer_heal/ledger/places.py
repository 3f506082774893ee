"""A folder of its own for every run, and one process at a time in it.

Knows nothing of what is in the folder.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from steer_heal.errors import InputError


def made_folder(root: Path, label: str) -> Path:
    """Make `root/<time>_<label>`, with a number behind it where that is there already."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}_{_safe(label)}"
    root.mkdir(parents=True, exist_ok=True)
    return next(f for f in _candidates(root, stem) if _made(f))


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


class FolderLock:
    """The file `lock` in a folder: it names the process that has the folder, and is locked by it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = None

    def take(self) -> None:
        """Take the folder for this process, until `release`. Raises InputError when another one has it."""
        self._file = open(self.folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            self._file.seek(0)
            who = self._file.read().strip() or "unknown"
            self.release()
            raise InputError(
                f"{str(self.folder)!r} is in use by process {who}: wait for it to end, or choose another run"
            ) from problem
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let go of the folder."""
        if self._file is not None:
            self._file.close()
            self._file = None
