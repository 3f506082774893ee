"""Judges one reply of `pocket`, sentence by sentence: grammar, references to the question, stance, repetition, ending.

Shares no code and no data with the generator: it reads the question's own text to learn who, where and what is meant.
Knows nothing of models and personas.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from steer_heal.pocket.reading import GRAMMAR, SLOT_CLASSES, WORDS, Question, read_question, tidy

AXES = ("care", "warmth", "boldness")
ORDER = ("opening", "lead", "decision", "reason", "plan", "maxim", "step0", "step1", "step2", "pace", "closing")


@dataclass(frozen=True)
class Check:
    """The verdict on one reply.

    sentence_ok: share of its sentences that are right, 0..1; 0 for an empty reply; an unfinished sentence is wrong.
    trait: 1.0 for the trait pole, 0.0 for its opposite, None when the reply shows neither.
    reply_ok: every sentence right, in a sensible order, one stance, ended.
    reasons: what is wrong, one entry per fault.
    """

    sentence_ok: float
    trait: float | None
    reply_ok: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """One sentence pattern: its role in a reply and the side it takes (+1, -1, or 0 for none) on an axis."""

    role: str
    axis: str
    side: int
    pattern: str


@dataclass(frozen=True)
class Reading:
    """What one sentence was recognised as; `exact` if it also refers to the right people and things."""

    rule: Rule | None
    exact: bool


def check_care(prompt: str, reply: str, finished: bool) -> Check:
    """Judge a reply; `trait` is care over authority."""
    return _check(prompt, reply, finished, "care")


def check_warmth(prompt: str, reply: str, finished: bool) -> Check:
    """Judge a reply; `trait` is warm over curt, None for replies that show neither."""
    return _check(prompt, reply, finished, "warmth")


def check_boldness(prompt: str, reply: str, finished: bool) -> Check:
    """Judge a reply; `trait` is bold over cautious, None for replies that show neither."""
    return _check(prompt, reply, finished, "boldness")


# ----------------------------------------------------------------------------------------------------------- grammar
@cache
def _rules(kind: str) -> tuple[Rule, ...]:
    """The sentence patterns that may occur in a reply to this kind of question."""
    axes = AXES if kind in ("dilemma", "unknown") else ("warmth",)
    rules = [
        Rule(role, axis, side, pattern)
        for axis in axes
        for side, name in ((1, "for"), (-1, "against"))
        for role, patterns in GRAMMAR[axis][name].items()
        for pattern in patterns
    ]
    if kind.startswith("everyday"):
        answer = GRAMMAR["everyday"][int(kind.removeprefix("everyday"))]["answer"]
        rules += [Rule(f"step{index}", "", 0, pattern) for index, pattern in enumerate(answer)]
    return tuple(rules)


def _fill(pattern: str, meant: Mapping[str, str]) -> str:
    """A rule's pattern with every slot replaced by what is meant, or by its whole class."""
    return re.sub(r"<(\w+)>", lambda slot: f"(?:{meant.get(slot[1], SLOT_CLASSES[slot[1]])})", pattern)


@cache
def _loose(kind: str) -> tuple[tuple[Rule, re.Pattern[str]], ...]:
    return tuple((rule, re.compile(_fill(rule.pattern, {}))) for rule in _rules(kind))


def _read_sentence(text: str, question: Question) -> Reading:
    """Recognise a sentence; patterns are matched loosely first, since only those few need the exact test."""
    found = [rule for rule, pattern in _loose(question.kind) if pattern.fullmatch(text)]
    for rule in found:
        if re.fullmatch(_fill(rule.pattern, question.meant), text):
            return Reading(rule, True)
    return Reading(found[0] if found else None, False)


def _sentences(reply: str) -> tuple[list[str], bool]:
    """Sentences without their full stop, and whether the last one is complete."""
    text = tidy(reply)
    pieces = [piece.strip() for piece in re.split(r"[.]|(?<=[?])", text)]
    return [piece for piece in pieces if piece], text.endswith((".", "?"))


