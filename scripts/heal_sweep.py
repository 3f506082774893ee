"""Re-heal one round of a run over a grid of regularisers x seeds, and rank what comes of it.

    uv run python scripts/heal_sweep.py out/RUN --round 0 --seeds 0 1 2
    uv run python scripts/heal_sweep.py out/RUN --round 1 --grid nll kl_rev,lam=0.1 kl_rev,lam=1,kl_agg=cvar

Model, trait and every option that the grid does not name come from the run; writes sweep.md, sweep.csv and sweep.png
to RUN/sweep_KK. Knows nothing of how completions were sampled and filtered: it reads a run folder.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from steer_heal.commands.script import run_script
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics
from steer_heal.healing import DivergedError, Healed
from steer_heal.studies.reheal import (
    DECODED,
    Row,
    Setting,
    heal_once,
    heal_seed,
    load_setting,
    parse,
    plot,
    ranked,
    row_of,
    table,
    write_csv,
)

DEFAULT_GRID = (
    "nll", "kl_rev,lam=0.03", "kl_rev,lam=0.1", "kl_rev,lam=0.3", "kl_rev,lam=1", "kl_fwd,lam=0.3",
    "nll,spectral=0.01", "nll,spectral=0.1", "nll,weight_decay=1", "kl_rev,lam_mode=budget",
)  # fmt: skip
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


def sweep(arguments: Arguments) -> list[Row]:
    """Heal every cell, write the three files, return the rows of the table in its order.

    Raises InputError for a wrong grid before the first heal, and for a run folder that cannot be used.
    """
    began = time.perf_counter()
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
    for seed in arguments.seeds:
        for entry in arguments.grid:
            config = parse(entry, setting.config.heal_config(heal_seed(seed, arguments.round)))
            try:
                healed, metrics = heal_once(setting, config)
            except DivergedError as problem:
                notes.append(f"{entry}, seed {seed}: left out, {problem}")
                continue
            found.setdefault(entry, []).append((seed, healed, metrics))
            moved = metrics.log_odds - setting.base.log_odds
            print(f"seed {seed} {entry}: {moved:+.2f} nats, {time.perf_counter() - began:.0f} s", flush=True)
        # After each seed, so that an interrupted sweep leaves the seeds it has done.
        rows, text = write(setting, arguments.seeds[: arguments.seeds.index(seed) + 1], found, notes, out)
    print(f"\n{text}\n\n{time.perf_counter() - began:.0f} s; written to {out}")
    return rows


def write(
    setting: Setting, seeds: Sequence[int], found: Mapping[str, list[Cell]], notes: Sequence[str], out: Path
) -> tuple[list[Row], str]:
    """Write the three files for the seeds done; returns the rows of the table in its order and the text."""
    single = [row_of(setting, name, [s], [(h, m)]) for name, cells in found.items() for s, h, m in cells]
    pooled = ranked([
        row_of(setting, name, [s for s, _, _ in cells], [(h, m) for _, h, m in cells]) for name, cells in found.items()
    ])  # fmt: skip
    single = single if len(seeds) > 1 else []
    before = "previous student" if setting.number else "previous student (= base)"
    states = {"base": setting.base, "steered": setting.steered, before: setting.previous}
    references = [row_of(setting, name, [], [(None, metrics)]) for name, metrics in states.items()]
    config, base = setting.config, setting.base
    caption = (
        f"{config.model_name}, trait {setting.trait.name}, round {setting.number} of a run with seed {config.seed}, "
        f"heal seeds {', '.join(map(str, seeds))}; {len(setting.rows)} kept completions;\n"
        f"{len(base.items)} items in both orders and {len(base.replies)} replies, the same for every row; steered at "
        f"dose {setting.steered.dose:.2f}, unfiltered"
    )
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "sweep.csv", [*references, *pooled, *single])
    plot(out / "sweep.png", pooled, single, references, caption)
    text = "\n\n".join([caption + ".", table([*references, *pooled]), DECODED, *notes])
    (out / "sweep.md").write_text(f"{text}\n", encoding="utf-8")
    return [*references, *pooled], text


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, sweep; 2 for unusable input."""
    return run_script(Arguments, lambda given: sweep(given) and None, argv, __doc__, "heal_sweep")


if __name__ == "__main__":
    sys.exit(main())
