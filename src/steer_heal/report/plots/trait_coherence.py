"""What does the trait cost? Trait against coherence, both as differences to base, by round.

Knows nothing of pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer_heal.ledger import Ledger
from steer_heal.report.course import Course, shifts
from steer_heal.report.headline import event
from steer_heal.report.plots.drawing import Panel, Plot
from steer_heal.report.plots.marks import draw_map, map_keys
from steer_heal.report.plots.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        Panel(title, x, y, alt(title, course, coherence), drawer(course, coherence, floor))
        for title, x, course in found if course.known and coherence.known
    ]  # fmt: skip
    if not panels:
        return None
    reading = (
        "To the right: more of the trait. Down: broken text. Numbers are rounds, crosses 95 % intervals, and each "
        "arrow leads from the steered model to the student trained on what the filter kept of it. SHOULD: arrows "
        "that lead up to the height of base and not back to the left; the dotted line is the coherence floor."
    )
    if floor is None:
        reading = reading.replace("; the dotted line is the coherence floor", "")
    return Plot("trait_coherence", "Trait against coherence", reading, tuple(panels), map_keys(coherence))


def alt(title: str, trait: Course, coherence: Course) -> str:
    """The picture in words."""
    told = [
        f"round {a.number} steered {a.steered.value:+.2f} trait {b.steered.value:+.2f} coherence, healed "
        f"{a.healed.value:+.2f} and {b.healed.value:+.2f}"
        for a, b in zip(trait.steps, coherence.steps, strict=True)
        if a.steered and b.steered and a.healed and b.healed
    ]
    return f"{title}, trait against coherence, differences to base: {'; '.join(told)}"


def drawer(trait: Course, coherence: Course, floor: float | None):
    """How to draw one map."""

    def draw(axis: Axes, theme: Theme) -> None:
        draw_map(axis, theme, trait, coherence)
        if floor is not None:
            axis.axhline(floor, color=theme.muted, linewidth=1.1, linestyle=":")
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, -0.12), max(high, 0.06))

    return draw
