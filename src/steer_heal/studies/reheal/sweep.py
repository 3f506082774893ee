"""One round of a run healed again over a grid of regularisers x seeds: options, heals, and what each came to.

Knows nothing of how completions were sampled and filtered: it reads a run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import tyro

from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, compare
from steer_heal.evaluation.shift import coherent
from steer_heal.evaluation.verdict import Floors, gather, under_floors
from steer_heal.healing import DivergedError, Healed
from steer_heal.report.tables import number
from steer_heal.statistics import Estimate
from steer_heal.studies.arms.comparing import joined
from steer_heal.studies.drawing import dress, new_figure, save
from steer_heal.studies.reheal.again import Setting, heal_once, heal_seed, load_setting, parse
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


@dataclass(frozen=True)
class Row:
    """One row of the table, against base on the same items.

    Attributes:
        name, seed: regulariser or reference; one seed, `all` for the seeds pooled, empty for a reference.
        trait: forced-choice log-odds in nats. free: free-text trait in shares, None without a checker.
        coherence, level: change of coherence in shares, and where it stands.
        under: floors that were missed, in words; pooled rows collect them over the seeds.
        spread: smallest and largest trait over the seeds, in nats.
        kl, fired: token-mean KL to the previous student after the heal in nats; share of rows over budget.
    """

    name: str
    seed: str
    trait: Estimate
    free: Estimate | None
    coherence: Estimate
    level: float
    under: tuple[str, ...] = ()
    spread: tuple[float, float] | None = None
    kl: float | None = None
    fired: float | None = None

    @property
    def per_nat(self) -> float | None:
        """Coherence change per nat of trait; None where the trait moved less than its noise."""
        return self.coherence.value / abs(self.trait.value) if self.trait.excludes_zero else None


def row_of(setting: Setting, name: str, seeds: Sequence[int], found: Sequence[tuple[Healed | None, Metrics]]) -> Row:
    """One row out of one or more heals: rows of all seeds side by side, clustered by item and prompt as always."""
    base, students = setting.base, [metrics for _, metrics in found]
    shift = compare(joined([base] * len(students)), joined(students))
    floors = Floors(coherence=setting.config.coherence_floor)
    evidence = [gather(base, setting.steered, m, prompted=setting.prompted) for m in students]
    figures = [healed.figures for healed, _ in found if healed is not None]
    fired = [value for f in figures for key, value in f.items() if key.endswith("_fired")]
    moved = [m.log_odds - base.log_odds for m in students]
    return Row(
        name=name,
        seed="" if not seeds else str(seeds[0]) if len(seeds) == 1 else "all",
        trait=shift.log_odds,
        free=shift.free_trait,
        coherence=shift.coherence,
        level=fmean(c for m in students for c in coherent(m, base)),
        under=tuple(text for found in evidence for _, text in under_floors(found, floors)),
        spread=(min(moved), max(moved)) if len(moved) > 1 else None,
        kl=fmean(f["kl_prev_after"] for f in figures) if figures else None,
        fired=fmean(fired) if fired else None,
    )


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Rows above the floors by trait moved, then those under one; never by a ratio, whose denominator flatters."""
    return sorted(rows, key=lambda row: (bool(row.under), -row.trait.value))


DECODED = """trait: forced-choice log-odds against base. seeds: its range over them. free-text trait: share of replies.
coherence: share of sound sentences (without a checker: of sound replies), its change against base. per nat: coherence
change per nat of trait, - where the trait's interval includes 0. KL prev: token-mean KL(student||previous student)
after the heal, nats. fired: share of rows over budget. floors: what a row is under; such rows stand last.
Intervals resample items and prompts, not seeds. SHOULD: the barriers give less trait and at least nll's coherence; if
no row differs from nll by more than its seeds do, nothing here depends on the regulariser."""


def as_shown(row: Row) -> dict[str, str]:
    """A row of the page."""
    trait, free, spread = row.trait, row.free, row.spread
    return {
        "row": row.name.replace(",", " "),
        "floors": "; ".join(dict.fromkeys(row.under)) or "above",
        "trait, nats [95 %]": f"{trait.value:+.2f} [{trait.low:+.2f}, {trait.high:+.2f}]",
        "seeds": "-" if spread is None else f"{spread[0]:+.2f} to {spread[1]:+.2f}",
        "free-text trait": number(free and free.value, signed=True),
        "coherence change": str(row.coherence),
        "coherence": number(row.level),
        "per nat": number(row.per_nat, 4, signed=True),
        "KL prev": number(row.kl),
        "fired": number(row.fired, 2),
    }


def as_written(row: Row) -> dict[str, object]:
    """A row of the CSV file, unrounded."""
    out: dict[str, object] = {"row": row.name, "seed": row.seed}
    estimates = {"trait_nats": row.trait, "free_trait": row.free, "coherence_change": row.coherence}
    for name, found in estimates.items():
        out |= {name: found and found.value, f"{name}_low": found and found.low, f"{name}_high": found and found.high}
    out |= {"coherence": row.level, "coherence_per_nat": row.per_nat, "kl_prev": row.kl, "fired": row.fired}
    return out | {"under": "; ".join(row.under)}


def plot(path: Path, pooled: Sequence[Row], single: Sequence[Row], references: Sequence[Row], caption: str) -> None:
    """Which regulariser moves the trait furthest at what change of coherence? A marker each, faint ones are seeds."""
    figure = new_figure(14, 6)
    left, right = figure.subplots(1, 2)
    for axis, shown in ((left, references), (right, [])):  # the steered model is far away: the right panel zooms in
        for i, row in enumerate(pooled):
            style = {"color": f"C{i % 10}", "marker": "os^Dv<>phX"[i % 10], "linestyle": ""}
            for point in (p for p in single if p.name == row.name):
                axis.plot(point.trait.value, point.coherence.value, alpha=0.3, markersize=5, **style)
            error = [[row.trait.value - row.trait.low], [row.trait.high - row.trait.value]]
            label = row.name.replace(",", " ") + (" (under a floor)" if row.under else "")
            axis.errorbar(row.trait.value, row.coherence.value, xerr=error, markersize=9, label=label, **style)
        for row, marker in zip(shown, "*Px", strict=False):
            axis.plot(row.trait.value, row.coherence.value, f"k{marker}", markersize=12, linestyle="", label=row.name)
        axis.axhline(0, color="#555555", linewidth=0.8)
        x = "trait moved against base: forced choice, log-odds (nats; bars 95 % over items)"
        dress(axis, x, "coherence change against base (share)")
    save(figure, path, caption, legend="outside right upper")
