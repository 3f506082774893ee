"""What the pictures of all studies share: paper, axes, one legend, a caption.

Knows nothing of what is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure on white; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def dress(axis: Axes, x: str, y: str) -> None:
    """Labels, whole rounds, a quiet grid."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if x.startswith("round"):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path, caption: str, legend: str | None = None, columns: int = 1) -> None:
    """Write the picture with its caption; `legend` is the place of one for all panels, each label once."""
    if legend is not None:
        found = {}
        for axis in figure.axes:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        shape = {"ncols": min(columns, max(1, len(found))), "frameon": False, "fontsize": 9}
        figure.legend(list(found.values()), list(found), loc=legend, **shape)
    figure.supxlabel(caption, fontsize=9)
    figure.savefig(path, dpi=110)
