"""What each regulariser came to, as rows against base on the same items: table, CSV file and plot.

Knows nothing of how a heal is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from steer_heal.evaluation import Metrics, compare
from steer_heal.evaluation.shift import coherent
from steer_heal.evaluation.verdict import Floors, gather, under_floors
from steer_heal.healing import Healed
from steer_heal.report.tables import number
from steer_heal.statistics import Estimate
from steer_heal.studies.arms.comparing import joined
from steer_heal.studies.drawing import dress, new_figure, save
from steer_heal.studies.reheal.again import Setting


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
