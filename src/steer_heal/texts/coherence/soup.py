"""Figures of "soup": non-words, odd capitals, function words without content, impossible pairs, heaps of signs.

Knows nothing of models, repetition and limits. The word-based figures read English; on a text that does not look
English they are 0, and there the perplexity gates have to do the work. Case matters only where a text uses it.
"""

from __future__ import annotations

import gzip
import re
import tomllib
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from steer_heal.texts.coherence.repetition import without_code

NONWORD_WINDOW = 12
CLASH_WINDOW = 24
SIGN_WINDOW = 80
ODD_WEIGHT = 3
"""Plain non-words that one word with capitals in odd places weighs as much as."""
ENGLISH_SHARE = 0.15
"""Share of function words from which a text counts as English: prose has 0.4 to 0.6, German with its cognates 0.1."""

PASSAGE, PASSAGE_KNOWN, PASSAGE_FUNCTIONAL = 6, 5, 2
"""A text also counts as English if 6 of its words in a row hold 5 English and 2 function words: the rest went wrong."""


def _classes() -> dict[str, frozenset[str]]:
    table = tomllib.loads((Path(__file__).parent / "function_words.toml").read_text(encoding="utf-8"))
    return {name: frozenset(words.split()) for name, words in table.items()}


_OF = _classes()
_KINDS = ("determiners", "articles", "prepositions", "pronouns", "auxiliaries", "joiners")
FUNCTION_WORDS = frozenset().union(*(_OF[kind] for kind in _KINDS), _OF["others"])

# Pairs no English sentence joins without a pause. Left out on purpose: what is a noun or an operator elsewhere ("the
# will", "the if"), what strands ("looked at is"), letters as names ("a is 3").
_AFTER_DETERMINER = frozenset().union(*(_OF[kind] for kind in _KINDS)) - {"that", "be"}
_AFTER_ARTICLE = (_OF["determiners"] | _OF["articles"] | _OF["pronouns"]) - {"i"}
_CLASHES = frozenset(
    [(d, w) for d in _OF["determiners"] for w in _AFTER_DETERMINER]
    + [(a, w) for a in _OF["articles"] for w in _AFTER_ARTICLE]
    + [(p, q) for p in _OF["head_prepositions"] for q in _OF["no_preposition_after_head"]]
    + [(p, "of") for p in _OF["no_of_after"]]
    + [(w, w) for w in _OF["never_doubled"]]
)

_TOKEN = re.compile(r"(?<!\w)[^\W\d_]+(?:['’][^\W\d_]+)*(?!\w)")
"""A word of letters alone; "e4" and "x_1" are names of something."""
_UNIT = re.compile(r"\d[ \u00a0]?[^\W\d_]{1,4}\b")
"""A number with its unit ("200 µl"): no word of any language."""
_INLINE_CODE = re.compile(r"`[^`\n]{1,80}`")
_ODD_CASE = re.compile(r"[A-Z]{2,}[a-z]{2,}|[a-z]{2,}[A-Z]{2,}")
_PIECE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
PREFIXES = ("un", "re", "non", "over", "under", "pre", "mis", "dis", "anti", "sub", "inter", "micro", "multi", "out")
ENDS = (
    "'s",
    "s",
    "es",
    "ed",
    "d",
    "ing",
    "er",
    "ers",
    "ly",
    "ness",
    "less",
    "ful",
    "able",
    "ish",
    "like",
    "wise",
    "y",
)


@lru_cache(maxsize=1)
def word_list() -> frozenset[str]:
    """40 thousand common English words (SCOWL 35, see `words.LICENSE.txt`) and the function words."""
    packed = (Path(__file__).parent / "words.txt.gz").read_bytes()
    return frozenset(gzip.decompress(packed).decode().split()) | FUNCTION_WORDS


@lru_cache(maxsize=100_000)
def known(word: str) -> bool:
    """Whether a lower-case word is English: listed, British in spelling, derived by a common affix, or a compound."""
    word = word.replace("’", "'")
    words = word_list()
    if word in words or ("'" in word and all(part in words or len(part) < 3 for part in word.split("'"))):
        return True
    for old, new in (("our", "or"), ("is", "iz"), ("ys", "yz"), ("tre", "ter"), ("ll", "l"), ("ae", "e"), ("ce", "se")):
        if old in word and word.replace(old, new) in words:
            return True
    for suffix in ENDS:
        stem = word.removesuffix(suffix)
        if len(stem) >= 3 and stem != word and (stem in words or stem + "e" in words or stem[:-1] + "y" in words):
            return True
    if any(word.startswith(p) and len(word) > len(p) + 3 and word[len(p) :] in words for p in PREFIXES):
        return True
    return any(word[:i] in words and word[i:] in words for i in range(4, len(word) - 3))


def looks_english(tokens: Sequence[str]) -> bool:
    """Enough function words in the whole text, or one passage that is plainly English."""
    functional = [token.lower().replace("’", "'") in FUNCTION_WORDS for token in tokens]
    if 0 < sum(functional) >= ENGLISH_SHARE * len(tokens):
        return True
    english = [not _is_nonword(token) for token in tokens]
    return any(
        sum(functional[i : i + PASSAGE]) >= PASSAGE_FUNCTIONAL and sum(english[i : i + PASSAGE]) >= PASSAGE_KNOWN
        for i in range(len(tokens) - PASSAGE + 1)
    )


def _worst(flags: Sequence[int], window: int) -> int:
    """Largest sum (number of True) in any window."""
    if len(flags) <= window:
        return sum(flags)
    inside = worst = sum(flags[:window])
    for i in range(window, len(flags)):
        inside += flags[i] - flags[i - window]
        worst = max(worst, inside)
    return worst


