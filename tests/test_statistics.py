"""Uncertainty: simulated coverage, pairing, clusters, and edge cases of the intervals."""

import math

import numpy as np
import pytest

from steer_heal.statistics import (
    Estimate,
    bootstrap_mean,
    paired_difference,
    paired_ratio,
    t_quantile,
    wilson,
)


def draw(kind: str, rng: np.random.Generator, n: int) -> tuple[np.ndarray, list[int], float]:
    """(values, cluster of each value, true mean) of one simulated experiment with n clusters."""
    sizes = rng.integers(1, 5, n) if kind == "unequal" else np.full(n, 2)
    clusters = np.repeat(np.arange(n), sizes)
    if kind == "shares":  # a paired difference of yes / no replies, two per prompt, the prompt deciding mostly
        return np.repeat(rng.choice([-1.0, 0.0, 1.0], n, p=[0.1, 0.6, 0.3]), sizes), clusters.tolist(), 0.2
    return np.repeat(rng.normal(0.3, 1, n), sizes) + rng.normal(0, 0.5, len(clusters)), clusters.tolist(), 0.3


@pytest.mark.parametrize("kind", ["equal", "unequal", "shares"])
def test_95_percent_intervals_cover_93_to_97_percent_with_40_clusters(kind):
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(2000):
        values, clusters, truth = draw(kind, rng, 40)
        found = bootstrap_mean(values, clusters, n_boot=1000)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / 2000 <= 0.97


def test_resampling_rows_instead_of_clusters_would_be_too_sure():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=40), 8)
    clustered = bootstrap_mean(values, np.repeat(np.arange(40), 8).tolist())
    rows = bootstrap_mean(values, list(range(len(values))))
    assert clustered.high - clustered.low > 2 * (rows.high - rows.low)


def test_pairing_removes_the_spread_between_items():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 5, 50)
    found = paired_difference(before, before + 0.2 + rng.normal(0, 0.05, 50), list(range(50)))
    assert found.excludes_zero and abs(found.value - 0.2) < 0.05


def test_same_seed_gives_the_same_interval_and_another_seed_another():
    values, labels = np.random.default_rng(1).normal(size=30), list(range(30))
    assert bootstrap_mean(values, labels, seed=3) == bootstrap_mean(values, labels, seed=3)
    assert bootstrap_mean(values, labels, seed=3) != bootstrap_mean(values, labels, seed=4)


def test_one_cluster_has_an_infinite_interval_however_many_rows_it_has():
    found = bootstrap_mean([1.0] * 50, ["a"] * 50)
    assert (found.value, found.low, found.high, found.n) == (1.0, -math.inf, math.inf, 1)
    assert not found.excludes_zero


def test_mean_weighs_observations_not_clusters():
    assert bootstrap_mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).value == 0.75


def test_ratio_interval_of_exactly_proportional_shifts_is_a_point():
    bottom = np.random.default_rng(0).uniform(1, 2, 20)
    found = paired_ratio(0.7 * bottom, bottom, list(range(20)))
    assert np.allclose([found.value, found.low, found.high], 0.7)


def test_ratio_with_a_denominator_that_may_be_zero_has_no_finite_interval():
    noise = np.random.default_rng(0).normal(0.01, 1, 40)
    assert paired_ratio(np.ones(40), noise, list(range(40))).low == -math.inf
    assert paired_ratio([1.0, 2.0], [0.0, 0.0], [0, 1]) is None


def test_wilson_gives_the_published_example_and_stays_inside_0_and_1():
    # Newcombe 1998, table I, method 3: 81/263 and 15/148.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        found = wilson(successes, n)
        assert abs(found.low - low) < 5e-5 and abs(found.high - high) < 5e-5
    assert wilson(0, 10).low == 0 and wilson(10, 10).high == 1
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)


def test_t_quantiles_equal_the_printed_table():
    for freedom, value in ((1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (39, 2.023), (120, 1.980)):
        assert abs(t_quantile(0.975, freedom) - value) < 6e-4


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_mean([], []),
        lambda: bootstrap_mean([1.0], ["a", "b"]),
        lambda: paired_difference([1.0], [1.0, 2.0], ["a"]),
        lambda: paired_ratio([1.0], [1.0, 2.0], ["a"]),
        lambda: wilson(3, 2),
    ],
)
def test_sizes_that_do_not_match_are_refused(call):
    with pytest.raises(ValueError):
        call()


def test_an_estimate_excludes_zero_on_either_side_only():
    assert Estimate(1.0, 0.1, 2.0, 9).excludes_zero and Estimate(-1.0, -2.0, -0.1, 9).excludes_zero
    assert not Estimate(0.0, 0.0, 0.0, 9).excludes_zero and not Estimate(1.0, 0.0, 2.0, 9).excludes_zero
