"""Named arms x seeds: run what is missing, one process per core; then the tables and plots that compare them.

    uv run python scripts/arms.py --seeds 10 11 12 --n-rounds 10            # `just results`
    uv run python scripts/arms.py --arms default nll --seeds 0 --arm tight="--reg kl_rev --tau .1"
    uv run python scripts/arms.py --tables --out out/arms                   # run nothing, only compare

Writes arms.md, arms.csv and three plots to OUT. The same command again goes on where it was. Knows nothing of the
method; the arms are options of `python -m steer_heal.run`.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores belong to the runs

import tyro

from steer_heal.commands.script import run_script
from steer_heal.errors import InputError
from steer_heal.studies.arms import ArmRun, Failure, Job, make_jobs, read_run, run_jobs, select, write_tables
from steer_heal.studies.arms.definitions import DEFAULT_ARMS
from steer_heal.studies.arms.jobs import finished, recorded_source, stale
from steer_heal.studies.arms.plots import write_plots
from steer_heal.studies.arms.running import alone, minutes
from steer_heal.studies.arms.source import source_hash


@dataclass(frozen=True)
class Arguments:
    """Arms times seeds of the main job."""

    arms: tuple[str, ...] = DEFAULT_ARMS
    """Arms by name, the first is what the others are paired with. Besides these: open-nll, open-kl, and any --arm."""
    arm: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An arm of your own, NAME="--option value ..."; again for another one."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every arm."""
    n_rounds: int = 10
    """Rounds of every run."""
    options: str = ""
    """Further options of every run, written as --options="--option value ..."; an arm's own win over them."""
    out: Path = Path("out/arms")
    """Folder of runs (OUT/ARM_sSEED), tables and plots."""
    workers: int = 0
    """Runs at a time; 0: one per core."""
    redo: bool = False
    """Make finished runs again that have other options or another source than now; without it they are refused."""
    levels: tuple[float, ...] = (0.5, 1.0, 1.5)
    """Log-odds shifts in nats at which arms are compared at equal trait."""
    tables: bool = False
    """Run nothing: compare the finished runs that are in OUT, whatever options and source they were made with."""


def arms(arguments: Arguments) -> list[Failure]:
    """Run, compare, write; returns the runs that failed. Raises InputError for unusable arguments and stale runs."""
    common = ("--n-rounds", str(arguments.n_rounds), *shlex.split(arguments.options))
    chosen = select(arguments.arms, arguments.arm)
    if arguments.workers < 0 or not all(level > 0 for level in arguments.levels):
        raise InputError("--workers takes 0 or more, --levels nats above 0")
    jobs = make_jobs(chosen, arguments.seeds, arguments.out, common)
    failures = []
    if not arguments.tables:
        with alone(arguments.out):
            failures = run_jobs(jobs, arguments.workers or None, arguments.redo, lambda line: print(line, flush=True))
    in_order = sorted(jobs, key=lambda job: (chosen.index(job.arm), arguments.seeds.index(job.seed)))
    found = [(job, ledger) for job in in_order if (ledger := finished(job.folder)) is not None]
    if not found and not failures:
        raise InputError(f"{arguments.out}: no finished run of these arms and seeds, there is nothing to compare")
    if found:
        read = {job: read_run(job.arm.name, job.seed, ledger) for job, ledger in found}
        runs, notes = list(read.values()), remarks(jobs, read, failures)
        print("\n" + write_tables(arguments.out, chosen, runs, arguments.levels, common, notes))
        plots = write_plots(arguments.out, runs)
        print(f"written to {arguments.out}: arms.md, arms.csv, {', '.join(path.name for path in plots)}")
    for failure in failures:
        print(f"arms: {failure}", file=sys.stderr)
    return failures


def remarks(jobs: list[Job], found: dict[Job, ArmRun], failures: list[Failure]) -> list[str]:
    """What a reader must know of the runs: source, machine and time, what failed, is missing or was made otherwise."""
    sources = sorted({recorded_source(job.folder) or "unknown" for job in found})
    mixed = " - the runs are NOT of one version" if len(sources) > 1 else ""
    seconds = sum(run.seconds for run in found.values())
    places = "; ".join(dict.fromkeys(machine(run.folder) for run in found.values()))
    out = [f"Source {', '.join(sources)}{mixed}; {places}; {minutes(seconds)} minutes of runs, added up."]
    now, failed = source_hash(), {failure.name for failure in failures}
    if otherwise := [f"{job.name} {why}" for job in found if (why := stale(job, now))]:
        out.append(f"Not as asked for now, shown all the same: {'; '.join(otherwise)}.")
    out += [f"FAILED: {failure}" for failure in failures]
    missing = [job.name for job in jobs if job not in found and job.name not in failed]
    return out + ([f"Not run: {', '.join(missing)}."] if missing else [])


def machine(folder: Path) -> str:
    """Where a run was made, in words."""
    found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    where = found["cuda"] or found["cpu"]
    return f"{where}, torch {found['versions']['torch']}, transformers {found['versions']['transformers']}"


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 some run failed, 2 unusable input, 130 interrupted."""
    again = "the same command goes on with the runs that are missing"
    return run_script(Arguments, lambda given: 1 if arms(given) else 0, argv, __doc__, "arms", again)


if __name__ == "__main__":
    sys.exit(main())
