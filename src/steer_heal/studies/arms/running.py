"""Jobs at a place: what is finished stays, what is stale is refused, what fails is tried once more, then reported.

Knows nothing of figures and of where runs run. Each has one thread: more threads than cores make all of them slower.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from steer_heal.errors import InputError
from steer_heal.ledger import write_json
from steer_heal.ledger.places import FolderLock
from steer_heal.studies.arms.jobs import Job, clear, finished, missing, source_hash
from steer_heal.studies.arms.places import POLL, REFUSED, Handle, Local, Place, Task

SAY_EVERY = 30.0
"""Seconds between progress lines while no run starts or ends."""
DONE, STOPPED_BY_METHOD = 0, 3
"""Exit codes of a run that came to its end (see `steer_heal.run`)."""
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end: which one, its exit code, the last lines it wrote, and where all are."""

    name: str
    code: int
    tail: str
    log: Path

    def __str__(self) -> str:
        return f"{self.name} failed with exit code {self.code} ({self.log}): {self.tail}"


AGAIN = "the same command goes on with the runs that are missing"
"""What a command that is interrupted says."""


def told(name: str, failures: Sequence[Failure], page: str) -> int:
    """Print the page of a command, and the runs that failed on stderr; returns its exit code, 1 where some did."""
    if page:
        print(f"\n{page}")
    for failure in failures:
        print(f"{name}: {failure}", file=sys.stderr)
    return 1 if failures else 0


def run_jobs(
    jobs: Sequence[Job],
    place: Place | None = None,
    redo: bool = False,
    say: Callable[[str], None] = print,
    command: Callable[[Job], list[str]] = Job.command,
) -> list[Failure]:
    """Run what is missing at a place (None: here, one process per core); returns the runs that failed twice.

    A machine may have died or filled up, so a failure is tried once more, unless the run refused its input. Raises
    InputError before anything is started when a finished run is stale (see `missing`). When interrupted, what is
    running is ended; the same command goes on where this one was.
    """
    source, place = source_hash(), place or Local()
    waiting = missing(jobs, source, redo)
    at_once = place.at_once or len(waiting)
    if waiting:
        say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished; {len(waiting)} to go, {at_once} at a time")
    clock = Clock(sum(job.n_rounds for job in waiting))
    queue, running, failed_once = list(waiting), dict[Job, Handle](), set[Job]()
    failures, ended, said, moved = [], 0, time.monotonic(), False
    try:
        while True:
            changed = False
            for job, code in [(job, handle.code()) for job, handle in running.items()]:
                if code is None:
                    continue
                del running[job]
                changed = True
                failure = _failure(job, code, say)
                if failure and code != REFUSED and job not in failed_once:
                    failed_once.add(job)
                    queue.insert(0, job)
                    continue
                failures += [failure] if failure else []
                ended += 1
                clock.settled += job.n_rounds
            while queue and not moved and len(running) < at_once:
                if moved := source_hash() != source:
                    say("the source has changed: what is running goes on, nothing new is started")
                    break
                job = queue.pop(0)
                running[job] = place.submit(_task(job, source, command))
                changed = True
            if not running:
                break
            if changed or time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                say(clock.line(ended, len(waiting), running))
            time.sleep(POLL)
    finally:
        for handle in running.values():
            handle.end()
    if moved:
        raise InputError(
            f"the source changed while the arms were running, {len(waiting) - ended} runs were not started: start "
            "again when it is at rest, with --redo"
        )
    return failures


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Only one command runs arms in a folder: another would take its unfinished runs for abandoned ones.

    Raises InputError while another process has the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out)
    lock.take()
    try:
        yield
    finally:
        lock.release()


def _task(job: Job, source: str, command: Callable[[Job], list[str]]) -> Task:
    job.folder.mkdir(parents=True, exist_ok=True)
    clear(job.folder)
    write_json(job.folder / "arm.json", {"arm": job.arm.name, "options": job.options, "source": source})
    return Task(command(job), ONE_THREAD, job.folder.resolve() / "log.txt", source)


def _failure(job: Job, code: int, say: Callable[[str], None]) -> Failure | None:
    """Say how a run ended; None for one that came to its end."""
    ledger = finished(job.folder)
    if code in (DONE, STOPPED_BY_METHOD) and ledger is not None:
        end = ledger.events("end")[-1]
        say(f"{job.name}: {end['verdict']}, best round {end['best_round']}, {end['seconds']:.0f} s")
        return None
    log = job.folder / "log.txt"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    failure = Failure(job.name, code, lines[-1] if lines else "it wrote nothing", log)
    say(str(failure))
    return failure


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
