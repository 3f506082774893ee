"""How does each figure go, round by round? Trait, coherence and diversity of the steered and the healed model.

Knows nothing of pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer_heal.ledger import Ledger
from steer_heal.report.expectations import legend
from steer_heal.report.plots.course import Course, levels, shifts
from steer_heal.report.plots.drawing import Key, Panel, Plot, Theme, ring

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARE = (0.0, 1.0)
ASIDE = -0.06
"""Rounds by which the steered model is drawn beside the healed one, so that both intervals can be seen."""


def trajectory_plot(ledger: Ledger) -> Plot:
    """Panels for what was measured; base alone where no round was."""
    coherence = levels(ledger, "sentence_ok", lambda s: s["sentence_ok"])
    found = [
        ("Trait in forced choice", "log-odds (nats)", levels(ledger, "log_odds", lambda s: s["log_odds"]), None),
        ("Trait in free text", "share of replies", levels(ledger, "free_trait", lambda s: s["free_trait"]), SHARE),
        ("Coherence", "sound sentences (share)", coherence, SHARE),
        ("Diversity", "4-grams (distinct, share)", levels(ledger, "distinct4"), SHARE),
    ]
    if coherence is None:
        less = shifts(ledger, lambda s: s["coherence"])
        found[2] = ("Coherence", "coherent replies, difference to base", less if less.known else None, None)
    panels = [
        Panel(title, "round", y, alt(title, course), drawer(course, limits))
        for title, y, course, limits in found
        if course is not None
    ]
    steps = next(course for _, _, course, _ in found if course is not None).steps
    keys = [Key("steered", "triangle", "steered, unfiltered"), Key("healed", "circle", "healed (ring: the result)")]
    if any(not step.stands for step in steps):
        keys.append(Key("healed", "hollow", "healed, reverted"))
    keys += [Key("base", "line", "base"), Key("prompted", "dotted", "persona as system prompt")]
    reading = (
        "Each round steers the student, trains on the round's texts, and measures both on the same held-out items. "
        "Bars are 95 % intervals of the paired difference to base. Steered falling under base in coherence is what "
        "there is to heal. " + legend(ledger.events(), "trajectory")
    )
    return Plot("trajectory", "Trajectory", reading, tuple(panels), tuple(keys))


def alt(title: str, course: Course) -> str:
    """The picture in words."""
    told = [f"base {course.base:.2f}"]
    told += [f"round {s.number} healed {s.healed.value:.2f}" for s in course.steps if s.healed]
    if prompted := course.other("prompted"):
        told.append(f"prompted {prompted.value:.2f}")
    return f"{title} by round: {', '.join(told)}"


def drawer(course: Course, limits: tuple[float, float] | None):
    """How to draw one figure by round."""

    def inside(value: float) -> float:
        return min(max(value, limits[0]), limits[1]) if limits else value

    def bars(axis: Axes, colour: str, points: list, kind: str, shift: float) -> None:
        if not points:
            return
        x = [number + shift for number, _ in points]
        y = [inside(found.value) for _, found in points]
        ends = [(inside(f.value - f.arms[0]), inside(f.value + f.arms[1])) for _, f in points]
        arms = [
            [v - low for v, (low, _) in zip(y, ends, strict=True)],
            [high - v for v, (_, high) in zip(y, ends, strict=True)],
        ]
        axis.errorbar(x, y, yerr=arms, fmt="none", ecolor=colour, elinewidth=1.1, alpha=0.55)
        fill = {"markerfacecolor": "none"} if kind == "hollow" else {}
        axis.plot(x, y, "^" if kind == "triangle" else "o", color=colour, zorder=4, **fill)

    def draw(axis: Axes, theme: Theme) -> None:
        last = max((step.number for step in course.steps), default=-1)
        axis.axhline(course.base, color=theme.base, linewidth=1.1)
        if prompted := course.other("prompted"):
            axis.axhline(prompted.value, color=theme.prompted, linewidth=1.6, linestyle=":")
        steered = [(s.number, s.steered) for s in course.steps if s.steered]
        aside = [n + ASIDE for n, _ in steered]
        axis.plot(aside, [inside(s.value) for _, s in steered], "--", color=theme.steered, alpha=0.8)
        bars(axis, theme.steered, steered, "triangle", ASIDE)
        path = course.standing
        axis.plot([n for n, _ in path], [inside(s.value) for _, s in path], color=theme.healed, zorder=3)
        bars(axis, theme.healed, [(s.number, s.healed) for s in course.steps if s.healed and s.stands], "circle", 0.0)
        reverted = [(s.number, s.healed) for s in course.steps if s.healed and not s.stands]
        bars(axis, theme.healed, reverted, "hollow", 0.0)
        axis.plot([-1], [course.base], "s", color=theme.base, zorder=5)
        for step in course.steps:
            if step.best and step.healed:
                ring(axis, step.number, inside(step.healed.value), theme)
        every = max(1, -(-(last + 1) // 11))
        axis.set_xticks([-1, *range(0, last + 1, every)], ["base", *map(str, range(0, last + 1, every))])
        axis.set_xlim(-1.4, last + 0.4)
        if limits:
            low = min([course.base, *(s.value for n, s in path), *(s.value for _, s in steered)])
            axis.set_ylim(limits[0] if low < 0.55 else 0.5 * low, limits[1] + 0.05)

    return draw
