"""What each regulariser came to, as rows against base on the same items: table, CSV file and plot.

Knows nothing of how a heal is done.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from steer_heal.evaluation import Metrics, compare
from steer_heal.evaluation.shift import coherent
from steer_heal.evaluation.verdict import Floors, gather, under_floors
from steer_heal.healing import Healed
from steer_heal.report import markdown_table
from steer_heal.statistics import Estimate
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
    under = [f for found in evidence for f in under_floors(found, floors)]
    figures = [healed.figures for healed, _ in found if healed is not None]
    fired = [value for f in figures for key, value in f.items() if key.endswith("_fired")]
    moved = [m.log_odds - base.log_odds for m in students]
    seed = "" if not seeds else str(seeds[0]) if len(seeds) == 1 else "all"
    return Row(
        name, seed, shift.log_odds, shift.free_trait, shift.coherence,
        fmean(c for m in students for c in coherent(m, base)), tuple(under),
        (min(moved), max(moved)) if len(moved) > 1 else None,
        fmean(f["kl_prev_after"] for f in figures) if figures else None, fmean(fired) if fired else None,
    )  # fmt: skip


def joined(parts: Sequence[Metrics]) -> Metrics:
    """Evaluations on the same items as one; an item's rows keep its name, so they stay one cluster."""
    names = ("items", "off_target", "replies", "anchors")
    return replace(parts[0], **{name: sum((getattr(part, name) for part in parts), ()) for name in names})


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Rows above the floors by trait moved, then those under one; never by a ratio, whose denominator flatters."""
    return sorted(rows, key=lambda row: (bool(row.under), -row.trait.value))


COLUMNS = (
    "row", "floors", "trait, nats [95 %]", "seeds", "free-text trait", "coherence change", "coherence", "per nat",
    "KL prev", "fired",
)  # fmt: skip
DECODED = """trait: forced-choice log-odds against base. seeds: its range over them. free-text trait: share of replies.
coherence: share of sound sentences (without a checker: of sound replies), its change against base. per nat: coherence
change per nat of trait, blank where the trait's interval includes 0. KL prev: token-mean KL(student||previous student)
after the heal, nats. fired: share of rows over budget. floors: what a row is under; such rows stand last.
Intervals resample items and prompts, not seeds. SHOULD: the barriers give less trait and at least nll's coherence; if
no row differs from nll by more than its seeds do, nothing here depends on the regulariser."""


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, in the order given."""
    return markdown_table(list(COLUMNS), [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    def show(value: float | None, form: str = "+.3f") -> str:
        return "" if value is None else format(value, form)

    return [
        row.name.replace(",", " "), "; ".join(dict.fromkeys(row.under)) or "above",
        f"{row.trait.value:+.2f} [{row.trait.low:+.2f}, {row.trait.high:+.2f}]",
        "" if row.spread is None else f"{row.spread[0]:+.2f} to {row.spread[1]:+.2f}",
        show(row.free and row.free.value), str(row.coherence), show(row.level, ".3f"), show(row.per_nat, "+.4f"),
        show(row.kl, ".3f"), show(row.fired, ".2f"),
    ]  # fmt: skip


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every row, pooled and per seed, unrounded."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        estimates = ("trait_nats", "free_trait", "coherence_change")
        names = [f"{name}{end}" for name in estimates for end in ("", "_low", "_high")]
        out.writerow(["row", "seed", *names, "coherence", "coherence_per_nat", "kl_prev", "fired", "under"])
        for row in rows:
            values = [
                v for e in (row.trait, row.free, row.coherence) for v in ((e.value, e.low, e.high) if e else [""] * 3)
            ]
            tail = ["" if v is None else v for v in (row.level, row.per_nat, row.kl, row.fired)]
            out.writerow([row.name, row.seed, *values, *tail, "; ".join(row.under)])


def plot(path: Path, pooled: Sequence[Row], single: Sequence[Row], references: Sequence[Row], caption: str) -> None:
    """Which regulariser moves the trait furthest at what change of coherence? A marker each, faint ones are seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, shown in ((left, references), (right, [])):  # the steered model is far away: the right panel zooms in
        for i, row in enumerate(pooled):
            style = {"color": f"C{i % 10}", "marker": "os^Dv<>phX"[i % 10]}
            for point in (p for p in single if p.name == row.name):
                axis.plot(point.trait.value, point.coherence.value, alpha=0.3, markersize=5, linestyle="", **style)
            error = [[row.trait.value - row.trait.low], [row.trait.high - row.trait.value]]
            label = row.name.replace(",", " ") + (" (under a floor)" if row.under else "")
            axis.errorbar(
                row.trait.value, row.coherence.value, xerr=error, markersize=9, linestyle="", label=label, **style
            )
        for row, marker in zip(shown, "*Px", strict=False):
            axis.plot(row.trait.value, row.coherence.value, f"k{marker}", markersize=12, linestyle="", label=row.name)
        axis.axhline(0, color="#555555", linewidth=0.8)
        axis.set_xlabel("trait moved against base: forced choice, log-odds (nats; bars 95 % over items)")
        axis.set_ylabel("coherence change against base (share)")
        axis.grid(alpha=0.25)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    figure.supxlabel(caption, fontsize=9)
    figure.savefig(path, dpi=110)
