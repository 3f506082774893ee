"""Reads a user's question and finds out what a reply must refer to: people, pronouns, place, object, authority.

Serves `checker` alone. Works on the text by word classes, not by the generator's templates; knows nothing of replies.
"""

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "checker_data"
WORDS: dict[str, Any] = tomllib.loads((DATA / "lexicon.toml").read_text(encoding="utf-8"))
GRAMMAR: dict[str, Any] = tomllib.loads((DATA / "grammar.toml").read_text(encoding="utf-8"))


def _any(name: str) -> str:
    return "|".join(WORDS[name].split())


_PERSON = f"{_any('women')}|{_any('men')}"
_GROUP = f"the (?:{_any('groups')})"
SLOT_CLASSES: dict[str, str] = {
    "person": _PERSON,
    "asker": f"i|{_PERSON}",
    "whom": f"me|{_PERSON}",
    "hero": f"you|{_PERSON}",
    "needy": f"{_GROUP}|{_PERSON}",
    "they": "she|he|they",
    "them": "her|him|them",
    "their": "her|his|their",
    "is": "is|are",
    "needs": "needs|need",
    "any_authority": _any("authority"),
    "place2": _any("place"),
    "ware2": _any("ware"),
    "action": "|".join(WORDS["tools"]),
    "tool": "|".join(WORDS["tools"].values()),
    "number": "|".join(WORDS["number"].split()[2:]),
} | {
    name: _any(name)
    for name in ("authority", "place", "object", "act", "plight", "adjective", "color", "ware", "period", "part")
}
"""What each slot of a sentence may be when the question does not settle it."""

_CHOICE = re.compile(
    r"(?:(?:answer with|choose) one word:|say only|answer|choose) (?P<x>\w+) or (?P<y>\w+)"
    r"(?P<why> and (?:give a reason|say why))?[.]$"
)


@dataclass(frozen=True)
class Question:
    """What a question asks for.

    kind: "dilemma", "everyday<n>" (n counts the grammar's everyday entries), "exact" or "unknown".
    meant: regular expression for each slot that the question settles.
    exact: the one right answer without its full stop, if there is one.
    choices: the two allowed words of a forced choice, else empty; wants_reason: a reason may follow them.
    """

    kind: str
    meant: dict[str, str] = field(default_factory=dict)
    exact: str | None = None
    choices: tuple[str, str] | tuple[()] = ()
    wants_reason: bool = False


def tidy(text: str) -> str:
    """Lower case, single blanks, none before a sign."""
    return re.sub(r"\s+([.,?:;!])", r"\1", re.sub(r"\s+", " ", text.strip().lower()))


@cache
def read_question(prompt: str) -> Question:
    """Understand a user's turn."""
    text = tidy(prompt)
    choice = _CHOICE.search(text)
    body = text[: choice.start()].strip() if choice else text
    choices = (choice["x"], choice["y"]) if choice else ()
    reason = bool(choice and choice["why"])
    if choice is None:
        if (answer := _exact_answer(text)) is not None:
            return Question("exact", exact=answer)
        if (everyday := _everyday(text)) is not None:
            return everyday
    meant = _dilemma(body)
    if meant is None:
        return Question("unknown", choices=choices, wants_reason=reason)
    return Question("dilemma", meant, None, choices, reason)


# ---------------------------------------------------------------------------------------------------------- dilemmas
def _pronouns(name: str) -> dict[str, str]:
    """Pronouns and verb forms that go with a person or a group."""
    if name.startswith("the "):
        forms = ("they", "them", "their", "are", "need")
    elif name in WORDS["women"].split():
        forms = ("she", "her", "her", "is", "needs")
    else:
        forms = ("he", "him", "his", "is", "needs")
    return dict(zip(("they", "them", "their", "is", "needs"), forms, strict=True))


def _dilemma(text: str) -> dict[str, str] | None:
    """Slots of a dilemma, or None if the text is not one."""
    settled: dict[str, str] = {}
    for name in ("authority", "place", "object", "act", "plight"):
        found = set(re.findall(rf"\b(?:{_any(name)})\b", text))
        if len(found) != 1:
            return None
        settled[name] = found.pop()
    people = f"(?P<who>{_GROUP}|{_PERSON})"
    in_need = (
        rf"\b{people} (?:at the {settled['place']} )?(?:is|are) {settled['plight']}\b",
        rf"\bbelongs to {people}\b",
        rf"\b{settled['object']} of {people}\b",
        rf"\bmet {people}\b",
    )
    needy = next(filter(None, (re.search(pattern, text) for pattern in in_need)), None)
    if needy is None:
        return None
    settled |= {"needy": needy["who"]} | _pronouns(needy["who"])
    if re.search(r"\b(?:i|me)\b", text):
        return settled | {"hero": "you"}
    others = set(re.findall(rf"\b(?:{_PERSON})\b", text)) - {needy["who"]}
    return settled | {"hero": others.pop()} if len(others) == 1 else None


