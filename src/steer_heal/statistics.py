"""Uncertainty of means, paired differences and ratios when observations come in clusters: bootstrap, Wilson.

Knows nothing of models and metrics. Every function is deterministic in its seed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

Values = Sequence[float] | Float[np.ndarray, " observation"]
N_BOOT = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval, in the unit of the data.

    `n` is the number of clusters (items, prompts) behind it. Under two clusters nothing is known of the spread and
    the interval is infinite.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def bootstrap_mean(
    values: Values,
    clusters: Sequence[Hashable],
    confidence: float = CONFIDENCE,
    n_boot: int = N_BOOT,
    seed: int = 0,
) -> Estimate:
    """Mean over all observations with an interval that resamples whole clusters.

    The interval is the expanded percentile interval (see `tail`). Raises ValueError when the lengths differ or
    there is no observation.
    """
    sums, counts = cluster_sums(values, clusters)
    value = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Estimate(value, -math.inf, math.inf, len(sums))
    weights = resamples(len(sums), n_boot, seed)
    means = (weights @ sums) / (weights @ counts)
    low, high = np.quantile(means, _levels(len(sums), confidence))
    return Estimate(value, float(low), float(high), len(sums))


def paired_difference(
    before: Values,
    after: Values,
    clusters: Sequence[Hashable],
    confidence: float = CONFIDENCE,
    n_boot: int = N_BOOT,
    seed: int = 0,
) -> Estimate:
    """Mean of after - before over paired observations, clusters resampled (see `bootstrap_mean`)."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} observations before and {len(after)} after are not pairs")
    return bootstrap_mean(np.subtract(after, before), clusters, confidence, n_boot, seed)


def paired_ratio(
    numerator: Values,
    denominator: Values,
    clusters: Sequence[Hashable],
    confidence: float = CONFIDENCE,
    n_boot: int = N_BOOT,
    seed: int = 0,
) -> Estimate | None:
    """sum(numerator) / sum(denominator) over paired observations, clusters resampled: retain with its interval.

    None where the denominator is 0. The interval is infinite when resampled denominators take both signs: the ratio
    then has no finite spread (Fieller's unbounded case).
    """
    top, counts = cluster_sums(numerator, clusters)
    bottom, _ = cluster_sums(denominator, clusters)
    if len(numerator) != len(denominator):
        raise ValueError(f"{len(numerator)} numerators and {len(denominator)} denominators are not pairs")
    if bottom.sum() == 0:
        return None
    value = float(top.sum() / bottom.sum())
    weights = resamples(len(counts), n_boot, seed) if len(counts) > 1 else np.ones((1, 1))
    bottoms = weights @ bottom
    if len(counts) < 2 or (not (bottoms > 0).all() and not (bottoms < 0).all()):
        return Estimate(value, -math.inf, math.inf, len(counts))
    low, high = np.quantile((weights @ top) / bottoms, _levels(len(counts), confidence))
    return Estimate(value, float(low), float(high), len(counts))


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Estimate:
    """Wilson's score interval of a share of independent trials (Wilson 1927); (0, 1) without trials."""
    if not 0 <= successes <= max(n, 0):
        raise ValueError(f"{successes} successes of {n} trials")
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # The ends are exactly 0 and 1 there; the formula only rounds to them.
    low = 0.0 if successes == 0 else middle - half
    return Estimate(share, low, 1.0 if successes == n else middle + half, n)


def cluster_sums(
    values: Values, clusters: Sequence[Hashable]
) -> tuple[Float[np.ndarray, " cluster"], Float[np.ndarray, " cluster"]]:
    """Sum and number of the observations of each cluster, clusters in order of first appearance."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} observations and {len(clusters)} cluster labels")
    if len(values) == 0:
        raise ValueError("no observations")
    index = {label: i for i, label in enumerate(dict.fromkeys(clusters))}
    place = np.array([index[label] for label in clusters])
    return np.bincount(place, values, len(index)), np.bincount(place, minlength=len(index)).astype(np.float64)


@cache
def resamples(n: int, n_boot: int, seed: int) -> Float[np.ndarray, "resample cluster"]:
    """How often each of `n` clusters is drawn in each resample; read-only, shared by all figures of one size."""
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot).astype(np.float64)
    weights.setflags(write=False)
    return weights


def tail(n: int, confidence: float = CONFIDENCE) -> float:
    """Tail probability of the expanded percentile interval: Phi(-sqrt(n / (n - 1)) * t), t from Student's t(n - 1).

    The plain percentile interval is too narrow by sqrt((n - 1) / n) and by normal instead of t quantiles; widening
    the quantile levels repairs both (Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3).
    """
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * t_quantile(0.5 + confidence / 2, n - 1))


def _levels(n: int, confidence: float) -> tuple[float, float]:
    level = tail(n, confidence)
    return level, 1 - level


@cache
def t_quantile(level: float, freedom: int) -> float:
    """Quantile (level >= .5) of Student's t by bisection on `t_cdf`."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for integer degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(3 if odd else 2, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + inside / 2
