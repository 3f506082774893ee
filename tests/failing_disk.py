"""A disk that fails at chosen file operations: for tests of what a run says then, and what it leaves."""

import builtins
import fcntl
import io
import os
import sys
import zlib
from pathlib import Path

from safetensors import SafetensorError

from steer_heal.healing import adapter
from steer_heal.steering import vector

AUDITED = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.listdir": 0, "os.scandir": 0}
"""File operations that the interpreter tells of before it does them, and where their path is."""
ARMED = []


@sys.addaudithook
def told(event, args):
    """Every file operation of this process, for the disk that is armed; an exception stops it."""
    if ARMED and event in AUDITED and isinstance(path := args[AUDITED[event]], (str, os.PathLike)):
        ARMED[-1].operate(event, os.fspath(path))


class Disk:
    """Under a folder every operation fails once: open, write (after half of it), flush, lock, rename, mkdir, remove...

    An operation is its kind and its path; of a file that grows, every write. Of all only those of a `share`, chosen by
    the same rule each time. The error numbers take turns.
    """

    def __init__(self, patch, root, errors, share=1):
        self.root, self.errors, self.share, self.failed = str(root), errors, share, {}
        for module in (builtins, io):
            patch.setattr(module, "open", self.opening(module.open))
        for module, name in ((os, "fsync"), (fcntl, "flock")):
            patch.setattr(module, name, self.flushing(name, getattr(module, name)))
        for module in (adapter, vector):
            patch.setattr(module, "save_file", self.saving(module.save_file))

    def __enter__(self):
        ARMED.append(self)

    def __exit__(self, *problem):
        ARMED.pop()

    def operate(self, kind, path, half=lambda: None):
        """Raises OSError the first time."""
        if self not in ARMED or not path.startswith(self.root):
            return
        ARMED.remove(self)  # what is done here is no operation of the run
        try:
            grows = kind in ("write", "fsync") and path.endswith("events.jsonl") and os.path.isfile(path)
            parts = [part for part in path[len(self.root) :].split("/") if "_tiny-random" not in part]
            place = kind, "/".join(parts), Path(path).read_bytes().count(b"\n") if grows else 0
            if place in self.failed or zlib.crc32(repr(place).encode()) % self.share:
                return
            half()
            self.failed[place] = number = self.errors[len(self.failed) % len(self.errors)]
        finally:
            ARMED.append(self)
        raise OSError(number, os.strerror(number), path)

    def opening(self, real):
        def opened(path, mode="r", *args, **options):
            file = real(path, mode, *args, **options)
            wanted = isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.root)
            return Watched(self, file, os.fspath(path)) if wanted and set(mode) & set("wa+") else file

        return opened

    def flushing(self, name, real):
        def flushed(handle, *args):
            number = handle if isinstance(handle, int) else handle.fileno()
            self.operate(name, os.readlink(f"/proc/self/fd/{number}"))
            return real(handle, *args)

        return flushed

    def saving(self, real):
        def saved(tensors, path, **options):
            try:
                self.operate("save_file", os.fspath(path), Path(path).touch)
            except OSError as problem:
                raise SafetensorError(f"Error while serializing: I/O error: {problem.strerror}") from problem
            return real(tensors, path, **options)

        return saved


class Watched:
    """A file whose writes the disk hears of."""

    def __init__(self, disk, file, path):
        self.disk, self.file, self.path = disk, file, path

    def write(self, content):
        self.disk.operate("write", self.path, lambda: self.file.write(content[: len(content) // 2]))
        return self.file.write(content)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.file.close()

    def __iter__(self):
        return iter(self.file)
