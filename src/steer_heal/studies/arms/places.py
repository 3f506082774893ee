"""Where runs run: processes of this machine, tasks of a Ray cluster, jobs of Slurm. Submit one, ask for its exit code.

Knows nothing of arms. When and on which node a run starts is for Ray and Slurm to say; both need a file system that
all nodes see under the same paths, with this environment on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from steer_heal.errors import InputError, library
from steer_heal.studies.arms.jobs import source_hash

On = Literal["local", "ray", "slurm"]
POLL = 0.5
"""Seconds between two looks at what is running."""
LOST = -1
"""Exit code of a run whose machine or worker went away."""
REFUSED = 2
"""Exit code of a run that cannot use its input (see `steer_heal.run`)."""


@dataclass(frozen=True)
class Task:
    """A command (its first word is this Python, or the node's), what it adds to the environment, where its words go.

    Attributes:
        source: hash of the package that the command is meant for; a node with another one refuses it.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    source: str
    folder: str = field(default_factory=os.getcwd)

    def start(self) -> subprocess.Popen:
        """The process, here and now."""
        self.log.unlink(missing_ok=True)  # a process whose worker was killed may still write to the old one
        with open(self.log, "w", encoding="utf-8") as log:
            words = [sys.executable, *self.command[1:]]
            environment = {**os.environ, **self.environment}
            return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.folder)


def attend(task: Task) -> int:
    """Run a task on the node where this is called; returns its exit code. The process ends when this is interrupted."""
    if source_hash() != task.source:
        task.log.write_text("the package on this node is another version than the command's\n", encoding="utf-8")
        return REFUSED
    process = task.start()
    try:
        while process.poll() is None:  # a wait in the kernel would keep an interrupt from being seen
            time.sleep(POLL)
        return process.returncode
    finally:
        process.kill()


class Handle(Protocol):
    """A submitted task."""

    def code(self) -> int | None:
        """Its exit code, LOST where there is none; None while it waits or runs."""

    def end(self) -> None:
        """End it, or take it out of the queue."""


class Place(Protocol):
    """Somewhere to run tasks; `at_once` of them are submitted at a time, None: all."""

    at_once: int | None

    def submit(self, task: Task) -> Handle: ...


def place(on: On, out: Path, workers: int, address: str | None, gpus: float, slurm: Sequence[str]) -> Place:
    """The place that the options of a sweep name. Raises InputError for options of another place or a missing extra."""
    if on != "ray" and (address or gpus):
        raise InputError("--address and --gpus belong to --on ray")
    if on != "slurm" and slurm:
        raise InputError("--slurm belongs to --on slurm")
    if on == "ray":
        return Ray(workers, address, gpus)
    return Slurm(out / "slurm", workers, slurm) if on == "slurm" else Local(workers)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------- this machine


@dataclass(frozen=True)
class Process:
    process: subprocess.Popen

    def code(self) -> int | None:
        return self.process.poll()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


class Local:
    """Processes of this machine, by default one per core."""

    def __init__(self, workers: int = 0):
        self.at_once = workers or cores()

    def submit(self, task: Task) -> Process:
        return Process(task.start())


# ---------------------------------------------------------------- Ray


@dataclass(frozen=True)
class RayTask:
    ray: object
    reference: object
    log: Path

    def code(self) -> int | None:
        if not self.ray.wait([self.reference], timeout=0)[0]:
            return None
        try:
            return self.ray.get(self.reference)
        except self.ray.exceptions.RayError as problem:
            return lost(self.log, problem)

    def end(self) -> None:
        self.ray.cancel(self.reference)
        self.ray.wait([self.reference], timeout=30)


class Ray:
    """Tasks of one CPU and `gpus` of a card (.25: four share one) on a cluster, or on one started here and now.

    Raises InputError where ray is not installed or no cluster answers.
    """

    def __init__(self, workers: int = 0, address: str | None = None, gpus: float = 0):
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # nodes have this environment: nothing is sent
        self.ray = library("ray", "'steer-heal[ray]'")
        here = {} if address else {"num_cpus": workers or None, "include_dashboard": False}
        try:
            self.ray.init(address or "local", log_to_driver=False, logging_level="error", **here)
        except Exception as problem:  # Ray's own, of many kinds: no answer, another version, no room for a cluster
            raise InputError(f"--on ray: no cluster at {address or 'this machine'}: {problem}") from problem
        if gpus > (there := self.ray.cluster_resources().get("GPU", 0)):
            raise InputError(f"--gpus {gpus:g}: the cluster has {there:g}")
        self.at_once = workers or None
        self.attend = self.ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(attend)

    def submit(self, task: Task) -> RayTask:
        return RayTask(self.ray, self.attend.remote(task), task.log)


# ---------------------------------------------------------------- Slurm


@dataclass(frozen=True)
class SlurmJob:
    job: object
    problems: type[Exception]
    log: Path

    def code(self) -> int | None:
        if not self.job.done():
            return None
        try:
            return self.job.result()
        except self.problems as problem:
            return lost(self.log, problem)

    def end(self) -> None:
        self.job.cancel()


class Slurm:
    """Jobs of Slurm through submitit; `options` are sbatch's, `key=value`. Their scripts and logs lie in `folder`.

    Raises InputError where submitit or Slurm is missing, and for an option without a value.
    """

    def __init__(self, folder: Path, workers: int = 0, options: Sequence[str] = (), cluster: str = "slurm"):
        submitit = library("submitit", "'steer-heal[slurm]'")
        if cluster == "slurm" and shutil.which("srun") is None:
            raise InputError("--on slurm: this machine has no srun; start the command where jobs are submitted")
        if wrong := [option for option in options if "=" not in option]:
            raise InputError(f"--slurm {wrong[0]}: write sbatch's options as key=value, for example time=2:00:00")
        asked = {key.replace("-", "_"): value for key, value in (option.split("=", 1) for option in options)}
        self.executor = submitit.AutoExecutor(folder, cluster=cluster)
        self.executor.update_parameters(name="steer_heal", timeout_min=24 * 60, slurm_additional_parameters=asked)
        self.problems = submitit.core.utils.UncompletedJobError
        self.at_once = workers or None

    def submit(self, task: Task) -> SlurmJob:
        return SlurmJob(self.executor.submit(attend, task), self.problems, task.log)


def lost(log: Path, problem: Exception) -> int:
    """Leave what is known of a run that gave no exit code as the last line of its log."""
    said = [line.strip() for line in str(problem).splitlines() if line.strip()]
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n{type(problem).__name__}: {said[-1] if said else 'no reason given'}\n")
    return LOST
