"""A folder of its own for every run, and one process at a time in it.

Knows nothing of what is in the folder.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from contextlib import suppress
from pathlib import Path

from steer_heal.errors import InputError
from steer_heal.reading import check_plain


def made_folder(root: Path, label: str) -> Path:
    """Make `root/<time>_<label>`, with a number behind it where that is there already."""
    label = "".join(c if c.isalnum() or c in "-_." else "-" for c in label).strip("-.") or "run"
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}_{label}"
    root.mkdir(parents=True, exist_ok=True)
    for n in itertools.count(1):
        folder = root / (stem if n == 1 else f"{stem}-{n}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


class FolderLock:
    """The file `lock` in a folder: it names the process that has the folder, and is locked by it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = None

    def take(self) -> None:
        """Take the folder for this process, until `release`. Raises InputError when another one has it."""
        check_plain(self.folder / "lock")
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
