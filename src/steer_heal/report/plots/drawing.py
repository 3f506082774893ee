"""Panels to pictures: SVG for the page, in a light and a dark rendering, and PNG beside the summary.

Knows nothing of runs. Names in pictures come from traits and models, so no text is read as mathematics.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steer_heal.report.plots.theme import LIGHT, Theme, darkened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.2, 3.2
"""Of a panel, in inches."""
EDGES = {"left": 0.74, "right": 0.14, "top": 0.36, "bottom": 0.5}
"""Room around a panel's axes for its labels, in inches."""
DPI = 130
MARKS = {
    "circle": {"marker": "o", "linestyle": "-"},
    "hollow": {"marker": "o", "linestyle": "", "markerfacecolor": "none"},
    "triangle": {"marker": "^", "linestyle": "--"},
    "diamond": {"marker": "D", "linestyle": ""},
    "cross": {"marker": "X", "linestyle": ""},
    "square": {"marker": "s", "linestyle": ""},
    "line": {"linestyle": "-"},
    "dotted": {"linestyle": ":"},
    "step": {"linestyle": "-", "drawstyle": "steps-mid"},
}
"""How a kind of model is drawn, in panels and legends."""
FONT = "DejaVu Sans"


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a colour's name in `Theme`, a name in `MARKS`, and what it stands for."""

    colour: str
    mark: str
    label: str


@dataclass(frozen=True)
class Panel:
    """One picture: the question on its axes, and how to draw it. `alt` says in words what is seen."""

    title: str
    x: str
    y: str
    alt: str
    draw: Callable[[Axes, Theme], None]

    @property
    def addresses(self) -> tuple[str, str]:
        """The picture as a `data:` address for light pages, and one for dark pages."""
        drawn = svg(self)
        both = (base64.b64encode(text.encode()).decode() for text in (drawn, darkened(drawn)))
        return tuple(f"data:image/svg+xml;base64,{text}" for text in both)


@dataclass(frozen=True)
class Plot:
    """Panels that answer one question together; `name` is that of its file."""

    name: str
    heading: str
    reading: str
    panels: tuple[Panel, ...]
    keys: tuple[Key, ...]


def svg(panel: Panel) -> str:
    """A panel in light colours on transparent ground; the same panel gives the same text."""
    with _settings(LIGHT):
        figure = _figure(WIDTH, HEIGHT)
        _draw(figure.subplots(), panel, LIGHT)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return out.getvalue().replace(f"'{FONT}'", f"system-ui, '{FONT}'")


def png(plot: Plot) -> bytes:
    """All panels of a plot on white, two in a row, with one legend."""
    from matplotlib.lines import Line2D

    columns = min(len(plot.panels), 3 if len(plot.panels) == 3 else 2)
    rows = -(-len(plot.panels) // columns)
    with _settings(LIGHT):
        room = 0.45
        figure = _figure(WIDTH * columns, HEIGHT * rows + room, rows, columns, room)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes[len(plot.panels) :]:
            axis.remove()
        for axis, panel in zip(axes, plot.panels, strict=False):
            _draw(axis, panel, LIGHT)
        colours = LIGHT.colours
        handles = [Line2D([], [], color=colours[k.colour], label=k.label, **MARKS[k.mark]) for k in plot.keys]
        figure.legend(handles=handles, loc="upper center", ncols=6, frameon=False, fontsize=9)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, room: float = 0.0) -> Figure:
    """An empty figure whose margins are fixed in inches: laying out by search would take most of the time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    across, down = EDGES["left"] + EDGES["right"], EDGES["top"] + EDGES["bottom"]
    figure.subplots_adjust(
        left=EDGES["left"] / width, right=1 - EDGES["right"] / width, bottom=EDGES["bottom"] / height,
        top=1 - (EDGES["top"] + room) / height, wspace=across / (width / columns - across),
        hspace=down / ((height - room) / rows - down),
    )  # fmt: skip
    return figure


def _draw(axis: Axes, panel: Panel, theme: Theme) -> None:
    """One panel: its content, then title, labels, a quiet grid."""
    axis.set_facecolor("none")
    panel.draw(axis, theme)
    axis.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", color=theme.text, x=-0.02)
    axis.set_xlabel(panel.x)
    axis.set_ylabel(panel.y)
    axis.grid(color=theme.line, linewidth=0.6, alpha=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(theme.line)
    axis.tick_params(color=theme.line)


@contextmanager
def _settings(theme: Theme) -> Iterator[None]:
    import matplotlib

    changed = {
        "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "steer_heal", "font.family": ["sans-serif"],
        "font.sans-serif": [FONT], "font.size": 9, "axes.labelcolor": theme.muted, "text.color": theme.text,
        "xtick.labelcolor": theme.muted, "ytick.labelcolor": theme.muted, "axes.unicode_minus": True,
        "lines.markersize": 5.5, "lines.linewidth": 1.7,
    }  # fmt: skip
    with matplotlib.rc_context(changed):
        yield
