"""Uncertainty: simulated coverage, pairing, clusters, and edge cases of the intervals."""

import math

import numpy as np
import pytest

from steer_heal.statistics import (
    Estimate,
    bootstrap_mean,
    paired_difference,
    paired_ratio,
    resamples,
    shared_value,
    studentised,
    t_quantile,
    wilson,
)


def draw(kind: str, rng: np.random.Generator, n: int) -> tuple[np.ndarray, list[int], float]:
    """(values, cluster of each value, true mean) of one simulated experiment with n clusters."""
    sizes = rng.integers(1, 5, n) if "unequal" in kind else np.full(n, 2)
    clusters = np.repeat(np.arange(n), sizes)

    def share(p: float) -> np.ndarray:  # yes / no replies, of which two to one prompt are not independent
        own = rng.random(n) < 0.5
        return np.where(np.repeat(own, sizes), np.repeat(rng.random(n), sizes), rng.random(len(clusters))) < p

    values, truth = {
        "normal": lambda: (np.repeat(rng.normal(0.3, 1, n), sizes) + rng.normal(0, 0.5, len(clusters)), 0.3),
        "skewed": lambda: (np.repeat(rng.exponential(1, n), sizes), 1.0),
        "both rare": lambda: (share(0.10) * 1.0 - share(0.05), 0.05),
        "rare to common": lambda: (share(0.95) * 1.0 - share(0.05), 0.9),
        "both common": lambda: (share(0.95) * 1.0 - share(0.90), 0.05),
        "shares of sentences": lambda: (rng.binomial(4, 0.93, len(clusters)) / 4 - 0.97, -0.04),
    }[kind.removesuffix(", unequal")]()
    return values, clusters.tolist(), truth


@pytest.mark.parametrize(
    "kind",
    [
        "normal",
        "normal, unequal",
        "skewed",
        "skewed, unequal",
        "both rare",
        "rare to common",
        "both common",
        "shares of sentences, unequal",
    ],
)
def test_95_percent_intervals_cover_93_to_97_percent_with_40_clusters(kind):
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(2000):
        values, clusters, truth = draw(kind, rng, 40)
        found = bootstrap_mean(values, clusters, n_boot=1000)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / 2000 <= 0.97


def test_a_studentised_interval_equals_one_computed_resample_by_resample():
    rng = np.random.default_rng(2)
    sums, counts = rng.exponential(1, 12), rng.integers(1, 4, 12).astype(float)
    mean, scores = sums.sum() / counts.sum(), []
    error = None
    for drawn in [np.ones(12), *resamples(12, 400, 7)]:
        rows = np.repeat(np.arange(12), drawn.astype(int))
        own = sums[rows].sum() / counts[rows].sum()
        spread = math.sqrt(12 / 11 * ((sums[rows] - own * counts[rows]) ** 2).sum()) / counts[rows].sum()
        error = error or spread
        scores.append((own - mean) / spread)
    scores = sorted(scores[1:])
    low, high = studentised(sums, counts, n_boot=400, seed=7)
    # Of 400 sorted scores the 10th is the 2.5 % quantile, the 390th the 97.5 % one.
    assert math.isclose(low, mean - scores[389] * error, abs_tol=1e-9)
    assert math.isclose(high, mean - scores[9] * error, abs_tol=1e-9)


def test_skewed_data_get_the_longer_arm_on_their_long_side():
    values = np.random.default_rng(0).exponential(1, 60)
    found = bootstrap_mean(values, list(range(60)))
    assert found.high - found.value > 1.1 * (found.value - found.low)


def test_equal_clusters_get_a_width_that_shrinks_like_one_over_n_once_a_reach_is_given():
    few, many = (bootstrap_mean([0.0] * n, list(range(n)), reach=1.0) for n in (40, 400))
    assert few.low < 0 < few.high and not few.excludes_zero
    # The rule of three: none of 40 clusters differed, so at most about 3 / 40 of them do.
    assert 0.05 < few.high < 0.10 and 0.08 < many.high / few.high < 0.12
    assert bootstrap_mean([0.0] * 40, list(range(40)), reach=5.0).high == pytest.approx(5 * few.high)
    point = bootstrap_mean([0.3] * 40, list(range(40)))
    assert point.low == point.high == pytest.approx(0.3)


def test_float_noise_counts_as_equal_and_one_clear_difference_does_not():
    noise = 1.5 + np.random.default_rng(0).normal(0, 1e-7, 30)
    found = bootstrap_mean(noise, list(range(30)), reach=1.0)
    assert found.low < 1.45 and found.high > 1.55
    one = bootstrap_mean([0.0] * 29 + [0.5], list(range(30)), reach=1.0)
    assert one.high < 0.5 and one.low < 0 < one.high


@pytest.mark.parametrize(
    ("means", "shared"),
    [
        ([1, 1, 2, 3], 1),
        ([3, 2, 1, 3], 3),
        ([1, 2, 3, 4], None),
        ([1, 2], None),
        ([2, 2], 2),
        ([1, 1, 2, 2], 1),
        ([0, 5, 5, 5, 9], 5),
        ([0, 1, 5, 5, 9], None),
    ],
)
def test_a_value_is_shared_when_half_of_the_clusters_have_it(means, shared):
    found = shared_value(np.array(means, dtype=float))
    assert found == shared or (means == [1, 1, 2, 2] and found in (1, 2))


def test_two_or_three_clusters_say_nothing_of_the_spread():
    assert bootstrap_mean([1.0, 2.0], ["a", "b"]).high == math.inf
    assert bootstrap_mean([1.0, 2.0, 4.0], ["a", "b", "c"]).low == -math.inf
    assert math.isfinite(bootstrap_mean([1.0, 2.0, 4.0, 5.0, 7.0], list("abcde")).low)


def test_a_figure_that_is_no_number_has_an_infinite_interval():
    found = bootstrap_mean([1.0, math.nan, 2.0], list("abc"))
    assert math.isnan(found.value) and (found.low, found.high) == (-math.inf, math.inf)


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
