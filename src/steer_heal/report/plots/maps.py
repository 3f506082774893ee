"""Two figures against each other, round by round: what the trait costs in coherence, and did anything else move?

Knows nothing of pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from steer_heal.ledger import Ledger
from steer_heal.report.expectations import legend
from steer_heal.report.headline import event
from steer_heal.report.plots.course import Course, Span, Step, shifts
from steer_heal.report.plots.drawing import MARKS, Key, Panel, Plot, Theme, ring

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 4
"""So many maps off the target, of the categories that moved most; the tables hold all of them."""
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
        text,
        (x, y),
        xytext=(-at[0] if aside else at[0], at[1]),
        textcoords="offset points",
        fontsize=8,
        fontweight="bold",
        color=colour,
        zorder=9,
        ha="right" if aside else "left",
        annotation_clip=True,
        path_effects=[withStroke(linewidth=2.5, foreground=theme.paper)],
    )


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
                "",
                (across.healed.value, up.healed.value),
                (across.steered.value, up.steered.value),
                zorder=1,
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": theme.muted,
                    "linewidth": 0.9,
                    "linestyle": (0, (3, 3)),
                    "alpha": 0.55,
                    "shrinkA": 4,
                    "shrinkB": 4,
                    "mutation_scale": 8,
                },
            )
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
                ring(axis, across.healed.value, up.healed.value, theme)
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
    keys = [
        Key("base", "square", "base"),
        Key("steered", "triangle", "steered, unfiltered"),
        Key("healed", "circle", "healed"),
    ]
    if any(not step.stands for step in course.steps):
        keys.append(Key("healed", "hollow", "healed, reverted"))
    keys.append(Key("prompted", "diamond", "persona as system prompt"))
    if any(name != "prompted" for name, _ in course.others):
        keys.append(Key("control", "cross", "control"))
    return tuple(keys)


def trait_coherence_plot(ledger: Ledger) -> Plot | None:
    """A map per instrument of the trait; None where no round was measured."""
    if not ledger.events("evaluate"):
        return None
    coherence = shifts(ledger, lambda s: s["coherence"])
    base = event(ledger, "baseline")["base"]["sentence_ok"]
    floor = None if base is None else (ledger.config["coherence_floor"] - 1) * base
    y = "sound sentences - base" if base is not None else "coherent replies - base"
    found = [
        ("Forced choice", "trait - base, log-odds (nats)", shifts(ledger, lambda s: s["log_odds"])),
        ("Free text", "trait - base, share of replies", shifts(ledger, lambda s: s["free_trait"])),
    ]
    panels = [
        Panel(title, x, y, f"{title}, {in_words(course, coherence)}", partial(with_floor, course, coherence, floor))
        for title, x, course in found
        if course.known and coherence.known
    ]
    if not panels:
        return None
    reading = (
        "To the right: more of the trait. Down: broken text. Numbers are rounds, crosses 95 % intervals, and each "
        "arrow leads from the steered model to the student trained on what the filter kept of it: up to the height of "
        f"base and not back to the left, where it works.{' Dotted: the coherence floor.' if floor is not None else ''} "
        + legend(ledger.events(), "text_kept", "trait_kept")
    )
    return Plot("trait_coherence", "Trait against coherence", reading, tuple(panels), map_keys(coherence))


def in_words(x: Course, y: Course) -> str:
    """A map in words."""
    told = [
        f"round {a.number} {state} {getattr(a, state).value:+.2f} and {getattr(b, state).value:+.2f}"
        for a, b in zip(x.steps, y.steps, strict=True)
        for state in ("steered", "healed")
        if getattr(a, state) and getattr(b, state)
    ]
    return f"differences to base, across and upwards: {'; '.join(told)}"


def with_floor(trait: Course, coherence: Course, floor: float | None, axis: Axes, theme: Theme) -> None:
    """Draws trait against coherence, with the floor of the gate."""
    draw_map(axis, theme, trait, coherence)
    if floor is not None:
        axis.axhline(floor, color=theme.muted, linewidth=1.1, linestyle=":")
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, -0.12), max(high, 0.06))


def off_target_plot(ledger: Ledger) -> Plot | None:
    """A map per off-target category; None where none was measured."""
    rounds = ledger.events("evaluate")
    if not rounds:
        return None
    choice = shifts(ledger, lambda s: s["log_odds"])
    first = rounds[0]["shift"]
    found = [(name, choice, "off_target", "forced choice") for name in first["off_target"]]
    contrast = shifts(ledger, lambda s: s["vignette_contrast"])
    if contrast.known:
        others = [name for name in first["vignettes"] if name not in first["vignette_target"]]
        found += [(name, contrast, "vignettes", "vignettes") for name in others]
    found = [
        (name, target, shifts(ledger, lambda s, group=group, name=name: s[group].get(name)), where)
        for name, target, group, where in found
    ]
    found = [entry for entry in found if entry[2].known]
    shown = sorted(found, key=lambda entry: -furthest(entry[2]))[:MOST]
    if not shown:
        return None
    panels = tuple(
        Panel(
            f"Target against {name} ({where})",
            "target - base (nats)",
            f"{name} - base (nats)",
            f"Target against {name}, {in_words(target, other)}",
            partial(with_diagonals, target, other),
        )
        for name, target, other, where in shown
    )
    more = f" The {MOST} of {len(found)} that moved most are shown." if len(found) > MOST else ""
    reading = (
        "The trait's own items across, another category upwards, both as differences to base. Between the dotted "
        f"diagonals the target moved more; a path along one moved the model as a whole.{more} "
        + legend(ledger.events(), "on_target")
    )
    return Plot("off_target", "Target against off-target", reading, panels, map_keys(choice))


def furthest(course: Course) -> float:
    """Largest shift of a healed student, either way."""
    return max((abs(step.healed.value) for step in course.steps if step.healed), default=0.0)


def with_diagonals(target: Course, other: Course, axis: Axes, theme: Theme) -> None:
    """Draws a category against the target, with the lines on which both move alike."""
    draw_map(axis, theme, target, other)
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    tall = max(abs(low), abs(high), 0.45 * max(abs(left), abs(right)))
    for slope in (1, -1):
        axis.axline((0, 0), slope=slope, color=theme.muted, linewidth=1, linestyle=":")
    axis.set_xlim(left, right)
    axis.set_ylim(-tall, tall)
