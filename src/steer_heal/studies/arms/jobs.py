"""Arms times seeds as jobs: each one's folder and options, and whether it is finished, missing or stale.

Knows nothing of processes and figures. A run is stale when it has other options, or was made by another source: a hash
of the package's code and data.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from steer_heal.errors import InputError
from steer_heal.ledger import Ledger, plain
from steer_heal.studies.arms.definitions import Arm


@dataclass(frozen=True, eq=False)
class Job:
    """One run of one arm: its folder OUT/ARM_sSEED, the options to type, and what its config.json will say."""

    arm: Arm
    seed: int
    folder: Path
    options: tuple[str, ...]
    config: dict

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def n_rounds(self) -> int:
        return self.config["n_rounds"]

    def command(self) -> list[str]:
        """The process of this run."""
        options = [*self.options, "--seed", str(self.seed), "--out", str(self.folder), "--quiet"]
        return [sys.executable, "-m", "steer_heal.run", *options]


def make_jobs(arms: Sequence[Arm], seeds: Sequence[int], out: Path, common: Sequence[str] = ()) -> list[Job]:
    """Every run, seed by seed, so that an interrupted command leaves whole seeds. InputError for unusable options."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds {list(seeds)}: give at least one, each once")
    jobs = []
    for seed in seeds:
        for arm in arms:
            config = plain(arm.config(seed, common).to_dict())
            jobs.append(Job(arm, seed, out / f"{arm.name}_s{seed}", (*common, *arm.options), config))
    return jobs


def finished(folder: Path) -> Ledger | None:
    """The newest run inside a folder that came to its end; None without one. A run's controls are not looked at."""
    for config in sorted(folder.glob("*/config.json"), reverse=True):
        ledger = Ledger.open(config.parent)
        if ledger.events("end"):
            return ledger
    return None


def stale(job: Job, source: str) -> str | None:
    """Why a finished run does not count for this job: other options, another source; None when it does."""
    try:
        ledger = finished(job.folder)
    except InputError:
        return "was made by a version whose run folders were different"
    if ledger is None:
        return None
    made = {k: v for k, v in ledger.config.items() if k not in ("schema_version", "out", "quiet")}
    asked = {k: v for k, v in job.config.items() if k not in ("out", "quiet")}
    other = [key for key in {**made, **asked} if made.get(key) != asked.get(key)]
    if other:
        key = other[0]
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        return f"was made with {key} {made.get(key)!r} and not {asked.get(key)!r}{more}"
    return "was made by another version of the source" if recorded_source(job.folder) != source else None


def recorded_source(folder: Path) -> str | None:
    """The source hash written when the run in this folder was started; None for a run that was started otherwise."""
    path = folder / "arm.json"
    return json.loads(path.read_text(encoding="utf-8"))["source"] if path.is_file() else None


def missing(jobs: Sequence[Job], source: str, redo: bool = False) -> list[Job]:
    """The jobs that have to be run. Raises InputError for stale runs, unless they are to be made again."""
    reasons = {job.name: why for job in jobs if (why := stale(job, source))}
    if reasons and not redo:
        name, why = next(iter(reasons.items()))
        more = f" ({len(reasons) - 1} more like it)" if len(reasons) > 1 else ""
        raise InputError(f"{name} {why}{more}: --redo makes such runs again, another --out keeps them")
    return [job for job in jobs if job.name in reasons or finished(job.folder) is None]


def clear(folder: Path) -> None:
    """Remove the runs inside a job's folder: unfinished ones, and those that are made again."""
    for config in folder.glob("*/config.json"):
        shutil.rmtree(config.parent)
    (folder / "results.tsv").unlink(missing_ok=True)


# ---------------------------------------------------------------- the source that runs come from

NOT_IN_A_FIGURE = ("report", "studies")
"""Parts of the package that only show or compare figures: a change of theirs makes no run stale."""


def source_hash(package: Path | None = None) -> str:
    """Hash of all code and data that a run's figures come from; comments, docstrings and layout do not count."""
    package = package or Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        relative = path.relative_to(package)
        if relative.parts[0] in NOT_IN_A_FIGURE:
            continue
        content = path.read_bytes()
        digest.update(f"{relative.as_posix()}\n".encode())
        digest.update(_code(content).encode() if path.suffix == ".py" else hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


@cache
def _code(source: bytes) -> str:
    """The syntax tree without strings that stand alone."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_docstring(line)]
    return ast.dump(tree)


def _is_docstring(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
