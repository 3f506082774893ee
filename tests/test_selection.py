"""Weights that give the kept texts back the length that the filter took, and heat that holds their diversity."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_heal.texts.selection import LARGEST, held_temperature, length_weights


def test_half_of_the_long_texts_lost_gives_the_others_double_weight():
    reference = [10] * 50 + [40] * 50
    kept = [10] * 40 + [40] * 20
    weights = length_weights(kept, reference, strata=2)
    assert weights[:40] == pytest.approx([0.75] * 40) and weights[40:] == pytest.approx([1.5] * 20)
    assert sum(w * n for w, n in zip(weights, kept, strict=True)) / 60 == pytest.approx(25)  # the reference's mean


def test_texts_like_the_reference_keep_their_weight():
    lengths = list(range(10, 110))
    assert length_weights(lengths, lengths) == pytest.approx([1.0] * 100)


def test_a_few_long_survivors_do_not_become_the_data():
    weights = length_weights([5] * 99 + [50], [5] * 10 + [50] * 90, strata=2)
    assert max(weights) / min(weights) == pytest.approx(LARGEST**2)


def test_weighted_mean_length_of_biased_survivors_comes_back():
    draw = random.Random(0)
    reference = [draw.randint(10, 70) for _ in range(2000)]
    kept = [n for n in reference if draw.random() < 1.2 - n / 70]  # long texts break more often
    weighted = sum(w * n for w, n in zip(length_weights(kept, reference), kept, strict=True)) / len(kept)
    true, biased = sum(reference) / len(reference), sum(kept) / len(kept)
    assert abs(weighted - true) < 0.25 * abs(biased - true)


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=60),
    st.lists(st.integers(1, 200), min_size=1, max_size=60),
    st.integers(1, 8),
)
def test_weights_are_positive_bounded_and_average_to_one(lengths, reference, strata):
    weights = length_weights(lengths, reference, strata)
    assert len(weights) == len(lengths) and min(weights) > 0
    assert sum(weights) / len(weights) == pytest.approx(1)
    assert max(weights) / min(weights) <= LARGEST**2 * (1 + 1e-9)


def test_temperature_rises_with_the_share_of_diversity_lost_and_never_falls_below_its_start():
    assert held_temperature(1.0, 3.0, 0.6, 0.6) == 1.0
    assert held_temperature(1.0, 3.0, 0.54, 0.6) == pytest.approx(1.3)  # a tenth lost
    assert held_temperature(0.8, 2.0, 0.54, 0.6) == pytest.approx(0.96)
    assert held_temperature(1.0, 3.0, 0.7, 0.6) == 1.0
    assert held_temperature(1.0, 0.0, 0.1, 0.6) == 1.0
    assert held_temperature(1.0, 3.0, 0.0, 0.0) == 1.0  # nothing was said, nothing is known
