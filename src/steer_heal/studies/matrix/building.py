"""The matrix of all seeds: its options, the rows each seed heals on, and the files after every seed.

Knows nothing of how completions were sampled and filtered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.loop.rounds import run_rounds
from steer_heal.studies.material import Material, of_run
from steer_heal.studies.matrix.cells import Column, column
from steer_heal.studies.matrix.table import verdict, write
from steer_heal.studies.writing import Stopwatch, say

MIN_ROWS = 16
"""Fewest kept rows: a quarter of them is held out, and an interval needs several prompts."""


@dataclass(frozen=True)
class Arguments:
    """Rows, barriers, seeds."""

    run: Path | None = None
    """Folder of a finished run; without it one round is run for each seed first."""
    round: int = 0
    """Round of that run whose kept completions are the rows; the ORIGINAL model is healed on them."""
    model: str = "pocket"
    """Model of the round that is run first."""
    lams: tuple[float, ...] = (0.3, 1.0)
    """Weights of the barrier where it is on."""
    reg: str = "kl_rev"
    """Barrier where it is on."""
    tau: float = 0.05
    """Its budget in nats; low enough to fire on a first round, else on and off are one heal."""
    heldout: float = 0.25
    """Share of the kept rows, by whole prompts, that no cell trains on."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of walk, split, shuffle and initial adapter."""
    show: int = 1
    """Held-out prompts whose greedy replies are written for every cell."""
    out: Path = Path("out/matrix")
    """Folder of the two files and of the rounds that were run."""


def material_of(arguments: Arguments, seed: int) -> Material:
    """A finished run's rows, or those of one round that is run now. InputError for too few."""
    run_dir = arguments.run
    if run_dir is None:
        few = {"targets": "tokens", "n_rounds": 1, "eval_items": 8, "eval_replies": 8}
        config = RunConfig(model=arguments.model, seed=seed, out=str(arguments.out / "rounds"), **few)
        run_dir = run_rounds(config).folder
    material = of_run(run_dir, arguments.round)
    if len(material.rows) < MIN_ROWS:
        raise InputError(f"{len(material.rows)} kept rows are too few for a matrix: give at least {MIN_ROWS}")
    return material


def build(arguments: Arguments) -> tuple[list[Column], str]:
    """All seeds, the files written after each; returns the columns and the page. InputError for unusable input."""
    watch = Stopwatch()
    if not arguments.seeds or not arguments.lams:
        raise InputError("give at least one seed and one lam")
    barrier = {"reg": arguments.reg, "tau": arguments.tau, "lams": arguments.lams}
    columns: list[Column] = []
    for seed in arguments.seeds:
        material = material_of(arguments, seed)
        columns.append(column(material, seed, heldout_share=arguments.heldout, show=arguments.show, **barrier))
        say(f"seed {seed}: {verdict(columns[-1:])} {watch}")
        text = write(arguments.out, about(arguments, columns), columns)
    return columns, f"{text}\n\n{watch}; written to {arguments.out}"


def about(arguments: Arguments, columns: Sequence[Column]) -> str:
    """What was healed on which rows, in one line."""
    where = f"one round on {arguments.model} per seed"
    if arguments.run:
        where = f"round {arguments.round} of {arguments.run}"
    rows = ", ".join(f"{c.n_train} + {len(c.prompts)}" for c in columns)
    base = fmean(x for c in columns for x in c.base)
    return (
        f"{where}; seeds {', '.join(str(c.seed) for c in columns)}; training + held-out rows {rows}; barrier "
        f"{arguments.reg} against base, tau {arguments.tau:g}; held-out nll of base {base:.4f}."
    )
