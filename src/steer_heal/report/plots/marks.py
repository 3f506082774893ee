"""What several pictures draw alike: figures with intervals, and steps between the models of a round.

Knows nothing of runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from steer_heal.report.course import Course, Span, Step
from steer_heal.report.plots.drawing import MARKS, Key
from steer_heal.report.plots.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 4
"""Up to so many rounds each has its number and intervals; of more, the first, the best and the last one."""


def numbered(steps: Sequence[Step]) -> list[int]:
    """Rounds whose number and intervals are drawn; the last one not beside the best, where both would overlap."""
    numbers = [step.number for step in steps]
    if len(steps) <= FEW:
        return numbers
    best = [step.number for step in steps if step.best]
    last = [number for number in numbers[-1:] if all(abs(number - other) > 1 for other in best)]
    return sorted({numbers[0], *best, *last})


def mark(axis: Axes, x: Span, y: Span, kind: str, colour: str, cross: bool = True, **style) -> None:
    """A model as a point, with its intervals as a faint cross."""
    look = {"color": colour, "markeredgecolor": colour} | MARKS[kind] | {"linestyle": ""} | style
    if cross:
        across, up = ([[arm] for arm in found.arms] for found in (x, y))
        axis.errorbar([x.value], [y.value], xerr=across, yerr=up, fmt="none", ecolor=colour, elinewidth=1, alpha=0.4)
    axis.plot([x.value], [y.value], **look)


def label(axis: Axes, x: float, y: float, text: str, theme: Theme, colour: str, at: tuple[int, int] = (6, 5)) -> None:
    """Words beside a point, readable over lines; to its left where they would leave the panel on the right."""
    from matplotlib.patheffects import withStroke

    left, right = axis.get_xlim()
    aside = len(text) > 2 and x > left + 0.6 * (right - left)
    axis.annotate(
        text, (x, y), xytext=(-at[0] if aside else at[0], at[1]), textcoords="offset points", fontsize=8,
        fontweight="bold", color=colour, zorder=9, ha="right" if aside else "left", annotation_clip=True,
        path_effects=[withStroke(linewidth=2.5, foreground=theme.paper)],
    )  # fmt: skip


def apart(values: Sequence[float], gap: float, top: float) -> list[float]:
    """Heights for labels, in the order of the values: at least a gap between any two, none above the top."""
    out, below, above = list(values), -math.inf, top + gap
    upwards = sorted(range(len(values)), key=lambda i: values[i])
    for i in upwards:
        out[i] = below = max(values[i], below + gap)
    for i in reversed(upwards):
        out[i] = above = min(out[i], above - gap)
    return out


def draw_map(axis: Axes, theme: Theme, x: Course, y: Course) -> None:
    """Two figures against each other, by round: base, steered, healed, and an arrow for what each heal did."""
    both = list(zip(x.steps, y.steps, strict=True))
    shown = numbered(x.steps)
    axis.axhline(y.base, color=theme.base, linewidth=0.8, alpha=0.6)
    axis.axvline(x.base, color=theme.base, linewidth=0.8, alpha=0.6)
    for across, up in both:
        if across.steered and up.steered and across.healed and up.healed:
            axis.annotate(
                "", (across.healed.value, up.healed.value), (across.steered.value, up.steered.value), zorder=1,
                arrowprops={"arrowstyle": "-|>", "color": theme.muted, "linewidth": 0.9, "linestyle": (0, (3, 3)),
                            "alpha": 0.55, "shrinkA": 4, "shrinkB": 4, "mutation_scale": 8},
            )  # fmt: skip
    standing = {n: s.value for n, s in x.standing}
    path = [(standing[n], s.value) for n, s in y.standing if n in standing]
    axis.plot(*zip(*path, strict=True), color=theme.healed, zorder=2)
    for across, up in both:
        if across.steered and up.steered:
            mark(axis, across.steered, up.steered, "triangle", theme.steered, across.number in shown, zorder=3)
            if across.number in shown:
                label(axis, across.steered.value, up.steered.value, str(across.number), theme, theme.steered)
        if across.healed and up.healed:
            kind = "circle" if across.stands else "hollow"
            mark(axis, across.healed, up.healed, kind, theme.healed, across.number in shown, zorder=4)
            if across.best:
                axis.plot([across.healed.value], [up.healed.value], "o", markersize=12, markerfacecolor="none",
                          markeredgecolor=theme.healed, markeredgewidth=1.2, zorder=4)  # fmt: skip
            if across.number in shown:
                label(axis, across.healed.value, up.healed.value, str(across.number), theme, theme.healed, (6, -12))
    for name, found in x.others:
        if (other := y.other(name)) is not None:
            kind, colour = ("diamond", theme.prompted) if name == "prompted" else ("cross", theme.control)
            mark(axis, found, other, kind, colour, zorder=3)
    axis.plot([x.base], [y.base], "s", color=theme.base, zorder=5)
    controls = [(name, found, y.other(name)) for name, found in x.others if name != "prompted" and y.other(name)]
    for i, (name, found, other) in enumerate(controls):
        label(axis, found.value, other.value, name, theme, theme.control, (6, 5 + 10 * i))


def map_keys(course: Course) -> tuple[Key, ...]:
    """The legend of a map."""
    keys = [Key("base", "square", "base"), Key("steered", "triangle", "steered, unfiltered"),
            Key("healed", "circle", "healed")]  # fmt: skip
    if any(not step.stands for step in course.steps):
        keys.append(Key("healed", "hollow", "healed, reverted"))
    keys.append(Key("prompted", "diamond", "persona as system prompt"))
    if any(name != "prompted" for name, _ in course.others):
        keys.append(Key("control", "cross", "control"))
    return tuple(keys)
