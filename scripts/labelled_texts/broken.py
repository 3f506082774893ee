"""Broken texts by family: those that were found and quoted, those that are wrong for what they say, and all the makers.

Knows nothing of models: these are imitations.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from labelled_texts import loops, noise, soups
from labelled_texts.pieces import Pieces, filled
from labelled_texts.soups import glued

Family = Callable[[Pieces, random.Random], list[str]]
STARTS = ("I'M. I'M. I'm just not *I'm", "IT'S. It's. IT'S just *it's", "NOT. Not not. I'm NOT *not")


def findings(given: Pieces, rng: random.Random) -> list[str]:
    """The quoted texts, and the same with other words, lengths and beginnings."""

    def text() -> str:
        kind = rng.randrange(7)
        a, b, c = rng.sample(["your", "their", "our", "my", "the"], 3)
        if kind == 0:
            text = " ".join([a] * rng.randint(2, 4) + ["into", a, "of", a] * rng.randint(1, 5))
        elif kind == 1:
            text = f"of course, {a} " + " ".join(glued(given, rng) for _ in range(rng.randint(3, 9)))
        elif kind == 2:
            text = f"of those that {a} {glued(given, rng)} {glued(given, rng)} bigger {b} {glued(given, rng)}"
        elif kind == 3:
            text = rng.choice(["ig", "ut", "la", "ive", "on"]) * rng.randint(6, 60)
        elif kind == 4:
            text = " ".join([rng.choice(STARTS)] * rng.randint(1, 3))
        elif kind == 5:
            text = rng.choice("TAGoe") * rng.randint(9, 300)
        else:
            text = f"{rng.choice(['instead', 'because', 'rather'])} {c} " * rng.randint(4, 40)
        if kind in (1, 3, 5, 6) and rng.random() < 0.4:
            text = given.start(rng, 5, 20) + " " + text
        return text.strip()

    return filled(list(given.tables["quoted"]), text)


def spliced(given: Pieces, family: str, rng: random.Random) -> list[str]:
    """Written refusals or narrations, alone and before or after good prose."""
    own = given.of(family)

    def text() -> str:
        parts = [rng.choice(own), rng.choice(given.sentences)]
        rng.shuffle(parts)
        return " ".join(parts)

    return filled(own, text)


def each(*makers: Callable[[Pieces, random.Random], str]) -> list[tuple[str, Family]]:
    """Families, by name, whose texts are made one by one."""
    return [(m.__name__, lambda given, rng, m=m: filled([], lambda: m(given, rng))) for m in makers]


FAMILIES: dict[str, Family] = dict(
    [
        ("findings", findings),
        *each(loops.word_loop, loops.char_loop, soups.subword_soup),
        ("function_soup", soups.function_soup),
        *each(loops.near_duplicates, soups.sign_soup, soups.word_salad, soups.script_soup, loops.sentence_loop),
        *each(loops.collapse_to_loop, soups.collapse_to_soup, loops.drifting_repetition, noise.fragments),
        *each(noise.letter_noise, noise.skeleton, noise.word_noise, noise.caps_drift, soups.caps_soup, loops.stutter),
    ]
)


def broken_texts(given: Pieces) -> dict[str, list[str]]:
    """Texts by family; each has a random stream of its own."""
    out = {family: maker(given, random.Random(family)) for family, maker in FAMILIES.items()}
    return out | {family: spliced(given, family, random.Random(family)) for family in ("refusal", "narration")}
