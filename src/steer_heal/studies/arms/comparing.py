"""Runs of arms compared: spread over seeds, paired item by item against the first arm, and at equal trait.

Knows nothing of files and of how figures are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from steer_heal.evaluation import Metrics, Shift, compare
from steer_heal.statistics import N_BOOT
from steer_heal.studies.arms.reading import ArmRun, State, figures, ratio_to_target
from steer_heal.studies.writing import grouped

Figures = dict[str, float | None]
COMPARED = {"free_trait": "trait, share", "log_odds": "log-odds, nats", "coherence": "sentence ok, share"}
"""Figures with paired intervals, as `Shift` names them, and their columns."""


@dataclass(frozen=True)
class Spread:
    """Median and range over the seeds in which a figure was measured."""

    middle: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """None when no seed has the figure."""
    found = [value for value in values if value is not None]
    return Spread(median(found), min(found), max(found), len(found)) if found else None


def by_arm(runs: Sequence[ArmRun]) -> dict[str, list[ArmRun]]:
    """Runs by arm, both in the order given."""
    return grouped(runs, lambda run: run.arm)


def joined(parts: Sequence[Metrics]) -> Metrics:
    """Evaluations of several seeds as one; an item's rows keep its name, so they stay one cluster."""
    names = ("items", "off_target", "vignettes", "replies", "anchors", "held_out")
    rows = {name: sum((getattr(part, name) for part in parts), ()) for name in names}
    return replace(parts[0], items_key="+".join(part.items_key for part in parts), **rows)


def compare_states(before: Sequence[State], after: Sequence[State], n_boot: int = N_BOOT) -> Shift:
    """Paired shift over several seeds, clustered by item and prompt over them.

    Raises InputError when a pair was measured on different items.
    """
    return compare(joined([s.metrics for s in before]), joined([s.metrics for s in after]), n_boot)


@dataclass(frozen=True)
class Paired:
    """An arm against the first one after the same round, on the same items and seeds: arm - first.

    Attributes:
        round: None is the end of the runs, whenever each of them ended.
        shift: pooled over the seeds, intervals over items and prompts. ranges: per figure of `COMPARED`, smallest and
            largest difference of a seed.
    """

    arm: str
    round: int | None
    seeds: tuple[int, ...]
    shift: Shift
    ranges: dict[str, tuple[float, float] | None]


def paired(runs: Sequence[ArmRun]) -> list[Paired]:
    """Every arm but the first, every round that both reached, states that stand; then the ends of the runs.

    Rounds are compared over the seeds in which both arms reached them. Empty for one arm. Raises InputError when an
    arm was measured on other items than the first.
    """
    arms = by_arm(runs)
    first = {run.seed: run for run in next(iter(arms.values()))}
    out = []
    for name, others in list(arms.items())[1:]:
        pairs = [(first[run.seed], run) for run in others if run.seed in first]
        for number in range(max((run.n_rounds for run in others), default=0)):
            reached = [pair for pair in pairs if all(number < len(run.rounds) for run in pair)]
            if reached:
                out.append(_paired(name, number, reached, [[r.standing(number) for r in pair] for pair in reached]))
        if pairs:
            out.append(_paired(name, None, pairs, [[run.last for run in pair] for pair in pairs]))
    return out


def _paired(name: str, number: int | None, pairs, states: Sequence[Sequence[State]]) -> Paired:
    ranges: dict[str, tuple[float, float] | None] = {}
    single = [compare_states([before], [after], n_boot=100) for before, after in states]  # only the values are used
    for figure in COMPARED:
        values = [found.value for one in single if (found := getattr(one, figure)) is not None]
        ranges[figure] = (min(values), max(values)) if values else None
    pooled = compare_states([before for before, _ in states], [after for _, after in states])
    return Paired(name, number, tuple(run.seed for _, run in pairs), pooled, ranges)


@dataclass(frozen=True)
class Matched:
    """A run where its forced-choice shift first reaches `level` nats.

    Attributes:
        round: first round at or above the level; None when the run never got there.
        figures: interpolated to the level between the states that stand before and after that round.
    """

    arm: str
    seed: int
    level: float
    round: int | None
    figures: Figures


def matched(runs: Sequence[ArmRun], levels: Sequence[float]) -> list[Matched]:
    """Every run at every level.

    The figures are linear interpolations in the shift between two neighbouring standing states (base counts as the
    first): at the first round at or above the level alone, an arm of large steps would be charged for its overshoot.
    """
    return [_at_level(run, level) for level in levels for run in runs]


def _at_level(run: ArmRun, level: float) -> Matched:
    before = figures(run.base, run.base)
    for done in run.rounds:
        after = figures(run.standing(done.number), run.base)
        if after["shift"] >= level:
            return Matched(run.arm, run.seed, level, done.number, interpolated(before, after, level))
        before = after
    return Matched(run.arm, run.seed, level, None, {})


def interpolated(before: Figures, after: Figures, level: float) -> Figures:
    """Figures where the shift is `level`, on the line between two states; a figure that one of them lacks is None."""
    low, high = before["shift"], after["shift"]
    weight = 1.0 if high == low else (level - low) / (high - low)
    both = {name: (before[name], after[name]) for name in after}
    out = {name: None if None in (a, b) else a + weight * (b - a) for name, (a, b) in both.items()}
    return out | {"off_ratio": ratio_to_target(out["off_target"], level)}
