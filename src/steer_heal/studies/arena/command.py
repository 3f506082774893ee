"""The arena as a command: its options, what is missing is run on all cores, then the page, the CSV and the plot.

Knows nothing of the methods.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.ledger import write_json
from steer_heal.studies.arena.arms import ARMS, PRODUCT, PROMPT
from steer_heal.studies.arena.equal import at_equal_coherence
from steer_heal.studies.arena.ground import Sizes
from steer_heal.studies.arena.measuring import Curve, measured
from steer_heal.studies.arena.table import (
    LEGEND,
    csv_rows,
    curve_table,
    draw,
    main_table,
    recipe_table,
    verdict,
)
from steer_heal.studies.arms.places import cores
from steer_heal.studies.arms.running import alone
from steer_heal.studies.writing import Stopwatch, markdown, say, write_csv, write_page


@dataclass(frozen=True)
class Arguments:
    """Arms times seeds; what is finished in OUT is not run again."""

    arms: tuple[str, ...] = tuple(ARMS)
    """Arms by name."""
    seeds: tuple[int, ...] = (20, 21, 22)
    """Seeds of texts, training and evaluation."""
    model: str = "pocket"
    """Model of all arms."""
    trait: str | None = None
    """Trait with a checker; default by model."""
    rounds: int = 3
    """Rounds of the product; the others have as many texts and steps."""
    texts: int = 160
    """Replies sampled per round."""
    items: int | None = None
    """Forced-choice items of an evaluation; default all."""
    replies: int = 96
    """Held-out replies of an evaluation."""
    tune: bool = False
    """Instead: every arm that has a learning rate at each of three, with half of the evaluation."""
    workers: int = 0
    """Arms at a time; 0: one per core."""
    out: Path = Path("out/arena")
    """Folder of texts, arms, metrics, page, table and plot."""


@dataclass(frozen=True)
class Job:
    """One arm on one seed, at its own learning rate or another."""

    arm: str
    seed: int
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}" + ("" if self.rate is None else f", lr {self.rate:g}")


def arena(arguments: Arguments) -> str:
    """Run what is missing and write arena.md, arena.csv and arena.png (tuning: tuning.md); returns the page."""
    if unknown := [name for name in arguments.arms if name not in ARMS]:
        raise InputError(f"arm {unknown[0]!r} is none of {', '.join(ARMS)}")
    if not arguments.arms or not arguments.seeds:
        raise InputError("give at least one arm and one seed")
    arguments.out.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch()
    with alone(arguments.out):
        if arguments.tune:
            return tuned(arguments, watch)
        jobs = [Job(name, seed) for seed in arguments.seeds for name in arguments.arms]
        done = run(arguments, jobs, sizes(arguments))
        curves = {name: [done[Job(name, seed)] for seed in arguments.seeds] for name in arguments.arms}
        return written(arguments, curves, watch)


def sizes(arguments: Arguments) -> Sizes:
    """What every arm may spend and is measured on; half of it while learning rates are chosen."""
    if arguments.tune:
        return Sizes(arguments.rounds, arguments.texts, items=48, replies=48)
    return Sizes(arguments.rounds, arguments.texts, items=arguments.items, replies=arguments.replies)


def written(arguments: Arguments, curves: dict[str, list[Curve]], watch: Stopwatch) -> str:
    """The page, the CSV and the plot of finished curves."""
    found = at_equal_coherence(curves, unlimited=[PROMPT])
    seeds = ", ".join(map(str, arguments.seeds))
    about = (
        f"{arguments.model}, seeds {seeds}; {arguments.rounds} x {arguments.texts} replies and about as many optimiser "
        f"steps for every arm; {PRODUCT}: its default. {watch} on {arguments.workers or cores()} cores, without what "
        "was finished before."
    )
    parts = {
        "about": about,
        "verdict": verdict(found),
        "table": main_table(curves, found),
        "legend": LEGEND,
        "recipes": recipe_table(list(curves)),
        "curves": curve_table(curves),
    }
    write_csv(arguments.out / "arena.csv", csv_rows(curves))
    write_json(arguments.out / "arena.json", parts)
    draw(curves, arguments.out / "arena.png")
    return write_page(arguments.out / "arena.md", *parts.values())


def tuned(arguments: Arguments, watch: Stopwatch) -> str:
    """Trait at equal coherence by learning rate, and the best one; the two best after the first seed go on."""
    names = [name for name in arguments.arms if ARMS[name].trained]
    first, rest = arguments.seeds[0], arguments.seeds[1:]
    done = run(arguments, [Job(name, first, rate) for name in names for rate in ARMS[name].rates], sizes(arguments))
    better = {
        name: sorted(ARMS[name].rates, key=lambda rate, name=name: -_trait([done[Job(name, first, rate)]]))[:2]
        for name in names
    }
    done |= run(
        arguments,
        [Job(name, seed, rate) for seed in rest for name in names for rate in better[name]],
        sizes(arguments),
    )
    rows = []
    for name in names:
        by_rate = {r: [done[Job(name, s, r)] for s in arguments.seeds if Job(name, s, r) in done] for r in better[name]}
        best = max(by_rate, key=lambda rate: _trait(by_rate[rate]))
        row = {"arm": name}
        for i, rate in enumerate(ARMS[name].rates):
            several = by_rate.get(rate, [done[Job(name, first, rate)]])
            shown = " ".join(f"{_trait([curve]):+.2f}" for curve in several)
            row[f"rate {i + 1}"] = f"{rate:g}: {shown}"
        rows.append(row | {"best": f"{best:g}", "in use": f"{ARMS[name].rate:g}"})
    about = (
        f"Log-odds shift at equal coherence by learning rate, seeds {', '.join(map(str, arguments.seeds))} (48 items, "
        f"48 replies); the two best after the first seed go on. {watch}."
    )
    return write_page(arguments.out / "tuning.md", about, markdown(rows))


def _trait(curves: Sequence[Curve]) -> float:
    return float(at_equal_coherence({"one": curves}, n_boot=0)["one"]["log-odds"][0])


def run(arguments: Arguments, jobs: Sequence[Job], some: Sizes) -> dict[Job, Curve]:
    """All jobs, each core with one process of one thread; finished ones are read back.

    Raises what a job raised, after the running ones have ended; the same command goes on from there.
    """
    workers = min(arguments.workers or cores(), len(jobs))
    done: dict[Job, Curve] = {}

    def ended(job: Job, curve: Curve) -> None:
        done[job] = curve
        say(f"{len(done)} of {len(jobs)}: {job}, {curve.spent.seconds:.0f} s of CPU to make")

    if workers < 2:
        for job in jobs:
            ended(job, work(job, arguments, some))
        return done
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ.update(one)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(work, job, arguments, some): job for job in jobs}
        try:
            for future in as_completed(waiting):
                ended(waiting[future], future.result())
        finally:
            pool.shutdown(cancel_futures=True)
    return done


def work(job: Job, arguments: Arguments, some: Sizes) -> Curve:
    """One job, in a process of its own."""
    config = RunConfig(
        model=arguments.model,
        trait=arguments.trait,
        seed=job.seed,
        threads=1,
    ).resolved()
    return measured(ARMS[job.arm], config, some, arguments.out, job.rate)
