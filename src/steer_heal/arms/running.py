"""Arms times seeds as processes: what is finished stays, what is stale is refused, what fails does not stop the rest.

Knows nothing of figures. One process per core with one thread each: more threads than cores make all of them slower.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from steer_heal.arms.definitions import Arm
from steer_heal.errors import InputError
from steer_heal.ledger import Ledger, plain, write_json

NOT_IN_A_FIGURE = (
    "arms",
    "benchmarks",
    "matrix",
    "report",
    "templates",
    "console.py",
    "headline.py",
    "study.py",
    "tables.py",
)
"""Parts of the package that only show or compare figures: a change of theirs makes no run stale."""
POLL = 0.5
"""Seconds between two looks at the running processes."""
SAY_EVERY = 30.0
"""Seconds between progress lines while no run starts or ends."""
DONE, STOPPED_BY_METHOD = 0, 3
"""Exit codes of a run that came to its end (see `steer_heal.run`)."""


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


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end: which one, its exit code, the last lines it wrote, and where all are."""

    name: str
    code: int
    tail: str
    log: Path

    def __str__(self) -> str:
        return f"{self.name} failed with exit code {self.code} ({self.log}): {self.tail}"


def make_jobs(arms: Sequence[Arm], seeds: Sequence[int], out: Path, common: Sequence[str] = ()) -> list[Job]:
    """Every run, seed by seed, so that an interrupted command leaves whole seeds. InputError for unusable options."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds {list(seeds)}: give at least one, each once")
    return [
        Job(arm, seed, out / f"{arm.name}_s{seed}", (*common, *arm.options), plain(arm.config(seed, common).to_dict()))
        for seed in seeds for arm in arms
    ]  # fmt: skip


def source_hash(package: Path | None = None) -> str:
    """Hash of all code and data that a run's figures come from; comments, docstrings and layout do not count."""
    package = package or Path(__file__).resolve().parents[1]
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
            node.body = [
                line for line in body
                if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
                        and isinstance(line.value.value, str))
            ]  # fmt: skip
    return ast.dump(tree)


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


def run_jobs(
    jobs: Sequence[Job],
    workers: int | None = None,
    redo: bool = False,
    say: Callable[[str], None] = print,
    command: Callable[[Job], list[str]] = Job.command,
) -> list[Failure]:
    """Run what is missing, `workers` processes at a time (None: one per core); returns the runs that failed.

    Raises InputError before anything is started when a finished run is stale (see `missing`). When interrupted, the
    running processes are ended; the same command goes on where this one was.
    """
    source = source_hash()
    waiting = missing(jobs, source, redo)
    workers = workers or cores()
    if waiting:
        say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished; {len(waiting)} to go, {workers} at a time")
    clock = Clock(sum(job.n_rounds for job in waiting))
    running: dict[Job, subprocess.Popen] = {}
    failures, ended, said, moved = [], 0, time.monotonic(), False
    order = iter(list(waiting))
    try:
        while True:
            changed = False
            for job in [job for job, process in running.items() if process.poll() is not None]:
                failures += _ended(job, running.pop(job).returncode, say)
                ended, changed = ended + 1, True
                clock.settled += job.n_rounds
            while not moved and len(running) < workers and (job := next(order, None)) is not None:
                if moved := source_hash() != source:
                    say("the source has changed: what is running goes on, nothing new is started")
                    break
                running[job] = _start(job, source, command)
                changed = True
            if not running:
                break
            if changed or time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                say(clock.line(ended, len(waiting), running))
            time.sleep(POLL)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    if moved:
        raise InputError(
            f"the source changed while the arms were running, {len(waiting) - ended} runs were not started: start "
            "again when it is at rest, with --redo"
        )
    return failures


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Only one command runs arms in a folder: another would take its unfinished runs for abandoned ones.

    Raises InputError while the process named in `arms.lock` is alive.
    """
    lock = out / "arms.lock"
    out.mkdir(parents=True, exist_ok=True)
    if lock.is_file() and _alive(int(lock.read_text() or 0)):
        raise InputError(
            f"{out}: process {lock.read_text()} is running arms in it: wait for it, or choose another --out"
        )
    lock.write_text(str(os.getpid()))
    try:
        yield
    finally:
        lock.unlink()


def _alive(process: int) -> bool:
    if process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's, but there
        return True
    return True


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(job: Job, source: str, command: Callable[[Job], list[str]]) -> subprocess.Popen:
    job.folder.mkdir(parents=True, exist_ok=True)
    clear(job.folder)
    write_json(job.folder / "arm.json", {"arm": job.arm.name, "options": job.options, "source": source})
    one = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    with open(job.folder / "log.txt", "w", encoding="utf-8") as log:
        return subprocess.Popen(command(job), stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **one})


def _ended(job: Job, code: int, say: Callable[[str], None]) -> list[Failure]:
    ledger = finished(job.folder)
    if code in (DONE, STOPPED_BY_METHOD) and ledger is not None:
        end = ledger.events("end")[-1]
        say(f"{job.name}: {end['verdict']}, best round {end['best_round']}, {end['seconds']:.0f} s")
        return []
    log = job.folder / "log.txt"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    failure = Failure(job.name, code, lines[-1] if lines else "it wrote nothing", log)
    say(str(failure))
    return [failure]


class Clock:
    """Progress in rounds, and the time they will still take at the pace so far."""

    def __init__(self, total: int):
        self.total = total
        self.settled = 0
        self.started = time.monotonic()

    def line(self, ended: int, runs: int, running: Sequence[Job] | dict[Job, object]) -> str:
        """`3 of 18 runs, 31 of 180 rounds; now nll_s10 (round 1); 4:10 gone, about 20:00 left`."""
        inside = {job: rounds_done(job.folder) for job in running}
        done = self.settled + sum(inside.values())
        gone = time.monotonic() - self.started
        left = f"about {minutes(gone / done * (self.total - done))} left" if done else "time left not known yet"
        now = ", ".join(f"{job.name} (round {n})" for job, n in inside.items())
        return f"{ended} of {runs} runs, {done} of {self.total} rounds; now {now}; {minutes(gone)} gone, {left}"


def rounds_done(folder: Path) -> int:
    """Complete rounds of the run in a job's folder."""
    return sum(path.name.isdigit() for path in folder.glob("*/rounds/*"))


def minutes(seconds: float) -> str:
    """`4:10`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
