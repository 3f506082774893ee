"""What changed in the words of replies: words and pairs of words said more and less often, dialogue, "!", sentences.

Knows nothing of models, traits and checkers. Forced choice and a checker say how much moved; this shows what it says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from steer_heal.evaluation.metrics import Metrics
from steer_heal.evaluation.shift import REACH, same_items
from steer_heal.statistics import Estimate, paired_difference
from steer_heal.texts.coherence.repetition import words_of

PRIOR = 0.1
"""Share of both sides' counts together that each is given before it is counted; it holds rare words near 0."""
LEAST_Z = 2.0
"""|z| from which on a term is listed."""
QUOTED = re.compile(r'["“«]([^"“”«»\n]*)["”»]?')
"""Speech up to its closing mark, or to the end of the line where it is cut off."""
SENTENCES = re.compile(r"[^.!?…\n]+[.!?…]*")


@dataclass(frozen=True)
class Term:
    """A word or a pair of neighbouring words, and how often it was said.

    Attributes:
        before, after: counts.
        log_odds: of after against before, nats, shrunk by the prior. z: it over its standard error.
    """

    text: str
    before: int
    after: int
    log_odds: float
    z: float


@dataclass(frozen=True)
class Manner:
    """A figure of the manner of speech: means over replies with a word, and the paired shift, clusters are prompts."""

    before: float
    after: float
    shift: Estimate


@dataclass(frozen=True)
class Wording:
    """What changed between two models' replies to the same prompts.

    Attributes:
        words, pairs: terms with |z| of at least 2, from the most increased to the most decreased.
        dialogue: share of the words that are in quotation marks. exclaimed: share of the sentences with a "!".
        sentence: words per sentence. None where no reply has a word.
    """

    words: tuple[Term, ...]
    pairs: tuple[Term, ...]
    dialogue: Manner | None
    exclaimed: Manner | None
    sentence: Manner | None


def wording(before: Metrics, after: Metrics) -> Wording:
    """The words of `after`'s replies against those of `before`. InputError when they were measured on other items."""
    same_items(before, after)
    old, new = ([row.text for row in metrics.replies] for metrics in (before, after))
    prompts = [row.prompt for row in before.replies]
    spoken = [(p, a, b) for p, a, b in zip(prompts, old, new, strict=True) if words_of(a) and words_of(b)]

    def manner(figure) -> Manner | None:
        if not spoken:
            return None
        clusters, first, second = zip(*((p, figure(a), figure(b)) for p, a, b in spoken), strict=True)
        shift = paired_difference(first, second, clusters, reach=REACH)
        return Manner(float(np.mean(first)), float(np.mean(second)), shift)

    return Wording(
        words=terms(Counter(w for text in old for w in words_of(text)), Counter(w for t in new for w in words_of(t))),
        pairs=terms(Counter(word_pairs(old)), Counter(word_pairs(new))),
        dialogue=manner(dialogue),
        exclaimed=manner(exclaimed),
        sentence=manner(sentence_length),
    )


def terms(before: Counter, after: Counter, prior: float = PRIOR) -> tuple[Term, ...]:
    """Terms whose frequency surely changed, from the most increased to the most decreased by z.

    Log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, "Fightin' words", equations 15
    to 22): with counts y, totals n and prior a = `prior` * (y + y'), A = its sum, delta = log((y' + a) / (n' + A -
    y' - a)) - log((y + a) / (n + A - y - a)), variance 1 / (y' + a) + 1 / (y + a). z treats words as independent draws;
    they are not, and many are compared, so a z of 2 is a hint and no test.
    """
    pooled = before + after
    totals = np.array([before.total(), after.total()]) + prior * pooled.total()
    found = []
    for term, n in pooled.items():
        said = np.array([before[term], after[term]]) + prior * n
        odds = np.log(said / (totals - said)) if len(pooled) > 1 else np.zeros(2)
        delta = float(odds[1] - odds[0])
        found.append(Term(term, before[term], after[term], delta, delta / float(np.sqrt((1 / said).sum()))))
    return tuple(sorted((t for t in found if abs(t.z) >= LEAST_Z), key=lambda t: (-t.z, t.text)))


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence that has any; a sentence ends with . ! ? … or the line (and so does "Mr.")."""
    return [words for part in SENTENCES.findall(text) if (words := words_of(part))]


def word_pairs(texts: Iterable[str]) -> Iterable[str]:
    """Neighbouring words within sentences."""
    return (f"{a} {b}" for text in texts for said in sentences(text) for a, b in pairwise(said))


def dialogue(text: str) -> float:
    """Share of the words that are in double quotation marks."""
    return sum(len(words_of(part)) for part in QUOTED.findall(text)) / len(words_of(text))


def exclaimed(text: str) -> float:
    """Share of the sentences that have a "!"."""
    marked = [part for part in SENTENCES.findall(text) if words_of(part)]
    return sum("!" in part for part in marked) / len(marked)


def sentence_length(text: str) -> float:
    """Mean words per sentence."""
    return len(words_of(text)) / len(sentences(text))


def most(found: Sequence[Term], n: int) -> tuple[list[Term], list[Term]]:
    """The n most increased terms and the n most decreased ones, the strongest first."""
    rising, falling = [t for t in found if t.z > 0], [t for t in reversed(found) if t.z < 0]
    return rising[:n], falling[:n]
