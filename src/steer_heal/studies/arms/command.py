"""Arms as a command: its options, the runs that are missing, then the page, the CSV file and the plots.

Knows nothing of the method.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from steer_heal.errors import InputError
from steer_heal.studies.arms import tables
from steer_heal.studies.arms.bar import bar_lines
from steer_heal.studies.arms.comparing import matched, paired
from steer_heal.studies.arms.definitions import DEFAULT_ARMS, Arm, select
from steer_heal.studies.arms.jobs import Job, finished, make_jobs, recorded_source, source_hash, stale
from steer_heal.studies.arms.places import On, place
from steer_heal.studies.arms.plots import write_plots
from steer_heal.studies.arms.reading import ArmRun, read_run
from steer_heal.studies.arms.running import Failure, alone, minutes, run_jobs
from steer_heal.studies.writing import markdown, say, write_csv


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
    on: On = "local"
    """Where runs run: processes here, tasks of Ray, jobs of Slurm (`pip install 'steer-heal[ray]'`, `[slurm]`)."""
    address: str | None = None
    """Ray: the cluster, as `auto` or HOST:PORT; default one that is started here for this command."""
    gpus: float = 0
    """Ray: cards per run; at .25 four runs share one."""
    slurm: tuple[str, ...] = ()
    """Slurm: options of sbatch as KEY=VALUE, for example partition=gpu gres=gpu:1 time=2:00:00."""
    workers: int = 0
    """Runs at a time; 0: one per core, and on a cluster as many as it takes."""
    redo: bool = False
    """Make finished runs again that have other options or another source than now; without it they are refused."""
    levels: tuple[float, ...] = (0.5, 1.0, 1.5)
    """Log-odds shifts in nats at which arms are compared at equal trait."""
    tables: bool = False
    """Run nothing: compare the finished runs that are in OUT, whatever options and source they were made with."""


def arms(arguments: Arguments) -> tuple[list[Failure], str]:
    """Run, compare, write; returns the runs that failed, and the page (empty where nothing could be compared).

    Raises InputError for unusable arguments and stale runs.
    """
    common = ("--n-rounds", str(arguments.n_rounds), *shlex.split(arguments.options))
    chosen, out = select(arguments.arms, arguments.arm), arguments.out
    if min(arguments.workers, arguments.gpus) < 0:
        raise InputError("--workers and --gpus take 0 or more")
    if not all(level > 0 for level in arguments.levels):
        raise InputError("--levels takes nats above 0")
    jobs = make_jobs(chosen, arguments.seeds, out, common)
    failures = []
    if not arguments.tables:
        with alone(out):
            where = place(arguments.on, out, arguments.workers, arguments.address, arguments.gpus, arguments.slurm)
            failures = run_jobs(jobs, where, arguments.redo, say)
    in_order = sorted(jobs, key=lambda job: (chosen.index(job.arm), arguments.seeds.index(job.seed)))
    ledgers = {job: ledger for job in in_order if (ledger := finished(job.folder)) is not None}
    if not ledgers:
        if failures:
            return failures, ""
        raise InputError(f"{out}: no finished run of these arms and seeds, there is nothing to compare")
    found = {job: read_run(job.arm.name, job.seed, ledger) for job, ledger in ledgers.items()}
    runs = list(found.values())
    text = page(chosen, runs, arguments.levels, common, remarks(jobs, found, failures))
    (out / "arms.md").write_text(text, encoding="utf-8")
    write_csv(out / "arms.csv", list(tables.as_written(runs)))
    plots = ", ".join(path.name for path in write_plots(out, runs))
    return failures, f"{text}\nwritten to {out}: arms.md, arms.csv, {plots}"


def page(
    arms: Sequence[Arm], runs: Sequence[ArmRun], levels: Sequence[float], common: Sequence[str], notes: Sequence[str]
) -> str:
    """All tables with their legends, as Markdown."""
    seeds, base, first = list(dict.fromkeys(run.seed for run in runs)), runs[0].base.metrics, runs[0].arm
    head = (
        f"# Arms\n\n{len(runs)} runs, seeds {', '.join(map(str, seeds))}; within a seed all arms are measured on the "
        f"same {len(base.items)} forced-choice items and {len(base.replies)} replies."
    )
    lines = bar_lines(runs)
    legend = f"{tables.bar_summary(lines)}\n\n{tables.BAR_LEGEND}"
    against = tables.PAIRED_LEGEND.format(first=first)
    parts = {
        "The bar": (legend, tables.bar_rows(lines, seeds)),
        "Every arm, round by round": (tables.COMBINED_LEGEND, tables.combined_rows(runs)),
        f"Against {first}, paired": (against, tables.paired_rows(paired(runs))),
        "At equal trait": (tables.MATCHED_LEGEND, tables.matched_rows(matched(runs, levels))),
        "What each round was made of": (tables.MAKING_LEGEND, tables.making_rows(runs)),
    }
    shown = [f"## {title}\n\n{said}\n\n{markdown(rows)}" for title, (said, rows) in parts.items() if rows]
    return "\n\n".join([head, *notes, markdown(tables.arms_rows(arms, runs, common)), *shown]) + "\n"


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
