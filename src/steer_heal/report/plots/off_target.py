"""Did anything else move? The target category against off-target ones, by round.

Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from steer_heal.ledger import Ledger
from steer_heal.report.course import Course, Pick, shifts
from steer_heal.report.plots.drawing import Panel, Plot
from steer_heal.report.plots.marks import draw_map, map_keys
from steer_heal.report.plots.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 4
"""So many maps, of the categories that moved most; the tables hold all of them."""


def off_target_plot(ledger: Ledger) -> Plot | None:
    """A map per off-target category; None where none was measured."""
    rounds = ledger.events("evaluate")
    if not rounds:
        return None
    choice = shifts(ledger, lambda s: s["log_odds"])
    found = [(name, choice, shifts(ledger, of("off_target", name)), "forced choice") for name in
             rounds[0]["shift"]["off_target"]]  # fmt: skip
    contrast = shifts(ledger, lambda s: s["vignette_contrast"])
    if contrast.known:
        others = [n for n in rounds[0]["shift"]["vignettes"] if n not in rounds[0]["shift"]["vignette_target"]]
        found += [(name, contrast, shifts(ledger, of("vignettes", name)), "vignettes") for name in others]
    found = [entry for entry in found if entry[2].known]
    shown = sorted(found, key=lambda entry: -furthest(entry[2]))[:MOST]
    if not shown:
        return None
    panels = tuple(
        Panel(
            f"Target against {name} ({where})",
            "target - base (nats)",
            f"{name} - base (nats)",
            alt(name, target, other),
            drawer(target, other),
        )
        for name, target, other, where in shown
    )
    more = f" The {MOST} of {len(found)} that moved most are shown." if len(found) > MOST else ""
    reading = (
        "The trait's own items across, another category upwards, both as differences to base. Between the dotted "
        "diagonals the target moved more. SHOULD: a path that stays flat; one along a diagonal moved the model as a "
        f"whole and not the trait.{more}"
    )
    return Plot("off_target", "Target against off-target", reading, panels, map_keys(choice))


def of(group: str, name: str) -> Pick:
    """The shift of one category."""

    def pick(shift: Mapping) -> Mapping | None:
        return shift[group].get(name)

    return pick


def furthest(course: Course) -> float:
    """Largest shift of a healed student, either way."""
    return max((abs(step.healed.value) for step in course.steps if step.healed), default=0.0)


def alt(name: str, target: Course, other: Course) -> str:
    """The picture in words."""
    told = [
        f"round {a.number} healed {a.healed.value:+.2f} and {b.healed.value:+.2f}"
        for a, b in zip(target.steps, other.steps, strict=True) if a.healed and b.healed
    ]  # fmt: skip
    return f"Shift of the target against that of {name}, nats: {'; '.join(told)}"


def drawer(target: Course, other: Course) -> Callable[[Axes, Theme], None]:
    """How to draw one map."""

    def draw(axis: Axes, theme: Theme) -> None:
        draw_map(axis, theme, target, other)
        (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
        tall = max(abs(low), abs(high), 0.45 * max(abs(left), abs(right)))
        for slope in (1, -1):
            axis.axline((0, 0), slope=slope, color=theme.muted, linewidth=1, linestyle=":")
        axis.set_xlim(left, right)
        axis.set_ylim(-tall, tall)

    return draw
