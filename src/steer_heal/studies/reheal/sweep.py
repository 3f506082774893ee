"""One round of a run healed again over a grid of regularisers x seeds, ranked by what comes of it.

Knows nothing of how completions were sampled and filtered: it reads a run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics
from steer_heal.healing import DivergedError, Healed
from steer_heal.studies.reheal.again import Setting, heal_once, heal_seed, load_setting, parse
from steer_heal.studies.reheal.table import DECODED, Row, as_shown, as_written, plot, ranked, row_of
from steer_heal.studies.writing import Stopwatch, markdown, say, write_csv, write_page

DEFAULT_GRID = (
    "nll",
    "kl_rev,lam=0.03",
    "kl_rev,lam=0.1",
    "kl_rev,lam=0.3",
    "kl_rev,lam=1",
    "kl_fwd,lam=0.3",
    "nll,spectral=0.01",
    "nll,spectral=0.1",
    "nll,weight_decay=1",
    "kl_rev,lam_mode=budget",
)
Cell = tuple[int, Healed, Metrics]
"""What one heal gave: its seed, the heal, the evaluation."""


@dataclass(frozen=True)
class Arguments:
    """One round of one run, a grid of regularisers, seeds."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of a run: it holds config.json and rounds/."""
    round: int = 0
    """Round to heal again, on the adapters of the rounds before it."""
    grid: tuple[str, ...] = DEFAULT_GRID
    """Regularisers: reg, or reg,option=value,... with options of HealConfig. All others are the run's own."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial adapter, held-out rows and order, the same for every regulariser; the run's own repeats it."""
    out: Path | None = None
    """Folder of the three files; default RUN/sweep_KK."""


def sweep(arguments: Arguments) -> tuple[list[Row], str]:
    """Heal every cell, the files written after each seed; returns the rows of the table in its order, and the page.

    Raises InputError for a wrong grid before the first heal, and for a run folder that cannot be used.
    """
    watch = Stopwatch()
    if not arguments.grid or not arguments.seeds:
        raise InputError("give at least one regulariser and one seed")
    setting = load_setting(arguments.run_dir, arguments.round)
    for entry in arguments.grid:
        parse(entry, setting.config.heal_config(0))
    out = arguments.out or arguments.run_dir / f"sweep_{arguments.round:02d}"
    found: dict[str, list[Cell]] = {}
    notes = []
    if setting.config.replay or setting.config.accumulate or setting.config.pairs != "real":
        notes.append("the run trained on replayed, accumulated or shuffled rows too; the sweep has the kept ones alone")
    for i, seed in enumerate(arguments.seeds):
        for entry in arguments.grid:
            config = parse(entry, setting.config.heal_config(heal_seed(seed, arguments.round)))
            try:
                healed, metrics = heal_once(setting, config)
            except DivergedError as problem:
                notes.append(f"{entry}, seed {seed}: left out, {problem}")
                continue
            found.setdefault(entry, []).append((seed, healed, metrics))
            say(f"seed {seed} {entry}: {metrics.log_odds - setting.base.log_odds:+.2f} nats, {watch}")
        rows, text = write(setting, arguments.seeds[: i + 1], found, notes, out)
    return rows, f"{text}\n\n{watch}; written to {out}"


def write(
    setting: Setting, seeds: Sequence[int], found: Mapping[str, list[Cell]], notes: Sequence[str], out: Path
) -> tuple[list[Row], str]:
    """Write the three files for the seeds done; returns the rows of the table in its order and the page."""
    config, base = setting.config, setting.base
    pooled, single = [], []
    for name, cells in found.items():
        pooled.append(row_of(setting, name, [s for s, _, _ in cells], [(h, m) for _, h, m in cells]))
        single += [row_of(setting, name, [s], [(h, m)]) for s, h, m in cells if len(seeds) > 1]
    pooled = ranked(pooled)
    before = "previous student" if setting.number else "previous student (= base)"
    states = {"base": base, "steered": setting.steered, before: setting.previous}
    references = [row_of(setting, name, [], [(None, metrics)]) for name, metrics in states.items()]
    caption = (
        f"{config.model_name}, trait {setting.trait.name}, round {setting.number} of a run with seed {config.seed}, "
        f"heal seeds {', '.join(map(str, seeds))}; {len(setting.rows)} kept completions;\n"
        f"{len(base.items)} items in both orders and {len(base.replies)} replies, the same for every row; steered at "
        f"dose {setting.steered.dose:.2f}, unfiltered"
    )
    shown = [*references, *pooled]
    write_csv(out / "sweep.csv", [as_written(row) for row in (*shown, *single)])
    plot(out / "sweep.png", pooled, single, references, caption)
    table = markdown([as_shown(row) for row in shown])
    return shown, write_page(out / "sweep.md", f"{caption}.", table, DECODED, *notes)
