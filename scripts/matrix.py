"""Is what a heal learns content, or one cheap constant shift? Real or shuffled pairs x barrier off or on, same rows.

    uv run python scripts/matrix.py --seeds 0 1 2                 # one round on pocket per seed gives the rows
    uv run python scripts/matrix.py --run out/RUN --round 0       # a finished run's rows, seeds vary split and heal

Within a seed all cells share the kept rows, the held-out prompts and the initial adapter; nll is measured on held-out
REAL pairs. Writes matrix.md and matrix.csv to OUT. Knows nothing of how completions were sampled and filtered.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from steer_heal.commands.script import run_script
from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.loop.rounds import run_rounds
from steer_heal.studies import material as study
from steer_heal.studies.material import Material
from steer_heal.studies.matrix import (
    DECODED,
    Column,
    cell_table,
    column,
    difference_table,
    probe_table,
    replies_text,
    verdict,
    write_csv,
)

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
        config = RunConfig(
            model=arguments.model, n_rounds=1, seed=seed, eval_items=8, eval_replies=8,
            out=str(arguments.out / "rounds"),
        )  # fmt: skip
        run_dir = run_rounds(config).folder
    material = study.of_run(run_dir, arguments.round)
    if len(material.rows) < MIN_ROWS:
        raise InputError(f"{len(material.rows)} kept rows are too few for a matrix: give at least {MIN_ROWS}")
    return material


def build(arguments: Arguments) -> list[Column]:
    """All seeds; writes the files after each and returns the columns."""
    began = time.perf_counter()
    if not arguments.seeds or not arguments.lams:
        raise InputError("give at least one seed and one lam")
    columns: list[Column] = []
    for seed in arguments.seeds:
        columns.append(column(
            material_of(arguments, seed), seed, reg=arguments.reg, tau=arguments.tau, lams=arguments.lams,
            heldout_share=arguments.heldout, show=arguments.show,
        ))  # fmt: skip
        print(f"seed {seed}: {verdict(columns[-1:])} {time.perf_counter() - began:.0f} s", flush=True)
        text = write(arguments, columns)
    print(f"\n{text}\n\n{time.perf_counter() - began:.0f} s; written to {arguments.out}")
    return columns


def write(arguments: Arguments, columns: Sequence[Column]) -> str:
    """Write matrix.md and matrix.csv; returns the text."""
    where = (
        f"round {arguments.round} of {arguments.run}" if arguments.run else f"one round on {arguments.model} per seed"
    )
    rows = ", ".join(f"{c.n_train} + {len(c.prompts)}" for c in columns)
    base = fmean(x for c in columns for x in c.base)
    about = (
        f"{where}; seeds {', '.join(str(c.seed) for c in columns)}; training + held-out rows {rows}; barrier "
        f"{arguments.reg} against base, tau {arguments.tau:g}; held-out nll of base {base:.4f}."
    )
    text = "\n\n".join([
        about, cell_table(columns), difference_table(columns), probe_table(columns), DECODED, verdict(columns)
    ])  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "matrix.md").write_text(f"{text}\n\n{replies_text(columns)}\n", encoding="utf-8")
    write_csv(arguments.out / "matrix.csv", columns)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build; 2 for unusable input."""
    return run_script(Arguments, lambda given: build(given) and None, argv, __doc__, "matrix")


if __name__ == "__main__":
    sys.exit(main())
