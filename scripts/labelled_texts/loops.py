"""Broken texts that repeat: words, characters, sentences, frames with other fillings; some after a good beginning.

Knows nothing of models: these are imitations, one text a call.
"""

from __future__ import annotations

import random

from labelled_texts.pieces import Pieces


def word_loop(given: Pieces, rng: random.Random) -> str:
    """One to five words again and again, sometimes after a good beginning."""
    words = [rng.choice((rng.choice(given.content), rng.choice(given.function))) for _ in range(rng.randint(1, 5))]
    phrase = " ".join(words) + rng.choice(("", "", ",", "."))
    loop = " ".join([phrase] * rng.randint(6, 50))
    return f"{given.start(rng, 3, 25)} {loop}" if rng.random() < 0.5 else loop


def char_loop(given: Pieces, rng: random.Random) -> str:
    """One letter or a short group of characters without spaces."""
    unit = "".join(rng.choice("abcdefghiklmnoprstuvwyzÄéß-*.!") for _ in range(rng.choice((1, 1, 2, 3, 4, 6))))
    unit = rng.choice("aeotTHU") if not any(c.isalpha() for c in unit) else unit
    loop = unit * (rng.randint(14, 120) // len(unit) + 8)
    return f"{given.start(rng, 3, 25)} {loop}" if rng.random() < 0.5 else loop


def near_duplicates(given: Pieces, rng: random.Random) -> str:
    """The same sentence with one word changed each time."""
    words = rng.choice([s for s in given.sentences if 7 <= len(s.split()) <= 18]).split()
    lines = [list(words) for _ in range(rng.randint(4, 14))]
    for line in lines:
        line[rng.randrange(len(line) - 1)] = rng.choice(given.content)
    return " ".join(" ".join(line) for line in lines)


def sentence_loop(given: Pieces, rng: random.Random) -> str:
    """One sentence or one paragraph, word for word, three times and more."""
    unit = rng.choice(given.sentences) if rng.random() < 0.7 else rng.choice(given.prose)
    loop = rng.choice((" ", "\n", "\n\n")).join([unit] * rng.randint(3, 9))
    return f"{given.start(rng, 5, 40)} {loop}" if rng.random() < 0.4 else loop


def collapse_to_loop(given: Pieces, rng: random.Random) -> str:
    """Good prose that ends in a loop: the mean over the text looks fine."""
    phrase = " ".join(rng.choice(given.content + given.function) for _ in range(rng.randint(1, 6)))
    return f"{given.start(rng, 40, 200)} " + " ".join([phrase] * rng.randint(6, 20))


def drifting_repetition(given: Pieces, rng: random.Random) -> str:
    """A frame that returns with other fillings and grows or shrinks: no exact loop anywhere."""
    few = rng.sample(given.content, rng.randint(4, 9))
    frame = rng.choice(given.tables["frames"])
    n = frame.count("{}")
    lines = [frame.format(*(rng.choice(few) for _ in range(n))) for _ in range(rng.randint(7, 20))]
    text = rng.choice((". ", ", ", " ")).join(lines)
    return f"{given.start(rng, 5, 40)} {text}" if rng.random() < 0.4 else text


def stutter(given: Pieces, rng: random.Random) -> str:
    """Prose in which most words come twice or more."""
    words = given.start(rng, 12, 80).split()
    share = rng.uniform(0.5, 1.0)
    return " ".join(" ".join([w] * (rng.randint(2, 4) if rng.random() < share else 1)) for w in words)
