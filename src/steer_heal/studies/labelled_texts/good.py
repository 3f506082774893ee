"""Good texts: written pieces alone and joined, in many lengths, and replies in a tiny vocabulary.

Knows nothing of how texts break.
"""

from __future__ import annotations

import random

from steer_heal.studies.labelled_texts.pieces import Pieces

PER_FAMILY = 52
JOINED = (
    "narrative", "expository", "dialogue", "lists", "technical", "code", "markup", "miscellany", "poetry",
    "defiance", "non_native", "advice", "letters",
)  # fmt: skip


def joined(given: Pieces, family: str, rng: random.Random) -> list[str]:
    """Every piece alone, then joins of two to five of the family's pieces, some in lower case."""
    own = given.of(family)
    out = list(own)
    while len(out) < PER_FAMILY:
        text = "\n\n".join(rng.sample(own, rng.choice((2, 2, 3, 4, 5))))
        out.append(text.lower() if rng.random() < 0.15 and family not in ("code", "markup") else text)
    return out


def long_text(given: Pieces, rng: random.Random) -> list[str]:
    """150 to 650 words of prose."""
    return ["\n\n".join(rng.sample(given.prose, rng.randint(4, 15))) for _ in range(PER_FAMILY)]


def small_vocabulary(given: Pieces, rng: random.Random) -> list[str]:
    """Lower-case replies of about 40 words from a tiny vocabulary, like those of the embedded model."""
    people = ["mara", "tom", "lena", "ravi", "ben", "nora", "olga", "sam", "the twins", "the miners", "the orphans"]
    first, then, last = given.tables["first"], given.tables["then"], given.tables["last"]
    out = []
    while len(out) < PER_FAMILY:
        who = rng.choice(people)
        many = who.startswith("the ")
        slots = {
            "who": who,
            "be": "are" if many else "is",
            "need": "need" if many else "needs",
            "thing": rng.choice(given.tables["things"].split()),
            "place": rng.choice(given.tables["places"].split()),
            "power": rng.choice(given.tables["powers"].split()),
            "act": rng.choice(given.tables["acts"].split()),
            "plight": rng.choice(given.tables["plights"].split()),
        }
        parts = [rng.choice(first), *rng.sample(then, rng.randint(1, 4)), rng.choice(last)]
        out.append(" ".join(parts).format(**slots))
    return out
