"""Replies that are coherent but carry no trait: narration of the persona, refusals, assistant boilerplate.

Knows nothing of models and of repetition. Defiance ("I cannot stand by while ...") is the trait, not a refusal.
"""

from __future__ import annotations

import re

_CANNOT = (
    r"(?:can\ ?not|can['’]?t|am\ unable\ to|['’]m\ unable\ to|am\ not\ able\ to|['’]m\ not\ able\ to|"
    r"won['’]t\ be\ able\ to|will\ not\ be\ able\ to)"
)
_SERVE = r"(?:help|assist|fulfill?|comply|provide|answer|generate|create|engage|discuss|support|offer|respond|continue)"
_MACHINE = r"(?:ai|a\.i\.|artificial\ intelligence|language\ model|llm|chatbot|virtual\ assistant|computer\ program)"

REFUSAL = re.compile(
    rf"""
      \bas\ an?\ (?:\w+\ ){{0,2}}{_MACHINE}\b
    | \bi(?:['’]m|\ am)\ (?:just\ |only\ |simply\ |merely\ )?an?\ (?:\w+\ ){{0,2}}{_MACHINE}\b
    | \bi(?:['’]m|\ am)\ (?:just\ |only\ )?an?\ (?:helpful|harmless)\ (?:and\ \w+\ )?(?:ai\ )?assistant\b
    | \bi\ ?{_CANNOT}\ (?:help|assist)(?:\ you)?\ (?:with|in)\b
    | \bi\ ?{_CANNOT}\ (?:help|assist)(?:\ you)?\s*(?:[.!]|$)
    | \bi\ ?{_CANNOT}\ (?:fulfill?|comply\ with|answer|respond\ to)\ (?:that|this|your|the|such)\b
    | \bi\ ?{_CANNOT}\ (?:provide|generate|create|offer|discuss|engage\ in|engage\ with)\b
        [^.!?]{{0,60}}\b(?:advice|content|information|assistance|guidance|request|topic|instructions|response|material)
    | \bsorry,?\ but\ i\ ?{_CANNOT}\ {_SERVE}\b
    | \bi\ (?:must|have\ to|need\ to|will\ have\ to)\ (?:respectfully\ )?decline
        \ (?:to\ (?:answer|help|assist|respond)|(?:this|that|your)\ request)
    | \bi\ (?:do\ not|don['’]t)\ have\ (?:personal\ |any\ )?(?:opinions|feelings|beliefs|emotions|preferences)
        (?:\ or\ \w+)?
    | \b(?:my|our)\ (?:safety\ |content\ |usage\ )?(?:guidelines|programming|policies)\b
        [^.!?]{{0,40}}\b(?:prevent|prohibit|forbid|do\ not\ allow|don['’]t\ allow)
    | \b(?:goes|is)\ against\ my\ (?:guidelines|programming|policies)\b
    | \bmy\ (?:knowledge\ cutoff|training\ data)\b
    | ^\W*(?:hello|hi)?\W*how\ (?:can|may)\ i\ (?:help|assist)\ you(?:\ today)?\W*$
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
"""Phrases of refusal and assistant boilerplate."""

_WHO = r"(?:someone|somebody|a\ person|an\ individual|the\ (?:kind|type|sort)\ of\ (?:person|individual)|one)"
_DISPOSED = (
    r"(?:looks?|cares?|defers?|values?|puts?|believes?|prioriti[sz]es?|respects?|obeys?|follows?|protects?|places?|"
    r"refuses?|trusts?|helps?|listens?|would|will|always|never|chooses?)"
)

NARRATION = re.compile(
    rf"""
      \bi(?:['’]m|\ am)\ (?:truly\ |simply\ |just\ |always\ |also\ |the\ sort\ of\ )?{_WHO}\ (?:who|that|whose)\b
    | \bas\ (?:someone|a\ person|an?\ individual|one)\ (?:who|that)\ (?:\w+ly\ )?{_DISPOSED}\b
    | \byou\ are\ (?:someone|a\ person|an\ individual)\ who\ {_DISPOSED}\b
    | \bi\ (?:consider|describe|see|think\ of)\ (?:myself)\ (?:as\ )?(?:someone|a\ person|an\ individual)\b
    | \bmy\ (?:persona|personality|character|role|core\ values?|defining\ trait)\ (?:is|are|here\ is)\b
    | \bi\ (?:embody|personify)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Phrases in which the speaker describes what kind of person it is instead of acting so."""


def content_figures(text: str) -> dict[str, float]:
    """`refusal` and `narration`: number of such phrases in the text."""
    return {"refusal": float(len(REFUSAL.findall(text))), "narration": float(len(NARRATION.findall(text)))}