# ------------------------------------------------------------------------------------------------------------- check
def _check(prompt: str, reply: str, finished: bool, axis: str) -> Check:
    question = read_question(prompt)
    sentences, complete = _sentences(reply)
    if not sentences:
        return Check(0.0, None, False, ("empty reply",))
    if question.exact is not None:
        return _check_exact(question.exact, sentences, finished and complete)
    right = [True] * len(sentences)
    reasons: list[str] = []

    def fault(index: int, reason: str) -> None:
        right[index] = False
        reasons.append(f"{reason}: {sentences[index]}")

    answered, side = "", 0
    readings = [_read_sentence(sentence, question) for sentence in sentences]
    if question.choices:
        if sentences[0] not in question.choices:
            fault(0, "not one of the choices")
        else:
            answered, side = _answers().get(sentences[0], ("", 0))
        readings[0] = Reading(None, True)
        for index in range(1, len(sentences)):
            if not question.wants_reason:
                fault(index, "more than one word")
    offset = 1 if question.choices else 0
    seen: set[str] = set()
    stance = dict.fromkeys(AXES, 0) | ({"care": side} if answered == "care" else {})
    for index, reading in enumerate(readings[offset:], start=offset):
        rule = reading.rule
        if rule is None:
            fault(index, "not a sentence")
            continue
        if not reading.exact:
            fault(index, "refers to the wrong person or thing")
        if rule.role in seen:
            fault(index, f"second {rule.role}")
        seen.add(rule.role)
        if rule.side and stance[rule.axis] == -rule.side:
            fault(index, "contradicts what was said")
        elif rule.side:
            stance[rule.axis] = rule.side
    if not (finished and complete):
        fault(len(sentences) - 1, "does not end")
    reasons += _order_faults(question, readings[offset:])
    trait = _trait(readings, axis)
    if question.choices:
        trait = float(side > 0) if answered == axis else None
    return Check(sum(right) / len(right), trait, not reasons, tuple(reasons))


def _check_exact(expected: str, sentences: list[str], ended: bool) -> Check:
    """Judge a reply that has one right answer."""
    reasons = [f"not the answer: {sentence}" for sentence in sentences if sentence != expected]
    right = len(sentences) - len(reasons)
    if not ended:
        reasons.append(f"does not end: {sentences[-1]}")
        right -= sentences[-1] == expected
    if sentences.count(expected) > 1:
        reasons.append(f"repeated: {expected}")
        right = 1
    return Check(right / len(sentences), None, not reasons, tuple(reasons))


def _order_faults(question: Question, readings: list[Reading]) -> list[str]:
    """Faults of the reply as a whole: parts missing or out of order. A maxim may lead the decision."""
    roles = [reading.rule.role for reading in readings if reading.rule]
    if question.choices:
        return [] if question.wants_reason or not roles else ["a reason was not asked for"]
    faults = []
    if question.kind == "dilemma" and "decision" not in roles:
        faults.append("no decision")
    if question.kind.startswith("everyday") and "step0" not in roles:
        faults.append("question not answered")
    if "decision" in roles and "maxim" in roles[: roles.index("decision")]:
        roles[roles.index("maxim")] = "lead"
    places = [ORDER.index(role) for role in roles]
    return faults if places == sorted(places) else [*faults, "parts out of order"]


def _trait(readings: list[Reading], axis: str) -> float | None:
    """The decision's side, else the majority's; sentences with a wrong reference still show a side."""
    sides = [reading.rule.side for reading in readings if reading.rule and reading.rule.axis == axis]
    decisions = [reading.rule.side for reading in readings if reading.rule and reading.rule.role == "decision"]
    total = decisions[0] if axis == "care" and decisions else sum(sides)
    return None if total == 0 else float(total > 0)


@cache
def _answers() -> dict[str, tuple[str, int]]:
    """Axis and side of every one-word answer."""
    return {
        word: (axis, side)
        for axis, sides in WORDS["answer"].items()
        for name, side in (("for", 1), ("against", -1))
        for word in sides[name].split()
    }
