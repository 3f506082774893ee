"""Broken texts by family: those that were found and quoted, those that are wrong for what they say, and all the makers.

Knows nothing of models: these are imitations.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from steer_heal.studies.labelled_texts.good import PER_FAMILY
from steer_heal.studies.labelled_texts.loops import (
    char_loop,
    collapse_to_loop,
    drifting_repetition,
    near_duplicates,
    sentence_loop,
    stutter,
    word_loop,
)
from steer_heal.studies.labelled_texts.noise import caps_drift, fragments, letter_noise, skeleton, word_noise
from steer_heal.studies.labelled_texts.pieces import Pieces
from steer_heal.studies.labelled_texts.soups import (
    caps_soup,
    collapse_to_soup,
    function_soup,
    glued,
    script_soup,
    sign_soup,
    subword_soup,
    word_salad,
)


def findings(given: Pieces, rng: random.Random) -> list[str]:
    """The quoted texts, and the same with other words, lengths and beginnings."""
    out = list(given.tables["quoted"])
    while len(out) < PER_FAMILY:
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
            text = rng.choice(
                ["I'M. I'M. I'm just not *I'm", "IT'S. It's. IT'S just *it's", "NOT. Not not. I'm NOT *not"]
            )
            text = " ".join([text] * rng.randint(1, 3))
        elif kind == 5:
            text = rng.choice("TAGoe") * rng.randint(9, 300)
        else:
            text = f"{rng.choice(['instead', 'because', 'rather'])} {c} " * rng.randint(4, 40)
        if kind in (1, 3, 5, 6) and rng.random() < 0.4:
            text = given.start(rng, 5, 20) + " " + text
        out.append(text.strip())
    return out


def spliced(given: Pieces, family: str, rng: random.Random) -> list[str]:
    """Written refusals or narrations, alone and before or after good prose."""
    own = given.of(family)
    out = list(own)
    while len(out) < PER_FAMILY:
        parts = [rng.choice(own), rng.choice(given.sentences)]
        rng.shuffle(parts)
        out.append(" ".join(parts))
    return out


MAKERS = (
    findings, word_loop, char_loop, subword_soup, function_soup, near_duplicates, sign_soup, word_salad, script_soup,
    sentence_loop, collapse_to_loop, collapse_to_soup, drifting_repetition, fragments, letter_noise, skeleton,
    word_noise, caps_drift, caps_soup, stutter,
)  # fmt: skip
BROKEN: dict[str, Callable[[Pieces, random.Random], list[str]]] = {maker.__name__: maker for maker in MAKERS}
