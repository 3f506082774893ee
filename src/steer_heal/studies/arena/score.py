"""AxBench's score of a reply: the harmonic mean of concept, instruct and fluency, each 0, 1 or 2.

Knows nothing of models. Source: arXiv 2501.17148, section 3.2; there a language model grades, here a checker and the
words of the question do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from steer_heal.evaluation.metrics import ReplyRow

DISTINCTIVE = 0.25
"""A word of a prompt that stands in at most this share of the prompts says who, what and where it is about."""


def scores(replies: Sequence[ReplyRow]) -> list[float]:
    """One score per reply, 0 to 2; 0 where one of the three is 0.

    concept: twice the checker's trait, 0 without a stance. instruct: how many of its own prompt's distinctive words the
    reply names, at most 2. fluency: 2 if all sentences are sound, 1 if at least half are.
    """
    asked = [words(row.prompt) for row in replies]
    common = Counter(word for some in asked for word in some)
    distinctive = [{word for word in some if common[word] <= DISTINCTIVE * len(replies)} for some in asked]
    return [
        harmonic_mean(
            2 * (row.trait or 0.0),
            min(2, len(own & words(row.text))),
            2 * (row.sentence_ok == 1) or float((row.sentence_ok or 0.0) >= 0.5),
        )
        for row, own in zip(replies, distinctive, strict=True)
    ]


def words(text: str) -> set[str]:
    """The words of a text in lower case."""
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def harmonic_mean(*grades: float) -> float:
    """n / sum(1 / grade); 0 where a grade is 0."""
    return len(grades) / sum(1 / grade for grade in grades) if all(grades) else 0.0
