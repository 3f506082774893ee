"""Trait against coherence: one line per arm, a band over seeds, the level at which arms are compared.

Knows nothing of how arms work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from steer_heal.studies.arena.arms import PRODUCT, PROMPT
from steer_heal.studies.arena.equal import COHERENCE, rows_of
from steer_heal.studies.arena.measuring import Curve
from steer_heal.studies.drawing import dress, new_figure, save


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
