"""What did the dose do? Survival and trait of the sampled texts by dose, and how the walk adapted its multiplier.

Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from steer_heal.ledger import Ledger
from steer_heal.report.expectations import legend
from steer_heal.report.plots.drawing import Key, Panel, Plot, Theme, ramp
from steer_heal.report.plots.maps import FEW, apart, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BY_DOSE = (
    ("Survival by dose", "kept by the filter (share)", "kept"),
    ("Trait of the sampled texts by dose", "share on the trait's side", "trait"),
    ("Coherence of the sampled texts by dose", "sound sentences (share)", "sentence_ok"),
)


def dose_plot(ledger: Ledger) -> Plot | None:
    """Panels for what was measured; None for a run that sampled nothing."""
    walks = ledger.events("walk")
    if not walks:
        return None
    panels = [
        Panel(title, "dose (times the vector)", y, alt(title, key, walks), partial(by_dose, key, walks))
        for title, y, key in BY_DOSE
        if any(d[key] is not None for w in walks for d in w["per_dose"])
    ]
    told = "; ".join(f"round {w['round']}: kappa {w['kappa']:.2f}, survival {w['survival']:.2f}" for w in walks)
    panels.append(
        Panel(
            "The walk",
            "round (a point per batch of texts)",
            "share, or multiplier",
            f"Survival and kappa by batch. {told}",
            partial(the_walk, walks, ledger.config["survival_target"]),
        )
    )
    ramp = "by dose, one line per round" if len(walks) == 1 else "by dose, one line per round: pale early, full late"
    keys = (Key("steered", "circle", ramp), Key("muted", "step", "kappa, multiplier of the doses"))
    keys += (Key("base", "dotted", "survival that the walk aims at"),)
    reading = (
        "Texts are sampled at several doses; the filter keeps the coherent ones, and the walk lowers its multiplier "
        "kappa when too few survive. " + legend(ledger.events(), "dose", "bites")
    )
    return Plot("dose", "Dose", reading, tuple(panels), keys)


def alt(title: str, key: str, walks: Sequence[Mapping]) -> str:
    """The picture in words."""
    told = [
        f"{d[key]:.2f} at {d['dose']:.2f} in round {w['round']}"
        for w in walks
        for d in w["per_dose"]
        if d[key] is not None
    ]
    return f"{title}. {'; '.join(told)}"


def by_dose(key: str, walks: Sequence[Mapping], axis: Axes, theme: Theme) -> None:
    """Draws a figure by dose, a line per round."""
    ends = []
    for i, walk in enumerate(walks):
        points = [(d["dose"], d[key]) for d in walk["per_dose"] if d[key] is not None]
        if not points:
            continue
        style = {"color": theme.steered, "alpha": ramp(i, len(walks)), "markersize": 4.5}
        axis.plot(*zip(*points, strict=True), "o-", **style)
        if len(walks) <= FEW or i in (0, len(walks) - 1):
            ends.append((*points[-1], walk["round"]))
    for (x, _, number), y in zip(ends, apart([y for _, y, _ in ends], 0.06, 1.0), strict=True):
        label(axis, x, y, str(number), theme, theme.steered, (6, -3))
    axis.set_ylim(0, 1.03)
    axis.set_xlim(left=0)
    axis.margins(x=0.08)


def the_walk(walks: Sequence[Mapping], target: float, axis: Axes, theme: Theme) -> None:
    """Draws survival and kappa of every batch, in the order in which they were sampled."""
    start, middles, kappas = 0, [], []
    for i, walk in enumerate(walks):
        x = [start + j for j in range(len(walk["curve"]))]
        style = {"color": theme.steered, "alpha": ramp(i, len(walks)), "markersize": 4.5, "zorder": 3}
        axis.plot(x, [b["survival"] for b in walk["curve"]], "o-", **style)
        kappas += [(j, b["kappa"]) for j, b in zip(x, walk["curve"], strict=True)]
        if i:
            axis.axvline(start - 0.5, color=theme.line, linewidth=1)
        middles.append((start + len(x) / 2 - 0.5, walk["round"]))
        start += len(x)
    edges = [(j + side, kappa) for j, kappa in kappas for side in (-0.5, 0.5)]
    axis.plot(*zip(*edges, strict=True), color=theme.muted, linewidth=1.2)
    axis.axhline(target, color=theme.base, linestyle=":", linewidth=1.2)
    every = max(1, -(-len(middles) // 12))
    axis.set_xticks([x for x, _ in middles[::every]], [f"{n}" for _, n in middles[::every]])
    axis.set_xlim(-0.6, max(start, 1) - 0.4)
    axis.set_ylim(0, max(1.03, 1.05 * max(kappa for _, kappa in kappas)))
