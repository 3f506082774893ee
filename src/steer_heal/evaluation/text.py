"""Figures of sampled replies that need no judge: loops, distinct n-grams, length, token entropy.

Knows nothing of models and traits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

MAX_PERIOD = 16
TOKEN_RUN, CHARACTER_RUN = 8, 24


def loops(text: str, token_ids: Sequence[int]) -> bool:
    """Whether a reply repeats itself back to back.

    True when a stretch of up to 16 tokens stands at least three times in a row (and 9 tokens at least repeat what
    stood before them), or the same in characters for at least 25 ("TTTTTTTT", "igigigig" are one word or token).
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    letters = np.array([c.isalnum() for c in text], dtype=bool)
    return _repeats(np.asarray(token_ids), TOKEN_RUN) or _repeats(codes, CHARACTER_RUN, letters)


def _repeats(sequence: np.ndarray, least: int, counted: np.ndarray | None = None) -> bool:
    for period in range(1, min(MAX_PERIOD, len(sequence) // 2) + 1):
        same = sequence[period:] == sequence[:-period]
        need = max(2 * period, least + 1)
        ends = np.flatnonzero(np.diff(np.concatenate([[0], same.astype(np.int8), [0]])))
        for start, stop in zip(ends[::2], ends[1::2], strict=True):
            # Rules of dashes and rows of dots are layout, not loops.
            if stop - start >= need and (counted is None or counted[start:stop].any()):
                return True
    return False


def distinct_ngrams(texts: Iterable[str], n: int = 4) -> float | None:
    """Distinct / all word n-grams, pooled over the replies to all prompts; None when no reply has n words.

    Pooling is the point: a model that says one fine sentence to every prompt scores high within each reply and low
    here. The ratio falls with the number of replies: compare equal numbers only.
    """
    grams = Counter()
    for text in texts:
        words = text.lower().split()
        grams.update(zip(*(words[i:] for i in range(n)), strict=False))
    return len(grams) / grams.total() if grams else None


def token_entropy(replies: Iterable[Sequence[int]]) -> float | None:
    """Entropy of the pooled generated tokens in nats: -sum p log p; None without tokens."""
    counts = np.array(list(Counter(token for reply in replies for token in reply).values()), dtype=np.float64)
    if not len(counts):
        return None
    p = counts / counts.sum()
    return abs(float((p * np.log(p)).sum()))  # never -0.0


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that exist; None when none does."""
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None
