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
    reach: float | None = None,
) -> Estimate:
    """Mean over all observations with an interval that resamples whole clusters.

    The interval is `studentised`; where at least half of the clusters share one value it is `mostly_equal`. `reach` is
    how far from equal clusters one that was not seen may lie, in the unit of the data; without it the interval of
    clusters that are all equal is a point. Raises ValueError when the lengths differ or there is no observation.
    """
    sums, counts = cluster_sums(values, clusters)
    value = float(sums.sum() / counts.sum())
    if len(sums) < 2 or not math.isfinite(value):
        return Estimate(value, -math.inf, math.inf, len(sums))
    shared = shared_value(sums / counts)
    if shared is None:
        low, high = studentised(sums, counts, confidence, n_boot, seed)
    else:
        low, high = mostly_equal(sums, counts, shared, confidence, n_boot, seed, reach)
    return Estimate(value, low, high, len(sums))


Clusters = Float[np.ndarray, " cluster"]
EQUAL = 1e-5
"""Cluster means that differ by no more are equal: forward passes in float32 leave about 1e-6 nats of noise."""
UNSEEN = 0.5
"""Weight of the clusters that were not seen, in each direction (Jeffreys' prior for a share)."""


def studentised(
    sums: Clusters, counts: Clusters, confidence: float = CONFIDENCE, n_boot: int = N_BOOT, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap-t interval of sum(sums) / sum(counts), clusters resampled.

    Quantiles of (resampled - found) / its standard error replace those of Student's t, so skewed data get an interval
    that reaches further on their long side (Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter
    12). The standard error is the linearised one of a ratio, sqrt(n / (n - 1) sum r^2) / sum(counts), r = sum - mean *
    count. With two or three clusters too many resamples have no spread, and the interval is infinite.
    """
    n = len(sums)
    rest = sums - sums.sum() / counts.sum() * counts
    moments = resamples(n, n_boot, seed) @ np.stack([rest, counts, rest**2, rest * counts, counts**2], 1)
    off = moments[:, 0] / moments[:, 1]
    squares = moments[:, 2] - 2 * off * moments[:, 3] + off**2 * moments[:, 4]
    known = squares > 1e-12 * (rest**2).sum()
    # Without any spread the distance from the mean is infinitely many standard errors.
    scores = np.where(off == 0, 0.0, np.copysign(math.inf, off))
    scores[known] = off[known] * moments[known, 1] / np.sqrt(squares[known] * n / (n - 1))
    error = math.sqrt((rest**2).sum() * n / (n - 1)) / float(counts.sum())
    below, above = _quantiles(scores, 0.5 - confidence / 2)
    mean = float(sums.sum() / counts.sum())
    return mean - float(above) * error, mean - float(below) * error


def mostly_equal(
    sums: Clusters,
    counts: Clusters,
    shared: float,
    confidence: float = CONFIDENCE,
    n_boot: int = N_BOOT,
    seed: int = 0,
    reach: float | None = None,
) -> tuple[float, float]:
    """Interval of sum(sums) / sum(counts) when most clusters have the mean `shared`: Bayesian bootstrap (Rubin 1981).

    Clusters get exponential weights. Two clusters that were not seen join them with weights from Gamma(1/2), as far
    above and below `shared` as the farthest that was seen, or by `reach` when all are equal: of n equal clusters the
    next one may still differ, and resamples of equal ones would claim certainty.
    """
    farthest, size = float(np.abs(sums / counts - shared).max()), counts.mean()
    if farthest > EQUAL:
        reach = farthest
    elif reach is None:
        return shared, shared
    sums = np.append(sums, [(shared - reach) * size, (shared + reach) * size])
    weights = unseen_weights(len(counts), n_boot, seed)
    means = (weights @ sums) / (weights @ np.append(counts, [size, size]))
    low, high = _quantiles(means, tail(len(counts), confidence))
    return float(low), float(high)


def shared_value(means: Clusters) -> float | None:
    """The value that at least half of the clusters (and at least two) have in common, None without one."""
    ordered = np.sort(means)
    for middle in {(len(means) - 1) // 2, len(means) // 2}:  # half of sorted values include a median
        same = int((np.abs(means - ordered[middle]) <= EQUAL).sum())
        if same >= 2 and 2 * same >= len(means):
            return float(ordered[middle])
    return None


def paired_difference(
    before: Values,
    after: Values,
    clusters: Sequence[Hashable],
    confidence: float = CONFIDENCE,
    n_boot: int = N_BOOT,
    seed: int = 0,
    reach: float | None = None,
) -> Estimate:
    """Mean of after - before over paired observations, clusters resampled (see `bootstrap_mean`)."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} observations before and {len(after)} after are not pairs")
    return bootstrap_mean(np.subtract(after, before), clusters, confidence, n_boot, seed, reach)


def paired_ratio(
    numerator: Values,
    denominator: Values,
    clusters: Sequence[Hashable],
    confidence: float = CONFIDENCE,
    n_boot: int = N_BOOT,
    seed: int = 0,
) -> Estimate | None:
    """sum(numerator) / sum(denominator) over paired observations, clusters resampled: retain with its interval.

    None where the denominator is 0. The interval is the expanded percentile interval (see `tail`). It is infinite when
    resampled denominators take both signs: the ratio then has no finite spread (Fieller's unbounded case).
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
    low, high = _quantiles((weights @ top) / bottoms, tail(len(counts), confidence))
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


@cache
def unseen_weights(n: int, n_boot: int, seed: int) -> Float[np.ndarray, "resample cluster_and_2"]:
    """Weights of n clusters and of the two that were not seen (see `mostly_equal`); read-only, shared."""
    rng = np.random.default_rng(seed)
    seen, unseen = rng.standard_exponential((n_boot, n)), rng.standard_gamma(UNSEEN, (n_boot, 2))
    weights = np.concatenate([seen, unseen], 1)
    weights.setflags(write=False)
    return weights


def tail(n: int, confidence: float = CONFIDENCE) -> float:
    """Tail probability of the expanded percentile interval: Phi(-sqrt(n / (n - 1)) * t), t from Student's t(n - 1).

    The plain percentile interval is too narrow by sqrt((n - 1) / n) and by normal instead of t quantiles; widening
    the quantile levels repairs both (Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3).
    """
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * t_quantile(0.5 + confidence / 2, n - 1))


def _quantiles(values: Float[np.ndarray, " resample"], level: float) -> tuple[float, float]:
    """Quantiles at level and 1 - level, without interpolation: values may be infinite."""
    level = round(level, 12)  # .5 - .95 / 2 is not quite .025
    low, high = np.quantile(values, [level, 1 - level], method="inverted_cdf")
    return low, high


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
