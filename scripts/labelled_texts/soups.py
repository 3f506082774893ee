"""Broken texts of parts that do not belong together: fragments of words, function words, signs, scripts, capitals.

Knows nothing of models: these are imitations, one text a call, or a whole family of them.
"""

from __future__ import annotations

import random
import re

from labelled_texts.pieces import PER_FAMILY, Pieces


def fragment(given: Pieces, rng: random.Random) -> str:
    """A piece of a word, as a subword vocabulary holds them."""
    word = rng.choice(given.content)
    size = rng.randint(2, 4)
    return word[(start := rng.randrange(0, max(1, len(word) - size))) : start + size]


def glued(given: Pieces, rng: random.Random, caps: bool = True) -> str:
    """Two to four fragments stuck together, capitals at random."""
    parts = [fragment(given, rng) for _ in range(rng.randint(2, 4))]
    return "".join(part.upper() if caps and rng.random() < 0.5 else part for part in parts)


def subword_soup(given: Pieces, rng: random.Random) -> str:
    """Function words among glued fragments with capitals."""

    def word() -> str:
        return glued(given, rng) if rng.random() < 0.55 else rng.choice(given.function)

    return " ".join(word() for _ in range(rng.randint(8, 120)))


def function_soup(given: Pieces, rng: random.Random) -> list[str]:
    """Function words at random, hardly any content; the whole family has the same few of them."""
    few = rng.sample(given.function, 30)

    def text() -> str:
        return " ".join(rng.choice(few if rng.random() < 0.9 else given.content) for _ in range(rng.randint(12, 120)))

    return [text() for _ in range(PER_FAMILY)]


def sign_soup(given: Pieces, rng: random.Random) -> str:
    """Punctuation with a word here and there."""
    marks = [rng.choice(".,;:!?*'\"-()[]{}/#_|") for _ in range(rng.randint(30, 200))]
    share = rng.choice((0.0, 0.05, 0.15))
    text = "".join(f" {rng.choice(given.function)} " if rng.random() < share else mark for mark in marks)
    return f"{given.start(rng, 3, 15)} {text}" if rng.random() < 0.3 else text


def word_salad(given: Pieces, rng: random.Random) -> str:
    """Real words of real sentences, shuffled."""
    words = re.findall(r"[\w']+[.,]?", given.start(rng, 30, 120).lower())
    rng.shuffle(words)
    return " ".join(words)


def script_soup(given: Pieces, rng: random.Random) -> str:
    """Words and fragments of several scripts in one line, as multilingual models produce them."""
    foreign = given.tables["foreign"].split()

    def word() -> str:
        if rng.random() < 0.5:
            return rng.choice(foreign)
        return rng.choice([rng.choice(given.function), fragment(given, rng)])

    return " ".join(word() for _ in range(rng.randint(10, 100)))


def collapse_to_soup(given: Pieces, rng: random.Random) -> str:
    """Good prose that ends in lower-case fragments and function words."""

    def word() -> str:
        return glued(given, rng, caps=False) if rng.random() < 0.6 else rng.choice(given.function)

    soup = [word() for _ in range(rng.randint(15, 60))]
    return f"{given.start(rng, 30, 150)} " + " ".join(soup)


def caps_soup(given: Pieces, rng: random.Random) -> str:
    """Runs of capitals that are no words, between words that are."""

    def word() -> str:
        if rng.random() < 0.6:
            return "".join(fragment(given, rng) for _ in range(rng.randint(1, 3))).upper()
        return rng.choice(given.function)

    text = " ".join(word() for _ in range(rng.randint(10, 80)))
    return f"{given.start(rng, 5, 40)} {text}" if rng.random() < 0.4 else text
