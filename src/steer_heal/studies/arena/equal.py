"""Trait at equal coherence: how far each arm can be turned up before the text is no longer sound, and what it has then.

Knows nothing of how arms work. Everything is paired: within a seed all arms are asked the same items and prompts, and a
resample draws seeds, items, prompts and anchors once for all arms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from steer_heal.evaluation import Metrics
from steer_heal.evaluation.text import distinct_ngrams
from steer_heal.statistics import Estimate
from steer_heal.studies.arena.measuring import Curve
from steer_heal.studies.arena.score import scores

COHERENCE, ANCHORS = 0.97, 0.95
"""Shares of the original model's sound sentences and of its right anchors at which arms are compared."""
N_BOOT = 1000

Array = Float[np.ndarray, "..."]


@dataclass(frozen=True)
class Rows:
    """One curve as arrays, strength by observation; strength 0 (the original) first.

    `free` and `score` are of replies (free is NaN without a stance), `sound` of replies, `choice` of items, `right` of
    anchors. `whole` are figures that have no rows: 4-grams of base, off-target, divergence.
    """

    strengths: Array
    choice: Array
    free: Array
    sound: Array
    right: Array
    score: Array
    whole: Mapping[str, Array]


def rows_of(curve: Curve) -> Rows:
    """The figures of a curve's points that the table needs."""
    metrics = [point.metrics for point in curve.points]
    base = metrics[0]

    def each(read: Callable[[Metrics], Sequence[float | None]]) -> Array:
        return np.array([[np.nan if x is None else x for x in read(m)] for m in metrics], dtype=float)

    whole = {
        "4-grams": np.array([distinct_ngrams(r.text for r in m.replies) or 0.0 for m in metrics]),
        "off-target": np.array([_off_target(base, m) for m in metrics]),
        "KL": np.array([point.divergence for point in curve.points]),
    }
    whole["4-grams"] = whole["4-grams"] / whole["4-grams"][0]
    return Rows(
        np.array([point.strength for point in curve.points]),
        each(lambda m: [row.log_odds for row in m.items]),
        each(lambda m: [row.trait for row in m.replies]),
        each(lambda m: [row.sentence_ok for row in m.replies]),
        each(lambda m: [float(row.right) for row in m.anchors]),
        each(lambda m: scores(m.replies)),
        whole,
    )


def _off_target(base: Metrics, other: Metrics) -> float:
    """The largest shift of an off-target category, nats."""
    before, after = base.off_categories, other.off_categories
    return max((abs(after[name].log_odds - before[name].log_odds) for name in before), default=0.0)


def falling(values: Array) -> Array:
    """The least-squares sequence that never rises (pool adjacent violators): noise must not make a crossing."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            mean, n = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * n) / (blocks[-1][1] + n), blocks[-1][1] + n]
    return np.array([mean for mean, n in blocks for _ in range(int(n))])


def reach(strengths: Array, shares: Array, least: float) -> float:
    """The largest strength up to which a share (1 at strength 0) stays at `least`, interpolated; the last if always."""
    fitted = falling(shares)
    under = np.flatnonzero(fitted < least)
    if not len(under):
        return float(strengths[-1])
    at = int(under[0])
    if at == 0:
        return float(strengths[0])
    high, low = fitted[at - 1], fitted[at]
    return float(strengths[at - 1] + (strengths[at] - strengths[at - 1]) * (high - least) / (high - low))


FIGURES = ("log-odds", "free text", "sound", "anchors", "score", "4-grams", "off-target", "KL", "strength")


def read_off(rows: Rows, items: Array, replies: Array, anchors: Array, limited: bool = True) -> dict[str, float]:
    """All figures at the largest strength that is as coherent as asked; weights say how often each row was drawn.

    log-odds is the shift against the original, nats; sound, anchors and 4-grams are shares of its. Without `limited`
    they are read at the last strength, whatever it costs: the prompt's row.
    """
    sound = _mean(rows.sound, replies)
    right = _mean(rows.right, anchors) if rows.right.size else np.ones_like(sound)
    shares = sound / sound[0], right / right[0]
    strength = rows.strengths[-1]
    if limited:
        limits = zip(shares, (COHERENCE, ANCHORS), strict=True)
        strength = min(reach(rows.strengths, share, least) for share, least in limits)
    choice = _mean(rows.choice, items)
    curves = {
        "log-odds": choice - choice[0],
        "free text": _mean(rows.free, replies),
        "sound": shares[0],
        "anchors": shares[1],
        "score": _mean(rows.score, replies),
        **rows.whole,
    }
    return {name: float(np.interp(strength, rows.strengths, values)) for name, values in curves.items()} | {
        "strength": float(strength)
    }


def _mean(values: Array, weights: Array) -> Array:
    """Weighted mean per strength over the rows that have a figure."""
    there = ~np.isnan(values)
    return (np.where(there, values, 0.0) @ weights) / np.maximum(there @ weights, 1e-12)


def at_equal_coherence(
    curves: Mapping[str, Sequence[Curve]], unlimited: Sequence[str] = (), n_boot: int = N_BOOT, seed: int = 0
) -> dict[str, dict[str, Array]]:
    """By arm and figure, [1 + resample]: what was found, then what resamples of seeds and rows give.

    Args:
        curves: by arm, its curves; all arms have the same seeds in the same order.
        unlimited: arms that are read at their last strength.
    """
    rows = {name: [rows_of(curve) for curve in several] for name, several in curves.items()}
    first = next(iter(rows.values()))
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, list[float]]] = {name: {figure: [] for figure in FIGURES} for name in rows}
    for resample in range(n_boot + 1):
        whole = resample == 0
        seeds = np.arange(len(first)) if whole else rng.integers(len(first), size=len(first))
        drawn: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
        for at in seeds:
            sizes = [x.shape[1] for x in (first[at].choice, first[at].sound, first[at].right)]
            weights = [
                np.ones(n) if whole or not n else rng.multinomial(n, np.full(n, 1 / n)).astype(float) for n in sizes
            ]
            for name, several in rows.items():
                drawn[name].append(read_off(several[at], *weights, limited=name not in unlimited))
        for name, several in drawn.items():
            for figure in FIGURES:
                found[name][figure].append(float(np.mean([one[figure] for one in several])))
    return {name: {figure: np.array(values) for figure, values in of.items()} for name, of in found.items()}


def interval(values: Array, n: int, confidence: float = 0.95) -> Estimate:
    """The first value with the percentile interval of the others."""
    low, high = np.quantile(values[1:], [(1 - confidence) / 2, (1 + confidence) / 2]) if len(values) > 1 else (0, 0)
    return Estimate(float(values[0]), float(low), float(high), n)
