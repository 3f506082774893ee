"""Judges how a story goes on: are its sentences sound, and is its mood cheerful or gloomy? For `stories-cheer.toml`.

Knows nothing of models and steering: it reads words. Of the coherence filter it shares the list of English words and
nothing else. Whether a story makes sense it cannot tell; how often it errs stands in README.md.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from steer_heal.texts.coherence.soup import known

LEXICON = tomllib.loads((Path(__file__).parent / "lexicon.toml").read_text("utf-8"))
OF = {name: frozenset(listed.split()) for name, listed in LEXICON.items()}
VERBS = OF["verbs"] | OF["finite"] | OF["modals"]
SMALL = OF["determiners"] | OF["subjects"] | OF["objects"] | OF["prepositions"] | OF["joiners"]

# Words of the first class are never followed by those of the second without a pause.
FORBIDDEN = (
    (OF["determiners"] | {"very"}, SMALL | OF["finite"] | {"to", "is", "are", ","}),
    ({"to"}, OF["finite"] | OF["subjects"] | OF["modals"] | OF["joiners"]),
    (OF["modals"], OF["finite"]),
    (
        OF["subjects"],
        OF["determiners"] | OF["subjects"] | OF["objects"] | OF["tied_prepositions"] | {"in", "to", "very"},
    ),
    (OF["tied_prepositions"], OF["finite"] | OF["subjects"] | OF["joiners"] | {"is", "are"}),
    ({"him", "me"}, OF["finite"]),
    ({"they", "we", "you"}, {"was", "is", "am", "has"}),
    ({"he", "she"}, {"were", "are", "am", "have"}),
    (OF["finite"] | {"had"}, OF["finite"]),
)
DENIAL_REACH = 2
"""Words over which a denial reaches: "not very happy" holds no cheerful word."""
MAX_WORDS = 40
"""A sentence with more words, or an unfinished end with more, is no sentence."""

TITLE = re.compile(r"\b(Mrs?)\.")
"""A full stop that ends no sentence."""
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|[,;:]")
PIECE = re.compile(r'[^.!?]+[.!?]+"*|[^.!?]+$')


@dataclass(frozen=True)
class Judged:
    """The verdict on one continuation.

    sentence_ok: share of sound sentences, 0..1. trait: cheerful among its mood words, 0..1, None without any.
    reply_ok: every sentence is sound and there are at least two. faults: why, one entry per faulty sentence.
    """

    sentence_ok: float
    trait: float | None
    reply_ok: bool
    faults: tuple[str, ...]


def check(prompt: str, reply: str, finished: bool) -> Judged:
    """Judge a continuation. A last sentence that was cut by length does not count, unless there is no other."""
    text = " ".join(reply.replace("’", "'").replace("“", '"').replace("”", '"').split())
    text = TITLE.sub(r"\1", text)
    pieces = [piece.strip() for piece in PIECE.findall(text) if WORD.search(piece)]
    if len(pieces) > 1 and not finished and not _ends(pieces[-1]) and len(_words(pieces[-1])) <= MAX_WORDS:
        pieces.pop()
    own_names = frozenset(_words(prompt))
    faults: list[str] = []
    said: set[tuple[str, ...]] = set()
    quoted = after_quote = False
    for piece in pieces:
        why = fault(piece, own_names, quoted, after_quote)
        own = tuple(_words(piece))
        if not why and len(own) > 3 and own in said:
            why = "said before"
        said.add(own)
        if why:
            faults.append(f"{why}: {piece}")
        quoted ^= piece.count('"') % 2 == 1
        after_quote = piece.endswith('"')
    ok = 1 - len(faults) / len(pieces) if pieces else 0.0
    return Judged(ok, mood(text), not faults and len(pieces) > 1, tuple(faults))


def mood(text: str) -> float | None:
    """Cheerful / (cheerful + gloomy) words; denied ones ("not sad") count for neither. None without any."""
    found = _words(text)
    free = [w for i, w in enumerate(found) if not OF["denials"].intersection(found[max(0, i - DENIAL_REACH) : i])]
    cheerful, gloomy = (sum(word in OF[side] for word in free) for side in ("cheerful", "gloomy"))
    return cheerful / (cheerful + gloomy) if cheerful + gloomy else None


def fault(sentence: str, names: frozenset[str] = frozenset(), quoted: bool = False, after_quote: bool = False) -> str:
    """What is wrong with a sentence; empty if nothing is.

    `names`: words that count as known beside English ones; `quoted`: it goes on inside an open quotation;
    `after_quote`: it may go on as `said Lily.` does.
    """
    tokens = _words(sentence)
    own = [token for token in tokens if token[0].isalpha()]
    if not _ends(sentence):
        return "does not end"
    if not sentence.lstrip("\"' ")[:1].isupper() and not after_quote:
        return "begins in the middle"
    if made_up := next((word for word in own if not _real(word, names)), None):
        return f"no word {made_up!r}"
    if len(own) > MAX_WORDS:
        return "too long"
    if own[-1] in OF["never_last"]:
        return f"ends with {own[-1]!r}"
    if not quoted and '"' not in sentence and not any(_is_verb(word) for word in own):
        return "no verb"
    if wrong := next((some for some in pairwise(tokens) if _clash(*some)), None):
        return " ".join(wrong)
    agreeing = zip([".", *tokens], tokens, tokens[1:], strict=False)
    if wrong := next((some for some in agreeing if _disagree(*some)), None):
        return " ".join(wrong)
    triples = [tuple(own[i : i + 3]) for i in range(len(own) - 2)]
    return "goes in circles" if len(triples) > len(set(triples)) + 1 else ""


def _ends(sentence: str) -> bool:
    return sentence.rstrip('"').endswith((".", "!", "?"))


def _clash(one: str, two: str) -> bool:
    """Whether no sentence puts these two words in a row."""
    if one == two:
        return one not in OF["may_double"]
    if one == "to" and _is_past(two):
        return True
    if one == "went" and two[0].isalpha() and two not in OF["after_went"]:
        return True
    return any(one in first and two in second for first, second in FORBIDDEN)


def _disagree(before: str, one: str, two: str) -> bool:
    """Whether a verb does not agree with its subject: "he go" (but "did he go"), "the cows was"."""
    if one in ("he", "she") and two in OF["base_forms"]:
        return before not in OF["modals"] | {"does", "let", "if", "may", "might"}
    plural = one.endswith("s") and not one.endswith(("ss", "'s")) and one not in OF["not_plural"]
    return before == "the" and plural and two in ("was", "is")


def _is_verb(word: str) -> bool:
    return word in VERBS or _is_past(word) or word.endswith(("n't", "'s", "'m", "'re", "'ll", "'ve"))


def _is_past(word: str) -> bool:
    return len(word) > 3 and word.endswith("ed") and word not in OF["not_past"]


def _real(word: str, names: frozenset[str]) -> bool:
    stem = word.removesuffix("'s")
    return stem in names or stem in OF["names"] or known(word)


def _words(text: str) -> list[str]:
    """Words in small letters, and the signs that make a pause within a sentence."""
    return [word.lower() for word in WORD.findall(text)]
