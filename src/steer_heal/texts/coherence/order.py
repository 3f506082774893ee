"""Word order: whether each kind of word may follow the one before it, as a pointwise mutual information in nats.

Knows nothing of meaning and of models. A kind is a function word itself or the ending of a content word; the counts
(`pairs.txt.gz`, built by `scripts/build_word_pairs.py`) are of ordinary English. Shuffled words average below zero,
prose well above; a text that does not look English gets no figure.
"""

from __future__ import annotations

import gzip
import math
import re
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from steer_heal.texts.coherence.soup import ENGLISH_SHARE, FUNCTION_WORDS

PAIRS = Path(__file__).parent / "pairs.txt.gz"
WINDOW = 24
"""Pairs of the worst window."""
LEAST = 12
"""Pairs a text must have: fewer are noise."""
PRIOR = 2.0
"""Pseudo-count by which rare pairs are drawn to independence."""
FLOOR = -3.0
"""No single pair counts for less, nats."""

_TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|[.!?;:]+|,|\n+|[^\w\s]")
_QUOTES = "\"'“”‘’«»`*"
_ENDING = re.compile(r"..+?(ing|ed|ly|tion|ment|ness|er|est|al|ous|ive|able|ful|y|s|t|e)")
"""A content word by the longest ending before which two letters are left."""


def kinds_of(text: str) -> list[str]:
    """The kind of every token: a function word, `-ending`, `9` for numbers, `.` for stops, `,`, `*` for other signs."""
    out = ["."]
    for token in _TOKEN.findall(text.lower().replace("’", "'")):
        if token in FUNCTION_WORDS:
            out.append(token)
        elif token[0].isalpha():
            ending = _ENDING.fullmatch(token)
            out.append(f"-{ending[1]}" if ending else "-")
        elif token[0].isdigit():
            out.append("9")
        elif token[0] in ".!?;:,":
            out.append("," if token == "," else ".")
        elif not token.isspace() and token not in _QUOTES:
            out.append("*")
    return out


@lru_cache(maxsize=1)
def _table() -> tuple[Counter, Counter, Counter, int]:
    pairs: Counter = Counter()
    for line in gzip.decompress(PAIRS.read_bytes()).decode().splitlines():
        a, b, n = line.split()
        pairs[a, b] = int(n)
    first, second = Counter(), Counter()
    for (a, b), n in pairs.items():
        first[a] += n
        second[b] += n
    return pairs, first, second, sum(pairs.values())


@lru_cache(maxsize=100_000)
def affinity(a: str, b: str) -> float:
    """log p(b | a) / p(b) in nats, shrunk towards 0 for rare kinds and cut off below at `FLOOR`."""
    pairs, first, second, total = _table()
    expected = first[a] * second[b] / total
    if expected == 0:
        return 0.0
    return max(FLOOR, math.log((pairs[a, b] + PRIOR) / (expected + PRIOR)))


def order_figures(text: str) -> dict[str, float]:
    """`order`: mean affinity of the worst 24 pairs, nats; absent for short or not English texts."""
    kinds = kinds_of(text)
    words = [kind for kind in kinds if kind[0] == "-" or kind in FUNCTION_WORDS]
    functional = sum(kind[0] != "-" for kind in words)
    if len(kinds) <= LEAST or functional < ENGLISH_SHARE * len(words):
        return {}
    values = [affinity(a, b) for a, b in pairwise(kinds)]
    size = min(WINDOW, len(values))
    inside = worst = sum(values[:size])
    for i in range(size, len(values)):
        inside += values[i] - values[i - size]
        worst = min(worst, inside)
    return {"order": worst / size}