def _worst_share(flags: Sequence[int], window: int, least: int) -> float:
    """Largest sum in any window, as a share of the window; texts under `least` entries are taken as that long."""
    size = min(window, max(least, len(flags)))
    return _worst(flags, size) / size


def _is_nonword(token: str) -> bool:
    """Not English, apart from what may be a name (capitalised), an acronym (up to four capitals) or a single letter."""
    if len(token) < 2 or (token[0].isupper() and token[1:].islower()) or (token.isupper() and len(token) <= 4):
        return False
    return not known(token.lower())


def _is_odd(token: str) -> bool:
    """Capitals inside a word that is neither a plural of capitals (APIs) nor made of words (HTTPServer)."""
    if not _ODD_CASE.search(token) or known(token.lower()) or (token[:-1].isupper() and token[-1] == "s"):
        return False
    return not all(piece.isupper() or known(piece.lower()) for piece in _PIECE.findall(token))


def soup_figures(text: str) -> dict[str, float]:
    """All figures of this module by name.

    `no_words`: 1 for a text without any letter or digit;
    `nonwords`: share of words that are not English in the worst 12, odd capitals counted three times;
    `scripts`: different scripts (Latin, Greek, Cyrillic, ...) in the worst 12 words;
    `function_run`: longest run of function words without a content word;
    `clashes`: impossible pairs of function words in the worst 24 words;
    `bits`: share of the worst 12 words that have one or two letters and are no function words;
    `caps`: share of the worst 12 words that are all capitals and no English words;
    `signs`: share of the worst 80 characters that are no letter, digit or space (runs of one sign count as one);
    `sign_heaps`: share of the worst 80 characters inside heaps of mixed signs;
    `long_word`: letters of the longest word.
    """
    prose = _UNIT.sub("", without_code(text))
    tokens = _TOKEN.findall(prose)
    english = looks_english(tokens)
    out = {"no_words": float(not any(c.isalnum() for c in text)), "long_word": float(_longest_word(text))}
    alone = [word.lower().strip('.,;:!?"') for word in prose.split()]
    bits = [len(word) <= 2 and word.isalpha() and word not in FUNCTION_WORDS for word in alone]
    out["bits"] = _worst_share(bits, NONWORD_WINDOW, 8)
    caps = [len(token) > 1 and token.isupper() and not known(token.lower()) for token in tokens]
    size = min(NONWORD_WINDOW, max(8, len(alone)))
    out["caps"] = _worst(caps, size) / size
    strange = [ODD_WEIGHT if _is_odd(token) else int(_is_nonword(token)) for token in tokens]
    out["nonwords"] = _worst_share(strange, NONWORD_WINDOW, 4) if english else 0.0
    out["scripts"] = float(_scripts(tokens))
    out["function_run"] = float(_function_run(text))
    out["clashes"] = float(_worst(_clash_flags(text), CLASH_WINDOW))
    out["signs"] = _sign_share(text)
    out["sign_heaps"] = _sign_heaps(text)
    return out


def _longest_word(text: str) -> int:
    """Letters of the longest word outside links and paths, for scripts that put spaces between words."""
    words = [w for w in text.split() if not re.search(r"[/\\@_=:<>]|\.\w", w)]
    return max((len(run) for w in words for run in re.findall(r"[A-Za-z\u00c0-\u024f\u0400-\u04ff]+", w)), default=0)


def _function_run(text: str) -> int:
    longest = 0
    for part in re.split(r"[.!?;:\n]+", text.lower().replace("’", "'")):
        run = 0
        for word in _TOKEN.findall(part):
            run = run + 1 if word in FUNCTION_WORDS else 0
            longest = max(longest, run)
    return longest


def _clash_flags(text: str) -> list[bool]:
    """For every word after the first: it and its neighbour, with only a space between them, cannot stand together."""
    flags, previous, end = [], "", -1
    for match in _TOKEN.finditer(text.lower()):
        joined = text[end : match.start()].isspace() if end >= 0 else False
        flags.append(joined and (previous, match.group()) in _CLASHES)
        previous, end = match.group(), match.end()
    return flags


def _scripts(tokens: Sequence[str]) -> int:
    """Largest number of scripts in twelve neighbouring words; Chinese, Japanese and Korean signs count as one."""
    found = [_script(token) for token in tokens if len(token) > 1]
    return max((len(set(found[i : i + NONWORD_WINDOW])) for i in range(len(found))), default=0)


@lru_cache(maxsize=10_000)
def _script(token: str) -> str:
    name = unicodedata.name(token[0], "UNKNOWN").split()[0].split("-")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "HANGUL") else name


def _flat(text: str) -> str:
    """One line in which runs of blanks and of one sign count as one."""
    return re.sub(r"([^\w\s])\1+", r"\1", re.sub(r"\s+", " ", text))


def _sign_share(text: str) -> float:
    return _worst_share([not (c.isalnum() or c.isspace()) for c in _flat(text)], SIGN_WINDOW, 20)


def _sign_heaps(text: str) -> float:
    """Share of the worst 80 characters that stand in heaps of four and more mixed signs, such as "]}}_{,"."""
    flat = _flat(_INLINE_CODE.sub("", text))
    inside = [0] * len(flat)
    for heap in re.finditer(r"[^\w\s]{4,}", flat):
        inside[heap.start() : heap.end()] = [1] * (heap.end() - heap.start())
    return _worst_share(inside, SIGN_WINDOW, 20)
