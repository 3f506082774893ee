"""Panels to pictures: colours and marks, SVG for the page in a light and a dark rendering, PNG beside the summary.

Knows nothing of runs. Names in pictures come from traits and models, so no text is read as mathematics.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

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
class Theme:
    """Colours as `#rrggbb`: of the models, of text, of quiet lines, and of the paper that a picture lies on.

    Kinds are also told apart by marker and line, so that no reader depends on colour.
    """

    base: str
    steered: str
    healed: str
    prompted: str
    control: str
    text: str
    muted: str
    line: str
    paper: str

    @property
    def colours(self) -> dict[str, str]:
        """By name, for a style sheet."""
        return asdict(self)


LIGHT = Theme("#6b7280", "#cf3e53", "#12835f", "#2f6fd0", "#8a5aa8", "#1f2430", "#626b78", "#d5d9e0", "#ffffff")
DARK = Theme("#9aa3b0", "#ff7d8a", "#4cc99a", "#7fb2ff", "#c79be6", "#e4e7ec", "#9aa3b0", "#3a414d", "#1a1e26")


def ramp(i: int, n: int) -> float:
    """Opacity of round i of n: from pale for early rounds to full for the last."""
    return 1.0 if n <= 1 else 0.3 + 0.7 * i / (n - 1)


def darkened(drawn: str) -> str:
    """An SVG drawn in light colours, in dark ones."""
    swap = dict(zip(LIGHT.colours.values(), DARK.colours.values(), strict=True))
    return re.sub("|".join(swap), lambda found: swap[found[0]], drawn)


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


def ring(axis: Axes, x: float, y: float, theme: Theme) -> None:
    """Marks the result."""
    look = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": theme.healed, "markeredgewidth": 1.2}
    axis.plot([x], [y], "o", zorder=5, **look)


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
        left=EDGES["left"] / width,
        right=1 - EDGES["right"] / width,
        bottom=EDGES["bottom"] / height,
        top=1 - (EDGES["top"] + room) / height,
        wspace=across / (width / columns - across),
        hspace=down / ((height - room) / rows - down),
    )
    return figure


def _draw(axis: Axes, panel: Panel, theme: Theme) -> None:
    """One panel: its content, then title, labels, a quiet grid."""
    axis.set_facecolor("none")
    panel.draw(axis, theme)
    # A title without a height of its own is placed by measuring every label, a tenth of the whole time.
    axis.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", color=theme.text, x=-0.02, y=1)
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

    changed = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "steer_heal", "text.color": theme.text}
    changed |= dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), theme.muted)
    changed |= {"font.family": ["sans-serif"], "font.sans-serif": [FONT], "font.size": 9, "axes.unicode_minus": True}
    changed |= {"lines.markersize": 5.5, "lines.linewidth": 1.7}
    with matplotlib.rc_context(changed):
        yield
