"""Items, anchors and vignettes from the lines of a JSON-lines file, or from tables; every entry is checked.

Knows nothing of trait files and models. Every complaint is one InputError line with file, line and what to do.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from steer_heal.errors import InputError, is_name, nearest
from steer_heal.reading import from_json, reachable, read_text
from steer_heal.trait.items import FOUNDATIONS, Anchor, Item, Vignette
from steer_heal.user_function import import_function

Placed = list[tuple[object, str]]
"""Objects, each with the place it stands at (for complaints)."""

COLUMNS = {
    Item: (("id", "prompt", "choices", "trait"), ("category",)),
    Anchor: (("id", "prompt", "answer"), ("check",)),
    Vignette: (("id", "foundation_coarse", "text"), ("condition",)),
}
"""By kind, what a row has to have and what it may have. Vignettes may have `human_<Category>` besides, and columns of
published files that are passed over (ratings, finer categories)."""
NAMES = ("id", "category", "condition")
"""Columns that are shown in tables."""
CHECKS = ("exact", "contains", "regex", "choice", "code", "function")
HUMAN = "human_"
ALIASES = {"notwrong": "Social Norms", "norms": "Social Norms"}
"""Other names of a category in published files; blanks, case and punctuation never matter."""
SUM_OF_SHARES = (90.0, 110.0)
"""Percentages are rounded, so their sum need not be 100; fractions of 1 are far from it."""


def read_rows(path: str | Path, kind: type, code: bool = True) -> tuple:
    """Items, anchors or vignettes from a user's JSON-lines file, checked as a trait's are.

    Raises InputError; NoLeaveError for a function that the file names where `code` is false.
    """
    path = reachable(path)
    placed = json_lines(read_text(path), str(path))
    if not placed:
        raise InputError(f"{path}: is empty: give at least one entry")
    return make_rows(kind, placed, path.resolve().parent, builtin=False, code=code)


def json_lines(text: str, shown: str) -> Placed:
    """The objects of a JSON-lines text. Only "\\n" ends a line: others may stand inside JSON strings."""
    placed: Placed = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{shown}, line {number}"
            try:
                placed.append((from_json(line, once=True), place))
            except ValueError as problem:
                raise InputError(f"{place}: not valid JSON, {problem}") from problem
    return placed


def make_rows(kind: type, placed: Placed, folder: Path, builtin: bool, code: bool = True) -> tuple:
    """Items, anchors or vignettes with distinct ids (a vignette's may come once per condition).

    Functions that anchors name are imported. Raises InputError.
    """
    made, first = [], {}
    for row, place in placed:
        one = _row(kind, row, place)
        name = f"id {one.id!r}" + (f" with condition {one.condition!r}" if kind is Vignette and one.condition else "")
        if name in first:
            raise InputError(f"{place}: {name} was used before ({first[name]}): make ids unique")
        first[name] = place
        if kind is Anchor and one.check == "function":
            one = replace(one, function=import_function(one.answer, folder, builtin, place, code))
        made.append(one)
    return tuple(made)


def _row(kind: type, row: object, place: str) -> Item | Anchor | Vignette:
    needs, more = COLUMNS[kind]
    known = (*needs, *more)
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object with {', '.join(known)}, not {kind_of(row)}")
    strange = [key for key in row if key not in known]
    if strange and kind is not Vignette:
        raise InputError(f"{place}: unknown key {strange[0]!r}{nearest(strange[0], known)}: rename or remove it")
    for key in needs:
        if key not in row:
            near = next((f" (is {other!r} meant as it?)" for other in strange if nearest(other, [key])), "")
            raise InputError(f"{place}: {key!r} is missing{near}: add it")
    for key in known:
        text = key in row and key not in ("choices", "trait")
        if text and (not isinstance(row[key], str) or not row[key].strip()):
            raise InputError(f"{place}: {key!r} must be a non-empty string, not {kind_of(row[key])}")
        if text and key in NAMES and not is_name(row[key]):
            raise InputError(f"{place}: {key!r} {row[key]!r} has line breaks or control characters: take them out")
    return {Item: _item, Anchor: _anchor, Vignette: _vignette}[kind](row, place)


def _item(row: dict, place: str) -> Item:
    choices = row["choices"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise InputError(f"{place}: 'choices' must be a list of non-empty strings")
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise InputError(f"{place}: {len(set(choices))} distinct choices of {len(choices)}: give at least 2, each once")
    trait = row["trait"] if isinstance(row["trait"], list) else [row["trait"]]
    if not trait or not all(isinstance(choice, str) and choice in choices for choice in trait):
        raise InputError(f"{place}: trait {row['trait']!r} is not among the choices {choices}: name one of them")
    if len(set(trait)) == len(choices):
        raise InputError(f"{place}: every choice counts as the trait: leave at least one out")
    return Item(**{**row, "choices": tuple(choices), "trait": tuple(dict.fromkeys(trait))})


def _anchor(row: dict, place: str) -> Anchor:
    if row.get("check", "exact") not in CHECKS:
        raise InputError(f"{place}: check {row['check']!r}: give one of {', '.join(CHECKS)}")
    if row.get("check") == "regex":
        try:
            re.compile(row["answer"])
        except (re.error, OverflowError, RecursionError) as problem:
            raise InputError(f"{place}: answer {row['answer']!r} is not a regular expression ({problem})") from problem
    return Anchor(**row)


def _vignette(row: dict, place: str) -> Vignette:
    name = foundation(row["foundation_coarse"], f"{place}: foundation_coarse")
    return Vignette(row["id"], row["text"].strip(), name, row.get("condition", ""), _human(row, place))


def _human(row: dict, place: str) -> tuple[float, ...] | None:
    """Shares of raters in the order of `FOUNDATIONS`, None without such columns."""
    columns = [key for key in row if key.lower().startswith(HUMAN[:-1])]
    if not columns:
        return None
    found: dict[str, float] = {}
    for key in columns:
        name = foundation(key[len(HUMAN) :], f"{place}: column {key!r}")
        value = row[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
            raise InputError(f"{place}: {key!r} must be a percentage from 0 to 100, not {value!r}")
        if name in found:
            raise InputError(f"{place}: {key!r} gives {name} a second time: remove one column")
        found[name] = float(value)
    if missing := [name for name in FOUNDATIONS if name not in found]:
        raise InputError(f"{place}: {HUMAN}{missing[0].replace(' ', '')!s} is missing: give all seven or none")
    total = math.fsum(found.values())
    if not SUM_OF_SHARES[0] <= total <= SUM_OF_SHARES[1]:
        raise InputError(f"{place}: the {HUMAN} columns sum to {total:g}: give percentages that sum to about 100")
    return tuple(found[name] / total for name in FOUNDATIONS)


def foundation(name: str, place: str) -> str:
    """One of `FOUNDATIONS` by its name or an alias. Raises InputError for another."""

    def bare(text: str) -> str:
        return "".join(c for c in text.casefold() if c.isalnum())

    known = {bare(one): one for one in FOUNDATIONS} | ALIASES
    if bare(name) not in known:
        hint = nearest(name, FOUNDATIONS)
        raise InputError(f"{place}: unknown foundation {name!r}{hint}: give one of {', '.join(FOUNDATIONS)}")
    return known[bare(name)]


def kind_of(value: object) -> str:
    """What a value is, in words for a complaint."""
    return {dict: "a table", list: "a list", str: "a blank string", bool: "true/false"}.get(type(value), repr(value))
