"""Heals under several budgets on several models: means over seeds, one table, and how far each figure ranges.

Knows nothing of models and of how the heals were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from steer_heal.report.tables import number
from steer_heal.studies.writing import markdown

DECODED = """caused: divergence from the plain model that the steering itself caused on the kept texts; D: that of the
healed model from the original on the same texts; both the mean over texts of rmse_t KL, nats. tau: the
budget in nats. fired: share of rows over budget in training. trait: forced-choice log-odds against base,
nats; / nll: its share of what plain nll moved. free: free-text trait against base. ok: share of sound
sentences (without a checker: of replies that do not loop). Means over seeds. SHOULD: a budget that carries
over fires as often, leaves the same D / caused and keeps the same share of the trait in every case."""


@dataclass(frozen=True)
class Cell:
    """One heal.

    Attributes:
        case, dose, seed, arm, rows: what was healed how, and on how many kept texts.
        caused: divergence of the steered from the plain model on the kept rows, mean over rows of the aggregate, nats.
        tau: budget in nats, None without a barrier. fired: share of rows over budget during training.
        reached: divergence of the healed from the original model on the same rows, nats.
        log_odds, free: the trait's shift against base, in nats of forced choice and in shares of replies.
        coherence: share of sound sentences; without a checker, of replies that do not loop.
    """

    case: str
    dose: float
    seed: int
    arm: str
    rows: int
    caused: float
    tau: float | None
    fired: float | None
    reached: float
    log_odds: float
    free: float | None
    coherence: float | None


def means(cells: Sequence[Cell]) -> list[Cell]:
    """One cell per case, dose and arm: the mean over seeds."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.case, cell.dose, cell.arm), []).append(cell)
    out = []
    for same in groups.values():
        figures = {}
        for name in ("caused", "tau", "fired", "reached", "log_odds", "free", "coherence"):
            values = [getattr(cell, name) for cell in same]
            figures[name] = None if None in values else fmean(values)
        out.append(replace(same[0], **figures))
    return out


def table(cells: Sequence[Cell]) -> str:
    """Every case, dose and arm as Markdown, in the order given."""
    return markdown(
        [
            {
                "case": c.case,
                "dose": f"{c.dose:g}",
                "caused": number(c.caused, 2),
                "arm": c.arm,
                "tau": number(c.tau, 2),
                "fired": number(c.fired, 2),
                "D": number(c.reached, 2),
                "D / caused": number(c.reached / c.caused, 2),
                "trait, nats": number(c.log_odds, 2, signed=True),
                "trait / nll": number(kept_share(c, cells), 2),
                "free": number(c.free, 2, signed=True),
                "ok": number(c.coherence, 2),
            }
            for c in cells
        ]
    )


def kept_share(cell: Cell, cells: Sequence[Cell]) -> float | None:
    """Trait moved as a share of what plain nll moved there; None where nll moved it by less than .1 nats."""
    (plain,) = (c for c in cells if (c.case, c.dose, c.arm) == (cell.case, cell.dose, "nll"))
    return cell.log_odds / plain.log_odds if plain.log_odds >= 0.1 else None


def spread(cells: Sequence[Cell]) -> list[str]:
    """Per budget, how far each figure ranges over the cases and doses: what carries over ranges little."""
    lines = []
    for arm in ("tau", "tau_rel"):
        own = [c for c in cells if c.arm == arm]
        figures = {
            "fired": [c.fired for c in own],
            "D / caused": [c.reached / c.caused for c in own],
            "trait / nll": [kept_share(c, cells) for c in own],
        }
        ranges = []
        for name, values in figures.items():
            known = [value for value in values if value is not None]
            if known:
                ranges.append(f"{name} {min(known):.2f} to {max(known):.2f} (range {max(known) - min(known):.2f})")
        lines.append(f"- {arm}: {'; '.join(ranges)}")
    return lines
