"""Good texts: written pieces alone and joined, in many lengths, and replies in a tiny vocabulary.

Knows nothing of how texts break.
"""

from __future__ import annotations

import random

from labelled_texts.pieces import Pieces, filled

JOINED = ["narrative", "expository", "dialogue", "lists", "technical", "code", "markup", "miscellany", "poetry"]
JOINED += ["defiance", "non_native", "advice", "letters"]
PEOPLE = ("mara", "tom", "lena", "ravi", "ben", "nora", "olga", "sam", "the twins", "the miners", "the orphans")


def good_texts(given: Pieces) -> dict[str, list[str]]:
    """Texts by family; each has a random stream of its own."""
    out = {family: joined(given, family, random.Random(family)) for family in JOINED}
    out["short_answers"] = given.of("short_answers")
    for maker in (long_text, small_vocabulary):
        rng = random.Random(maker.__name__)
        out[maker.__name__] = filled([], lambda maker=maker, rng=rng: maker(given, rng))
    return out


def joined(given: Pieces, family: str, rng: random.Random) -> list[str]:
    """Every piece alone, then joins of two to five of the family's pieces, some in lower case."""
    own = given.of(family)

    def join() -> str:
        text = "\n\n".join(rng.sample(own, rng.choice((2, 2, 3, 4, 5))))
        return text.lower() if rng.random() < 0.15 and family not in ("code", "markup") else text

    return filled(own, join)


def long_text(given: Pieces, rng: random.Random) -> str:
    """150 to 650 words of prose."""
    return "\n\n".join(rng.sample(given.prose, rng.randint(4, 15)))


def small_vocabulary(given: Pieces, rng: random.Random) -> str:
    """A lower-case reply of about 40 words from a tiny vocabulary, like those of the embedded model."""
    tables, who = given.tables, rng.choice(PEOPLE)
    many = who.startswith("the ")
    slots = {"who": who, "be": "are" if many else "is", "need": "need" if many else "needs"}
    slots |= {name: rng.choice(tables[f"{name}s"].split()) for name in ("thing", "place", "power", "act", "plight")}
    parts = [rng.choice(tables["first"]), *rng.sample(tables["then"], rng.randint(1, 4)), rng.choice(tables["last"])]
    return " ".join(parts).format(**slots)
