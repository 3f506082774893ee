"""What the arena came to: who wins at equal coherence, the table, the curves behind it, a CSV, the picture.

Knows nothing of how arms work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from steer_heal.studies.arena.arms import ARMS, PRODUCT, PROMPT
from steer_heal.studies.arena.equal import COHERENCE, interval, rows_of
from steer_heal.studies.arena.measuring import Curve
from steer_heal.studies.drawing import dress, new_figure, save
from steer_heal.studies.writing import markdown

Found = Mapping[str, Mapping[str, np.ndarray]]


def verdict(found: Found) -> str:
    """Who has most trait at equal coherence, and whether the product is beaten; what beats it is said first."""
    ranked = sorted((name for name in found if name != PROMPT), key=lambda name: -found[name]["log-odds"][0])
    best = ranked[0]
    lines = []
    if PRODUCT in found:
        leads = {n: interval(found[n]["log-odds"] - found[PRODUCT]["log-odds"], 0) for n in ranked if n != PRODUCT}
        better = [f"{name} ({_shift(lead)} nats)" for name, lead in leads.items() if lead.low > 0]
        level = [name for name, lead in leads.items() if lead.low <= 0 <= lead.high]
        worse = [name for name, lead in leads.items() if lead.high < 0]
        lines.append(f"**Better than {PRODUCT}: {', '.join(better)}.**" if better else f"Nothing beats {PRODUCT}.")
        lines += [f"As good, within the interval: {', '.join(level)}."] if level else []
        lines += [f"Worse: {', '.join(worse)}."] if worse else []
    lines.append(f"Most trait at equal coherence: {best}, {_shift(interval(found[best]['log-odds'], 0))} nats.")
    return " ".join(lines)


def _shift(estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def main_table(curves: Mapping[str, Sequence[Curve]], found: Found) -> str:
    """One line per arm, the prompt first, then by trait."""
    order = sorted(found, key=lambda name: (name != PROMPT, -found[name]["log-odds"][0]))
    rows = []
    for name in order:
        at = {figure: interval(values, 0) for figure, values in found[name].items()}
        lead = found[name]["log-odds"] - found[PRODUCT]["log-odds"] if PRODUCT in found else None
        score = found[name]["score"]
        rows.append(
            {
                "arm": name,
                "log-odds shift [95 %]": _shift(at["log-odds"]),
                f"less {PRODUCT}'s": "-" if lead is None or name == PRODUCT else _shift(interval(lead, 0)),
                "at strength": f"{at['strength'].value:.2f}",
                "free text": f"{at['free text'].value:.2f}",
                "sound": f"{at['sound'].value:.2f}",
                "anchors": f"{at['anchors'].value:.2f}",
                "4-grams": f"{at['4-grams'].value:.2f}",
                "off-target": f"{at['off-target'].value:.2f}",
                "KL neutral": f"{at['KL'].value:.3f}",
                "score": f"{at['score'].value:.2f}",
                "of prompt's": f"{score[0] / found[PROMPT]['score'][0]:.2f}" if PROMPT in found else "-",
                "tokens": f"{fmean(c.spent.tokens for c in curves[name]):,.0f}",
                "steps": f"{fmean(c.spent.steps for c in curves[name]):.0f}",
                "CPU s": f"{fmean(c.spent.seconds for c in curves[name]):.0f}",
            }
        )
    return markdown(rows)


def recipe_table(names: Sequence[str]) -> str:
    """What each arm is."""
    return markdown(
        [
            {
                "arm": name,
                "what": (ARMS[name].make.__doc__ or ARMS[name].source).splitlines()[0].rstrip("."),
                "source": ARMS[name].source,
                "lr": f"{ARMS[name].rate:g}" if ARMS[name].rate else "-",
                "note": ARMS[name].note or "-",
            }
            for name in names
        ]
    )


def curve_table(curves: Mapping[str, Sequence[Curve]]) -> str:
    """Every arm at every strength up to where its text broke, means over the seeds that went so far."""
    rows = []
    for name, several in curves.items():
        read = [rows_of(curve) for curve in several]
        for i in range(1, max(len(r.strengths) for r in read)):
            some = [r for r in read if i < len(r.strengths)]
            shifts = [r.choice[i].mean() - r.choice[0].mean() for r in some]
            rows.append(
                {
                    "arm": name,
                    "strength": f"{some[0].strengths[i]:g}",
                    "seeds": str(len(some)),
                    "log-odds shift": f"{fmean(shifts):+.2f} ({min(shifts):+.2f} to {max(shifts):+.2f})",
                    "free text": f"{fmean(float(np.nanmean(r.free[i])) for r in some):.2f}",
                    "sound": f"{fmean(r.sound[i].mean() / r.sound[0].mean() for r in some):.3f}",
                    "anchors": f"{fmean(_ratio(r.right, i) for r in some):.2f}",
                    "4-grams": f"{fmean(r.whole['4-grams'][i] for r in some):.2f}",
                    "KL neutral": f"{fmean(r.whole['KL'][i] for r in some):.3f}",
                }
            )
    return markdown(rows)


def _ratio(right: np.ndarray, i: int) -> float:
    return right[i].mean() / right[0].mean() if right.size else 1.0


def csv_rows(curves: Mapping[str, Sequence[Curve]]) -> list[dict[str, object]]:
    """Arm, seed, strength and the aggregates, unrounded."""
    rows = []
    for name, several in curves.items():
        for curve in several:
            read = rows_of(curve)
            for i, point in enumerate(curve.points):
                m = point.metrics
                row = {"arm": name, "seed": curve.seed, "strength": point.strength, "log_odds": m.log_odds}
                row |= {"free_trait": m.free_trait, "sentence_ok": m.sentence_ok, "anchors": m.anchors_right}
                row |= {"words": m.words, "score": float(read.score[i].mean())}
                rows.append(row | {figure: float(values[i]) for figure, values in read.whole.items()})
    return rows


LEGEND = f"""Each arm at the largest strength at which it keeps {COHERENCE} of base's sound sentences and .95 of its
right anchors (curves made monotone, interpolated); the prompt as it is. log-odds: forced choice against base, nats;
intervals resample seeds, items, prompts and anchors, the same for all arms. sound, anchors, 4-grams: shares of base's.
off-target: the category that moved most, nats. KL neutral: KL(base || arm) on base's own replies to neutral prompts,
nats per token. score: harmonic mean of concept, instruct, fluency (0 to 2) as in AxBench, graded by the checker.
tokens, steps, CPU s: what it cost to make, means over seeds; the product's seconds have its evaluations, gate and
report in them."""


def draw(curves: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Write the picture: x the log-odds shift in nats, y sound sentences as a share of base's."""
    from matplotlib import colormaps

    figure = new_figure(9, 6)
    axis = figure.add_subplot()
    names = [name for name in curves if name != PROMPT]
    for i, name in enumerate(names):
        read = [rows_of(curve) for curve in curves[name]]
        n = min(len(r.strengths) for r in read)  # as far as the arm went on every seed
        x = np.array([r.choice[:n].mean(1) - r.choice[0].mean() for r in read])
        y = np.array([r.sound[:n].mean(1) / r.sound[0].mean() for r in read])
        strong = name == PRODUCT
        colour = "black" if strong else colormaps["tab20"](i % 20)
        axis.plot(x.mean(0), y.mean(0), "-o", ms=3, lw=2.5 if strong else 1.3, color=colour, label=name, zorder=3)
        axis.fill_between(x.mean(0), y.min(0), y.max(0), color=colour, alpha=0.12, lw=0)
    if PROMPT in curves:
        read = [rows_of(curve) for curve in curves[PROMPT]]
        x = np.mean([r.choice[-1].mean() - r.choice[0].mean() for r in read])
        y = np.mean([r.sound[-1].mean() / r.sound[0].mean() for r in read])
        axis.plot([x], [y], "*", ms=14, color="goldenrod", label="prompt", zorder=4)
    axis.axhline(COHERENCE, color="grey", ls=":", lw=1)
    dress(axis, "log-odds of the trait in forced choice, shift against base, nats", "sound sentences, share of base's")
    seeds = ", ".join(str(curve.seed) for curve in next(iter(curves.values())))
    caption = f"every arm over its strength; means and range of seeds {seeds}; dotted: the level of comparison"
    save(figure, path, caption, "outside right center")