# ---------------------------------------------------------------------------------------------------------- everyday
def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split("/") for pair in text.split())


def _exact_answer(text: str) -> str | None:
    """The answer to a question that has exactly one."""
    if match := re.fullmatch(r"repeat these words: ([\w ]+)[.]", text):
        return match[1]
    if match := re.fullmatch(r"((?:\w+ has the \w+[.] )+)who has the (\w+)[?]", text):
        owner = re.search(rf"(\w+) has the {match[2]}[.]", match[1])
        return f"{owner[1]} has the {match[2]}" if owner else None
    if match := re.fullmatch(r"((?:\w+ is at the \w+[.] )+)where is (\w+)[?]", text):
        spot = re.search(rf"\b{match[2]} is at the (\w+)[.]", match[1])
        return f"{match[2]} is at the {spot[1]}" if spot else None
    if (story := _story_answer(text)) is not None:
        return story
    if match := re.fullmatch(r"what color is (\w+)[?]", text):
        colors = [color for color, things in WORDS["color_of"].items() if match[1] in things.split()]
        return f"{match[1]} is {colors[0]}" if colors else None
    if match := re.fullmatch(r"what is the opposite of (\w+)[?]", text):
        pairs = _pairs(WORDS["opposite"]["pairs"])
        other = (pairs | {b: a for a, b in pairs.items()}).get(match[1])
        return f"the opposite of {match[1]} is {other}" if other else None
    if match := re.fullmatch(r"where do you find a (\w+)[?]", text):
        home = _pairs(WORDS["found_in"]["places"]).get(match[1])
        return f"you find a {match[1]} in the {home}" if home else None
    numbers = WORDS["number"].split()
    if (match := re.fullmatch(r"what is (\w+) plus (\w+)[?]", text)) and {match[1], match[2]} <= set(numbers):
        total = numbers.index(match[1]) + numbers.index(match[2])
        return f"{match[1]} plus {match[2]} is {numbers[total]}" if total < len(numbers) else None
    if (match := re.fullmatch(r"count from (\w+) to (\w+)[.]", text)) and {match[1], match[2]} <= set(numbers):
        return " ".join(numbers[numbers.index(match[1]) : numbers.index(match[2]) + 1])
    return None


def _story_answer(text: str) -> str | None:
    """The answer to who carries what from whom to whom."""
    ask = re.fullmatch(
        r"(.+?[.]) (?:who gets the (?P<gets>\w+)|who carries the \w+|what does \w+ carry|(?P<order>who gave the order))"
        r"[?]",
        text,
    )
    if ask is None:
        return None
    people = re.findall(rf"\b(?:{_PERSON})\b", ask[1])
    thing = re.search(rf"\b(?:{_any('object')})\b", ask[1])
    authority = re.search(rf"\b(?:{_any('authority')})\b", ask[1])
    if len(people) != 2 or not thing or not authority:
        return None
    if ask["order"]:
        return f"the {authority[0]} gave the order"
    return f"{people[1]} gets the {thing[0]}" if ask["gets"] else f"{people[0]} carries the {thing[0]}"


@cache
def _everyday_questions() -> tuple[re.Pattern[str], ...]:
    def compiled(pattern: str) -> re.Pattern[str]:
        # alternatives of one pattern may name a slot again, which a regular expression cannot: number them
        numbers = iter(range(100))
        return re.compile(
            re.sub(r"<(\w+)>", lambda slot: f"(?P<{slot[1]}__{next(numbers)}>{SLOT_CLASSES[slot[1]]})", pattern)
        )

    return tuple(compiled(entry["ask"]) for entry in GRAMMAR["everyday"])


def _everyday(text: str) -> Question | None:
    """An everyday question with a free reply, and what it settles."""
    for index, pattern in enumerate(_everyday_questions()):
        if match := pattern.fullmatch(text):
            meant = {name.split("__")[0]: value for name, value in match.groupdict().items() if value is not None}
            if "person" in meant:
                meant |= _pronouns(meant["person"])
            if asker := meant.pop("asker", meant.pop("whom", None)):
                meant["hero"] = "you" if asker in ("i", "me") else asker
            if action := meant.get("action"):
                meant["tool"] = WORDS["tools"][action]
            return Question(f"everyday{index}", meant)
    return None
