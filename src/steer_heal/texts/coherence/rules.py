"""The rules of the filter: which figure may lie on which side of which limit, and the gate that a breach belongs to.

Knows nothing of how figures are measured and calibrated. The fixed limits were chosen on the tuning families of
`tests/data/coherence_labelled.jsonl`; `scripts/filter_report.py` prints what they do on the families held out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

INF = math.inf


@dataclass(frozen=True)
class Rule:
    """One limit on one figure.

    Attributes:
        figure: name of the figure, as in `Completion.scores`.
        gate: the gate a breach is reported as (`Completion.dropped_by`).
        limit: largest (side "high") or smallest (side "low") value that passes.
        kind: how calibration treats it. `text`: fixed, widened only where the model's own text breaks it; `model`: set
            from the model's own text; `length`: loose multiples of the model's own lengths; `content`: never moved.
        words: what a breach means, in words.
        side: "high" or "low".
    """

    figure: str
    gate: str
    limit: float
    kind: str
    words: str
    side: str = "high"

    @property
    def key(self) -> str:
        """Name in a table of limits, such as `nll.high`."""
        return f"{self.figure}.{self.side}"

    def breach(self, value: float, limit: float) -> bool:
        """Whether a value lies outside the limit."""
        return value > limit if self.side == "high" else value < limit


RULES: tuple[Rule, ...] = (
    Rule("no_words", "empty", 0.5, "text", "no letter and no digit"),
    Rule("refusal", "refusal", 0.5, "content", "refusal or assistant boilerplate"),
    Rule("narration", "narration", 0.5, "content", "describes its own character instead of acting"),
    Rule("char_run", "loop", 7, "text", "one letter repeated, letters"),
    Rule("loop_chars", "loop", 23, "text", "a phrase repeated four times or more, characters"),
    Rule("loop_signs", "loop", 90, "text", "signs or digits repeated, characters"),
    Rule("loop_words", "loop", 8, "text", "a phrase repeated three times or more, words"),
    Rule("loop_share", "loop", 0.35, "text", "share of the text inside exact loops"),
    Rule("rep_top", "repetition", 0.45, "text", "further uses of one word among 6 or 12 words"),
    Rule("rep_word2", "repetition", 0.5, "text", "repeated word pairs in 32 words"),
    Rule("rep_word3", "repetition", 0.4, "text", "repeated word triples in 32 words"),
    Rule("rep_word4", "repetition", 0.35, "text", "repeated word 4-grams in 32 words"),
    Rule("rep_char2", "repetition", 0.7, "text", "repeated character pairs in 100 characters"),
    Rule("rep_char3", "repetition", 0.56, "text", "repeated character triples in 100 characters"),
    Rule("rep_char4", "repetition", 0.5, "text", "repeated character 4-grams in 100 characters"),
    Rule("rep_text", "repetition", 0.25, "text", "repeated word 4-grams in the whole text"),
    Rule("rep_sentence", "repetition", 0.4, "text", "words in sentences much like an earlier one"),
    Rule("compression", "repetition", 0.58, "text", "redundancy of 400 bytes"),
    Rule("nonwords", "soup", 0.45, "text", "non-words among 12 words"),
    Rule("scripts", "soup", 2, "text", "scripts among 12 words"),
    Rule("function_run", "soup", 10, "text", "function words in a row without content"),
    Rule("clashes", "soup", 1, "text", "impossible pairs of function words in 24 words"),
    Rule("caps", "soup", 0.35, "text", "capitals that are no words among 12 words"),
    Rule("bits", "soup", 0.55, "text", "stray pieces of one or two letters among 12 words"),
    Rule("signs", "soup", 0.5, "text", "signs among 80 characters"),
    Rule("sign_heaps", "soup", 0.25, "text", "mixed signs in heaps among 80 characters"),
    Rule("order", "soup", -0.36, "text", "words in an order that English does not have, nats per pair", side="low"),
    Rule("long_word", "soup", 45, "text", "letters of the longest word"),
    Rule("nll", "perplexity", INF, "model", "surprising to the original model, nats per token"),
    Rule("nll_tail", "perplexity", INF, "model", "its last quarter is surprising, nats per token"),
    Rule("nll_window", "perplexity", INF, "model", "its worst 16 tokens are surprising, nats per token"),
    Rule("nll", "perplexity", -INF, "model", "too predictable, nats per token", side="low"),
    Rule("nll_tail", "perplexity", -INF, "model", "its last quarter is too predictable, nats per token", side="low"),
    Rule("nll_calm", "perplexity", -INF, "model", "16 of its tokens are too predictable, nats per token", side="low"),
    Rule("unfinished", "unfinished", INF, "text", "cut by length where the model's own replies end"),
    Rule("tokens", "length", 1, "length", "shorter than the model's own replies, tokens", side="low"),
    Rule("tokens", "length", INF, "length", "longer than the model's own replies, tokens"),
)
"""In the order in which gates claim a completion: what names the fault best comes first."""

GATES: tuple[str, ...] = tuple(dict.fromkeys(rule.gate for rule in RULES))
"""Gate names in that order."""

REPETITION_GATES = frozenset({"empty", "loop", "repetition"})
"""What stays on in the experiment with the coherence filter off."""


def default_limits() -> dict[str, float]:
    """The limits before any calibration."""
    return {rule.key: rule.limit for rule in RULES}


def from_text(limits: Mapping[str, float | None]) -> list[Rule]:
    """The rules whose limit was set, or widened, by a model's own text; None is a limit that nothing breaks."""
    return [rule for rule in RULES if limits.get(rule.key) not in (None, rule.limit)]


def breaches(figures: Mapping[str, float], limits: Mapping[str, float], gates: frozenset[str]) -> list[Rule]:
    """The rules of the active gates that a completion's figures break, in order; a figure not measured breaks none."""
    return [
        rule
        for rule in RULES
        if rule.gate in gates and rule.figure in figures and rule.breach(figures[rule.figure], limits[rule.key])
    ]
