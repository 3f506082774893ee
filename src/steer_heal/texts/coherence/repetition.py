"""Figures of repetition in a text: n-grams of words and characters, loops, near-duplicate sentences, compression.

Knows nothing of models, languages and limits. All figures are worst-window, so that a collapsed tail cannot hide
behind a good beginning and long texts are not punished for their length; all ignore case.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

WORD_WINDOW = 32
CHAR_WINDOW = 100
TOP_WINDOWS = (6, 12)
MIN_WORDS = 6
"""Below so few words the share of a repeated word says nothing ("no, no, no!")."""

CODE_SHARE = 0.05
"""Code signs per character from which a line counts as code; prose has up to 0.02."""

WORD = re.compile(r"\w+(?:['’]\w+)*")
_CODE_SIGN = re.compile(r"[()\[\]{}<>=_/\\|`#@$*+~&^%·×÷±→≤≥∪∩²³½]|\S[.:]\S")
SENTENCE_END = re.compile(r"[.!?;\n]+")


def words_of(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits, with inner apostrophes."""
    return WORD.findall(text.lower())


def without_code(text: str) -> str:
    """The text without lines full of the signs of code, formulas and markup: words there follow other rules."""
    return "\n".join(line for line in text.splitlines() if len(_CODE_SIGN.findall(line)) < CODE_SHARE * len(line))


def repeated_share(items: Sequence, n: int, window: int) -> float:
    """Largest share (0..1) of n-grams within `window` items that occurred before in the same window.

    Windows move by a quarter of their size; 0 for a text of fewer than n + 2 items.
    """
    if len(items) < n + 2:
        return 0.0
    grams = list(zip(*(items[i:] for i in range(n)), strict=False))
    size, worst = window - n + 1, 0.0
    for start in _starts(len(grams), size):
        part = grams[start : start + size]
        worst = max(worst, 1 - len(set(part)) / len(part))
    return worst


def top_share(words: Sequence[str]) -> float:
    """Largest share of 6 or of 12 words taken by further uses of one word: (count - 1) / n; 0 under six words."""
    if len(words) < MIN_WORDS:
        return 0.0
    worst = 0.0
    for window in TOP_WINDOWS:
        size = min(window, len(words))
        counts = Counter(words[:size])
        most = max(counts.values())
        for i in range(size, len(words)):  # sliding: only the word that enters can set a new maximum
            counts[words[i - size]] -= 1
            counts[words[i]] += 1
            most = max(most, counts[words[i]])
        worst = max(worst, (most - 1) / size)
    return worst


def _starts(n: int, size: int) -> list[int]:
    """Starts of overlapping windows that cover n items; the last one ends with the text."""
    if n <= size:
        return [0]
    return [*range(0, n - size, max(1, size // 4)), n - size]


def _runs(equal: np.ndarray) -> np.ndarray:
    """[start, end) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], equal.astype(np.int8), [0]))))
    return edges.reshape(-1, 2)


def loops(items: Sequence, max_lag: int, copies: float = 3.0) -> list[tuple[int, int, int]]:
    """Stretches [start, end) that repeat with a period: (start, end, period), at least `copies` periods long.

    A stretch of m matches x[i] == x[i - p] shows (m + p) / p copies of a phrase of p items.
    """
    codes: dict = {}
    x = np.array([codes.setdefault(item, len(codes)) for item in items], dtype=np.int32)
    out = []
    for period in range(1, min(max_lag, int(len(x) / copies)) + 1):
        # A long enough stretch covers three neighbouring samples half a period apart: nearly every lag ends here.
        step = max(1, period // 2)
        some = x[period::step] == x[:-period:step]
        if period > 1 and copies >= 3 and not (some[:-2] & some[1:-1] & some[2:]).any():
            continue
        for start, end in _runs(x[period:] == x[:-period]):
            if end - start + period >= copies * period:
                out.append((int(start), int(end) + period, period))
    return out


def char_run(text: str) -> float:
    """Longest run of one letter, in characters: "TTTTTTTT" is 8. Digits and signs do not count (1000000, -----)."""
    runs = re.finditer(r"([^\W\d_])\1*", text.lower())
    return float(max((len(run.group()) for run in runs), default=0))


def loop_figures(text: str, words: Sequence[str]) -> dict[str, float]:
    """Exact periodic repetition.

    `loop_share`: share of the characters inside loops of at least three copies and eight characters;
    `loop_chars`: characters of the longest loop of at least four copies whose phrase has a letter;
    `loop_signs`: the same for phrases without a letter (rules, tables and zeros of honest texts are long);
    `loop_words`: words of the longest loop of at least three copies.
    """
    flat = re.sub(r"\s+", " ", text.lower()).strip()
    covered = np.zeros(len(flat) + 1, dtype=np.int64)
    letters, signs = 0, 0
    for start, end, period in loops(flat, max_lag=80):
        if end - start < 8:
            continue
        covered[start] += 1
        covered[end] -= 1
        if end - start >= 4 * period:
            if any(c.isalpha() for c in flat[start : start + period]):
                letters = max(letters, end - start)
            else:
                signs = max(signs, end - start)
    inside = int((np.cumsum(covered)[:-1] > 0).sum())
    of_words = [
        end - start
        for start, end, _ in loops(words, max_lag=len(words) // 3)
        if any(c.isalpha() for w in words[start:end] for c in w)
    ]
    return {
        "loop_share": inside / max(1, len(flat)),
        "loop_chars": float(letters),
        "loop_signs": float(signs),
        "loop_words": float(max(of_words, default=0)),
    }


def near_duplicate_share(text: str, similar: float = 0.6) -> float:
    """Share of the words that stand in a sentence much like an earlier one; catches repetition that drifts.

    Sentences of four words and more count, single letters apart; two are alike when the Jaccard index of their word
    sets reaches `similar`.
    """
    sentences = [words_of(part) for part in SENTENCE_END.split(text)]
    sentences = [words for words in sentences if sum(len(word) > 1 for word in words) >= 4]
    if len(sentences) < 2:
        return 0.0
    sets = [frozenset(words) for words in sentences]
    alike = 0
    for i, words in enumerate(sentences):
        earlier = sets[max(0, i - 40) : i]
        if any(len(sets[i] & other) >= similar * len(sets[i] | other) for other in earlier):
            alike += len(words)
    return alike / sum(len(words) for words in sentences)


def compression(text: str, window: int = 400) -> float:
    """Redundancy of the worst window: 1 - zlib size / size, in bytes; 0 under 120 bytes, where it says nothing."""
    data = text.lower().encode()
    if len(data) < 120:
        return 0.0
    worst = 0.0
    for start in _starts(len(data), window):
        part = data[start : start + window]
        worst = max(worst, 1 - len(zlib.compress(part, 9)) / len(part))
    return worst


def repetition_figures(text: str) -> dict[str, float]:
    """All figures of this module by name."""
    words, chars = words_of(text), re.sub(r"\s+", " ", text.lower())
    out = {f"rep_word{n}": repeated_share(words, n, WORD_WINDOW) for n in (2, 3, 4)}
    out |= {f"rep_char{n}": repeated_share(chars, n, CHAR_WINDOW) for n in (2, 3, 4)}
    out["rep_text"] = repeated_share(words, 4, max(len(words), 1)) if len(words) > WORD_WINDOW else 0.0
    out["rep_top"] = top_share([word for word in words_of(without_code(text)) if not word.isdigit()])
    out["rep_sentence"] = near_duplicate_share(text)
    out["compression"] = compression(text)
    out["char_run"] = char_run(text)
    return out | loop_figures(text, words)
