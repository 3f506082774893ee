"""The run folder: configuration, environment, an append-only event log, rounds that appear whole or not at all.

Knows nothing of models. Everything a report shows can be redrawn from what is here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from steer_heal.errors import InputError

SCHEMA_VERSION = 1
LIBRARIES = ("steer-heal", "torch", "transformers", "tokenizers", "peft", "safetensors", "numpy")


class Ledger:
    """One run's folder. `record` appends an event and tells the listeners; `round_folder` commits a round."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.listeners: list[Callable[[dict], None]] = []

    @classmethod
    def create(cls, root: str | Path, label: str, config: Mapping) -> Ledger:
        """Make `root/<time>_<label>/` with `config.json` and `environment.json`.

        Raises InputError when the folder cannot be written.
        """
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}_{_safe(label)}"
        root = Path(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder = next(f for f in _candidates(root, stem) if _made(f))
            (folder / "rounds").mkdir()
        except OSError as problem:
            raise InputError(
                f"output folder {str(root)!r} cannot be written ({problem.strerror}): choose another with --out"
            ) from problem
        ledger = cls(folder)
        ledger.write_json("config.json", {"schema_version": SCHEMA_VERSION, **config})
        ledger.write_json("environment.json", environment())
        return ledger

    def part(self, name: str, config: Mapping) -> Ledger:
        """A ledger of its own for a part of this run, such as a control, in the folder `name` inside this one."""
        folder = self.folder / name
        (folder / "rounds").mkdir(parents=True)
        ledger = Ledger(folder)
        ledger.write_json("config.json", {"schema_version": SCHEMA_VERSION, **config})
        ledger.write_json("environment.json", environment())
        return ledger

    @classmethod
    def open(cls, folder: str | Path) -> Ledger:
        """An existing run. Raises InputError when the folder is none or was made by another version."""
        config = Path(folder) / "config.json"
        if not config.is_file():
            raise InputError(f"{str(folder)!r} is no run folder (no config.json): point to one under out/")
        version = json.loads(config.read_text(encoding="utf-8")).get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(f"{str(folder)!r} was written with schema {version}, this version reads {SCHEMA_VERSION}")
        return cls(Path(folder))

    @property
    def config(self) -> dict:
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

    def record(self, stage: str, round: int | None = None, **figures) -> dict:
        """Append one event (stage, round, seconds since the epoch, figures) and hand it to the listeners."""
        event = plain({"stage": stage, "round": round, "time": time.time(), **figures})
        with open(self.folder / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for listener in self.listeners:
            listener(event)
        return event

    def events(self, stage: str | None = None) -> list[dict]:
        """All events in order, or those of one stage."""
        path = self.folder / "events.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        found = [json.loads(line) for line in lines]
        return found if stage is None else [event for event in found if event["stage"] == stage]

    @contextmanager
    def round_folder(self, round: int) -> Iterator[Path]:
        """A folder to fill; it appears as `rounds/NN` only when the block ends without an exception."""
        final = self.folder / "rounds" / f"{round:02d}"
        partial = final.with_name(final.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        for path in sorted(p for p in partial.rglob("*") if p.is_file()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, final)

    def write_json(self, name: str, content: object) -> None:
        """Write a JSON file of the run folder in one step."""
        write_json(self.folder / name, content)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run folder in one step."""
        write_text(self.folder / name, text)

    def append_result(self, row: Mapping[str, object]) -> None:
        """Add one line to `results.tsv` beside the runs; a new file gets the header first."""
        path = self.folder.parent / "results.tsv"
        header = "" if path.exists() else "\t".join(row) + "\n"
        with open(path, "a", encoding="utf-8") as file:
            file.write(header + "\t".join(_cell(value) for value in row.values()) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, flush to disk, rename."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


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


def environment() -> dict:
    """What a reader needs to repeat the run: command, versions, hardware, source state."""
    import torch

    package = Path(__file__).resolve().parent
    return {
        "argv": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "cpu_threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "imported_from": str(package),
        **_source_state(package),
    }


def _source_state(package: Path) -> dict:
    """Commit of the source tree and a hash of its uncommitted changes; None outside a git checkout."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(package), *args], capture_output=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("diff", "HEAD")
    dirty = hashlib.sha256(changes.encode()).hexdigest() if changes else None
    return {"git_commit": commit.strip() if commit else None, "uncommitted_sha256": dirty}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


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
