"""Adapters in use as tables: what moved, what is left of it, at what coherence; and a CSV file.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from steer_heal.evaluation.text import mean
from steer_heal.ledger import plain
from steer_heal.report.tables import interval, number
from steer_heal.studies.arms.reading import State, anchors_kept, figures
from steer_heal.studies.use.measuring import BOTH, NEUTRAL, Pair, Used, share
from steer_heal.studies.writing import markdown, write_csv, write_page

SOUND = 0.97
"""Share of base's sound sentences from which on a model counts as coherent."""

DECODED = """log-odds: of the trait's answer in forced choice, nats; trait: share of free-text replies on its side; base
-> student, both under the row's system prompt. moved: the paired difference with its 95 % interval over items or
prompts, seeds side by side; share: that as a share of what the trait's own adapters move, unscaled, under the neutral
prompt (free text: of replies in which all four models take a stance). ok: sound sentences of the student, and as a
share of base's; without a checker, replies that neither loop nor surprise the original. 4-grams: as a share of base's;
anchors: share kept of those base gets right. Levels are means over seeds."""


def pooled(pairs: Sequence[Pair]) -> Pair:
    """The same measurement of several seeds as one."""
    return Pair(sum((one.before for one in pairs), ()), sum((one.after for one in pairs), ()))


def shape(pair: Pair) -> dict[str, float | None]:
    """Figures of the student beside base (`arms.reading.figures`), the mean over seeds."""
    of_seeds = [
        figures(State(after, anchors_kept(after, before)), State(before, anchors_kept(before, before)))
        for before, after in zip(pair.before, pair.after, strict=True)
    ]
    return {name: mean(one[name] for one in of_seeds) for name in of_seeds[0]}


def figure_cells(pair: Pair, whole: Pair, figure: str, label: str) -> dict[str, str]:
    """Level, paired difference and share of the reference's, of `log_odds` or `free_trait`."""
    levels = [mean(getattr(one, figure) for one in side) for side in (pair.before, pair.after)]
    moved, part = getattr(pair.shift, figure), share(pair, whole, figure)
    return {
        label: " -> ".join(number(level, 2, signed=figure == "log_odds") for level in levels),
        f"{label} moved": interval(plain(moved and asdict(moved))),
        f"{label} share": interval(plain(part and asdict(part))),
    }


def table(head: str, pairs: Mapping[str, Pair], wholes: Mapping[str, Pair]) -> str:
    """A row per measurement; `wholes` has by its name what it is a share of."""
    rows = []
    for name, pair in pairs.items():
        found = shape(pair)
        row = {head: name}
        row |= figure_cells(pair, wholes[name], "log_odds", "log-odds")
        row |= figure_cells(pair, wholes[name], "free_trait", "trait")
        row |= {"ok": number(found["sentence_ok"]), "of base": number(found["sentence_share"])}
        row |= {"4-grams": number(found["distinct4_share"], 2), "anchors": number(found["anchors"], 2)}
        rows.append(row)
    return markdown(rows)


def line(points: Mapping[float, float]) -> tuple[bool, float]:
    """Whether figures rise at every step of the scale, and the R2 of a least-squares line through them (nan: flat)."""
    x, y = zip(*sorted(points.items()), strict=True)
    fitted = np.polyval(np.polyfit(x, y, 1), x) if len(x) > 1 else np.asarray(y)
    spread = float(np.var(y))
    return bool((np.diff(y) > 0).all()), 1 - float(np.mean(np.subtract(y, fitted) ** 2)) / spread if spread else np.nan


def scale_lines(done: Sequence[Used]) -> str:
    """Per seed: monotone or not, how straight, and the scales at which the text is coherent."""
    lines = []
    for used in done if len(done[0].scaled) > 1 else ():
        rises, r2 = line({scale: pair.after[0].log_odds for scale, pair in used.scaled.items()})
        sound = {scale: shape(pair)["sentence_share"] for scale, pair in used.scaled.items()}
        fine = [f"{scale:g}" for scale in sorted(sound) if sound[scale] is not None and sound[scale] >= SOUND]
        told = "rise at every step" if rises else "do NOT rise at every step"
        lines.append(
            f"- seed {used.seed}: log-odds {told} of c; R2 of a line {r2:.3f}; at least {SOUND:g} of base's sound "
            f"sentences at c = {', '.join(fine) or 'none'}"
        )
    return "\n".join(lines)


def tables(done: Sequence[Used]) -> list[str]:
    """The parts of the page."""

    def over_seeds(part: str) -> dict:
        return {name: pooled([getattr(used, part)[name] for used in done]) for name in getattr(done[0], part)}

    kept, together = over_seeds("kept"), over_seeds("together")
    scaled = {f"{scale:g}": pair for scale, pair in over_seeds("scaled").items()}
    parts = ["## One adapter, scaled by c", table("c", scaled, dict.fromkeys(scaled, kept[NEUTRAL])), scale_lines(done)]
    if together:
        own = {f"{trait}, {stack}": together[trait, trait] for trait, stack in together}
        named = {f"{trait}, {stack}": pair for (trait, stack), pair in together.items()}
        parts += ["## Two traits at once", table("measured, adapters", named, own)]
        parts.append("Both together minus its own alone, paired:\n" + "\n".join(_cost(together)))
    return [*parts, "## What is left", table("student", kept, dict.fromkeys(kept, kept[NEUTRAL])), DECODED]


def _cost(together: Mapping[tuple[str, str], Pair]) -> list[str]:
    """What the other trait's adapters cost or add to each trait, and to the text."""
    lines = []
    for trait in dict.fromkeys(trait for trait, _ in together):
        moved = Pair(together[trait, trait].after, together[trait, BOTH].after).shift
        told = {"log-odds": moved.log_odds, "trait": moved.free_trait, "coherence": moved.coherence}
        lines.append(f"- {trait}: " + ", ".join(f"{name} {found}" for name, found in told.items() if found))
    return lines


def as_written(done: Sequence[Used]) -> list[dict[str, object]]:
    """Every measurement of every seed as a line of the CSV file, unrounded."""
    rows = []
    for used in done:
        parts = {"scaled": used.scaled, "together": used.together, "kept": used.kept}
        for part, pairs in parts.items():
            for name, pair in pairs.items():
                told = ", ".join(name) if isinstance(name, tuple) else name
                whole = used.together[name[0], name[0]] if part == "together" else used.kept[NEUTRAL]
                row: dict[str, object] = {"seed": used.seed, "part": part, "name": told}
                for figure in ("log_odds", "free_trait"):
                    moved, left = getattr(pair.shift, figure), share(pair, whole, figure)
                    row |= {f"{figure}_base": getattr(pair.before[0], figure), figure: getattr(pair.after[0], figure)}
                    row |= {f"{figure}_moved": moved and moved.value, f"{figure}_low": moved and moved.low}
                    row |= {f"{figure}_high": moved and moved.high, f"{figure}_share": left and left.value}
                rows.append(row | {k: v for k, v in shape(pair).items() if k not in ("trait", "shift")})
    return rows


def write(out: Path, about: str, done: Sequence[Used]) -> str:
    """Write use.md and use.csv; returns the page."""
    write_csv(out / "use.csv", as_written(done))
    return write_page(out / "use.md", about, *tables(done))
