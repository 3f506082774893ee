"""Broken texts that are good prose gone wrong, letter by letter or word by word.

Knows nothing of models: these are imitations, one text a call.
"""

from __future__ import annotations

import random

from labelled_texts.pieces import Pieces
from labelled_texts.soups import glued


def fragments(given: Pieces, rng: random.Random) -> str:
    """Prose cut into pieces of words, pieces lost."""
    parts = []
    for word in given.start(rng, 15, 80).split():
        cut = rng.randint(1, max(1, len(word) - 1))
        parts += [part for part in (word[:cut], word[cut:]) if part and rng.random() < 0.75]
    return " ".join(parts)


def letter_noise(given: Pieces, rng: random.Random) -> str:
    """Prose whose letters get more and more wrong: swapped, doubled, lost, replaced."""
    words, worst = given.start(rng, 25, 120).split(), rng.uniform(0.35, 0.8)
    for i in range(len(words)):
        letters = list(words[i])
        for j in range(len(letters)):
            if rng.random() < worst * min(1.0, 2 * i / len(words)):
                letters[j] = rng.choice((letters[j] * 2, "", rng.choice("abcdefghijklmnopqrstuvwxyz"), letters[-1]))
        words[i] = "".join(letters)
    return " ".join(word for word in words if word)


def skeleton(given: Pieces, rng: random.Random) -> str:
    """Prose with its function words in place and most other words replaced by glued fragments."""
    words, share = given.start(rng, 20, 120).split(), rng.uniform(0.7, 1.0)
    swap = [word.lower().strip(".,;:") not in given.function and rng.random() < share for word in words]
    pairs = zip(words, swap, strict=True)
    return " ".join(glued(given, rng, caps=False) if bad else word for word, bad in pairs)


def word_noise(given: Pieces, rng: random.Random) -> str:
    """Prose in which words are scrambled inside and run together, from the first word on or from the middle on."""
    words, begin = given.start(rng, 25, 120).split(), rng.choice((0.0, 0.4))
    share, first = rng.uniform(0.6, 0.9), int(begin * len(words))
    for i in range(first, len(words)):
        if len(words[i]) > 3 and rng.random() < share:
            letters = list(words[i])
            rng.shuffle(letters)
            words[i] = "".join(letters)
    text = " ".join(words[:first])
    for word in words[first:]:
        text += word if rng.random() < 0.15 else f" {word}"
    return text.strip()


def caps_drift(given: Pieces, rng: random.Random) -> str:
    """Prose into which glued fragments with capitals creep, more and more of them."""
    words = given.start(rng, 25, 100).split()
    return " ".join(glued(given, rng) if rng.random() < i / len(words) else word for i, word in enumerate(words))
