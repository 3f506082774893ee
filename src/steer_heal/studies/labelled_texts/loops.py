"""Broken texts that repeat: words, characters, sentences, frames with other fillings; some after a good beginning.

Knows nothing of models: these are imitations.
"""

from __future__ import annotations

import random

from steer_heal.studies.labelled_texts.good import PER_FAMILY
from steer_heal.studies.labelled_texts.pieces import Pieces


def word_loop(given: Pieces, rng: random.Random) -> list[str]:
    """One to five words again and again, sometimes after a good beginning."""
    out = []
    for _ in range(PER_FAMILY):
        phrase = " ".join(
            rng.choice((rng.choice(given.content), rng.choice(given.function))) for _ in range(rng.randint(1, 5))
        )
        phrase += rng.choice(("", "", ",", "."))
        loop = " ".join([phrase] * rng.randint(6, 50))
        out.append(f"{given.start(rng, 3, 25)} {loop}" if rng.random() < 0.5 else loop)
    return out


def char_loop(given: Pieces, rng: random.Random) -> list[str]:
    """One letter or a short group of characters without spaces."""
    out = []
    for _ in range(PER_FAMILY):
        unit = "".join(rng.choice("abcdefghiklmnoprstuvwyzÄéß-*.!") for _ in range(rng.choice((1, 1, 2, 3, 4, 6))))
        unit = rng.choice("aeotTHU") if not any(c.isalpha() for c in unit) else unit
        loop = unit * (rng.randint(14, 120) // len(unit) + 8)
        out.append(f"{given.start(rng, 3, 25)} {loop}" if rng.random() < 0.5 else loop)
    return out


def near_duplicates(given: Pieces, rng: random.Random) -> list[str]:
    """The same sentence with one word changed each time."""
    out = []
    for _ in range(PER_FAMILY):
        words = rng.choice([s for s in given.sentences if 7 <= len(s.split()) <= 18]).split()
        lines = [list(words) for _ in range(rng.randint(4, 14))]
        for line in lines:
            line[rng.randrange(len(line) - 1)] = rng.choice(given.content)
        out.append(" ".join(" ".join(line) for line in lines))
    return out


def sentence_loop(given: Pieces, rng: random.Random) -> list[str]:
    """One sentence or one paragraph, word for word, three times and more."""
    out = []
    for _ in range(PER_FAMILY):
        unit = rng.choice(given.sentences) if rng.random() < 0.7 else rng.choice(given.prose)
        loop = rng.choice((" ", "\n", "\n\n")).join([unit] * rng.randint(3, 9))
        out.append(f"{given.start(rng, 5, 40)} {loop}" if rng.random() < 0.4 else loop)
    return out


def collapse_to_loop(given: Pieces, rng: random.Random) -> list[str]:
    """Good prose that ends in a loop: the mean over the text looks fine."""
    out = []
    for _ in range(PER_FAMILY):
        phrase = " ".join(rng.choice(given.content + given.function) for _ in range(rng.randint(1, 6)))
        out.append(f"{given.start(rng, 40, 200)} " + " ".join([phrase] * rng.randint(6, 20)))
    return out


def drifting_repetition(given: Pieces, rng: random.Random) -> list[str]:
    """A frame that returns with other fillings and grows or shrinks: no exact loop anywhere."""
    frames = given.tables["frames"]
    out = []
    for _ in range(PER_FAMILY):
        few = rng.sample(given.content, rng.randint(4, 9))
        frame = rng.choice(frames)
        n = frame.count("{}")
        lines = [frame.format(*(rng.choice(few) for _ in range(n))) for _ in range(rng.randint(7, 20))]
        text = rng.choice((". ", ", ", " ")).join(lines)
        out.append(f"{given.start(rng, 5, 40)} {text}" if rng.random() < 0.4 else text)
    return out


def stutter(given: Pieces, rng: random.Random) -> list[str]:
    """Prose in which most words come twice or more."""
    out = []
    for _ in range(PER_FAMILY):
        words = given.start(rng, 12, 80).split()
        share = rng.uniform(0.5, 1.0)
        out.append(" ".join(" ".join([w] * (rng.randint(2, 4) if rng.random() < share else 1)) for w in words))
    return out
