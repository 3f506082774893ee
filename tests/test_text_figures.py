"""Loops, distinct n-grams and token entropy of replies, against values worked out by hand."""

import math

import pytest

from steer_heal.evaluation.text import distinct_ngrams, loops, mean, token_entropy


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("x", [7] * 10 + [1, 2, 3] + [7]),
        ("x", [1, 2, 3, 4, 5] + [8, 9] * 6),
        ("x", [1, 2, 3, 4, 5, 6, 7, 8] * 3),
        ("T" * 40, [1]),
        ("and then " + "ig" * 20, [1, 2]),
    ],
)
def test_back_to_back_repetition_is_a_loop(text, ids):
    assert loops(text, ids)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("I would help them first, because they are cold and hungry; then I would tell the manager.", range(40)),
        ("no no no, wait", [5, 5, 5, 1, 2]),
        ("-" * 60 + " title " + "-" * 60, range(9)),
        ("twice the same clause", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] * 2),
        ("", []),
    ],
)
def test_prose_short_emphasis_and_rules_of_dashes_are_no_loops(text, ids):
    assert not loops(text, list(ids))


def test_the_same_fine_sentence_to_every_prompt_has_low_distinct_4():
    sentence = "i would help the old gardener at once"
    assert distinct_ngrams([sentence]) == 1.0
    assert distinct_ngrams([sentence] * 10) == 0.1
    assert distinct_ngrams(["a b c d e", "a b c d f"]) == 0.75
    assert distinct_ngrams(["too short"]) is None


def test_entropy_of_four_equally_frequent_tokens_is_log_4():
    assert math.isclose(token_entropy([[1, 2], [3, 4]]), math.log(4))
    assert token_entropy([[1, 1, 1]]) == 0 and token_entropy([]) is None


def test_mean_leaves_out_what_is_missing():
    assert mean([1.0, None, 0.0]) == 0.5 and mean([None]) is None
