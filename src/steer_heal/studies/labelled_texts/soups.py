"""Broken texts of parts that do not belong together: fragments of words, function words, signs, scripts, capitals.

Knows nothing of models: these are imitations.
"""

from __future__ import annotations

import random
import re

from steer_heal.studies.labelled_texts.good import PER_FAMILY
from steer_heal.studies.labelled_texts.pieces import Pieces


def fragment(given: Pieces, rng: random.Random) -> str:
    """A piece of a word, as a subword vocabulary holds them."""
    word = rng.choice(given.content)
    size = rng.randint(2, 4)
    return word[(start := rng.randrange(0, max(1, len(word) - size))) : start + size]


def glued(given: Pieces, rng: random.Random, caps: bool = True) -> str:
    """Two to four fragments stuck together, capitals at random."""
    parts = [fragment(given, rng) for _ in range(rng.randint(2, 4))]
    return "".join(part.upper() if caps and rng.random() < 0.5 else part for part in parts)


def subword_soup(given: Pieces, rng: random.Random) -> list[str]:
    """Function words among glued fragments with capitals."""
    return [
        " ".join(
            glued(given, rng) if rng.random() < 0.55 else rng.choice(given.function) for _ in range(rng.randint(8, 120))
        )
        for _ in range(PER_FAMILY)
    ]


def function_soup(given: Pieces, rng: random.Random) -> list[str]:
    """Function words at random, hardly any content."""
    few = rng.sample(given.function, 30)
    return [
        " ".join(rng.choice(few if rng.random() < 0.9 else given.content) for _ in range(rng.randint(12, 120)))
        for _ in range(PER_FAMILY)
    ]


def sign_soup(given: Pieces, rng: random.Random) -> list[str]:
    """Punctuation with a word here and there."""
    out = []
    for _ in range(PER_FAMILY):
        marks = [rng.choice(".,;:!?*'\"-()[]{}/#_|") for _ in range(rng.randint(30, 200))]
        share = rng.choice((0.0, 0.05, 0.15))
        text = "".join(f" {rng.choice(given.function)} " if rng.random() < share else mark for mark in marks)
        out.append(f"{given.start(rng, 3, 15)} {text}" if rng.random() < 0.3 else text)
    return out


def word_salad(given: Pieces, rng: random.Random) -> list[str]:
    """Real words of real sentences, shuffled."""
    out = []
    for _ in range(PER_FAMILY):
        words = re.findall(r"[\w']+[.,]?", given.start(rng, 30, 120).lower())
        rng.shuffle(words)
        out.append(" ".join(words))
    return out


def script_soup(given: Pieces, rng: random.Random) -> list[str]:
    """Words and fragments of several scripts in one line, as multilingual models produce them."""
    foreign = given.tables["foreign"].split()
    return [
        " ".join(
            rng.choice(foreign)
            if rng.random() < 0.5
            else rng.choice([rng.choice(given.function), fragment(given, rng)])
            for _ in range(rng.randint(10, 100))
        )
        for _ in range(PER_FAMILY)
    ]


def collapse_to_soup(given: Pieces, rng: random.Random) -> list[str]:
    """Good prose that ends in lower-case fragments and function words."""
    out = []
    for _ in range(PER_FAMILY):
        soup = [
            glued(given, rng, False) if rng.random() < 0.6 else rng.choice(given.function)
            for _ in range(rng.randint(15, 60))
        ]
        out.append(f"{given.start(rng, 30, 150)} " + " ".join(soup))
    return out


def caps_soup(given: Pieces, rng: random.Random) -> list[str]:
    """Runs of capitals that are no words, between words that are."""
    out = []
    for _ in range(PER_FAMILY):
        words = [
            "".join(fragment(given, rng) for _ in range(rng.randint(1, 3))).upper()
            if rng.random() < 0.6
            else rng.choice(given.function)
            for _ in range(rng.randint(10, 80))
        ]
        text = " ".join(words)
        out.append(f"{given.start(rng, 5, 40)} {text}" if rng.random() < 0.4 else text)
    return out
