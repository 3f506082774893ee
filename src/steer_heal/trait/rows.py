"""Items, anchors and vignettes from the lines of a JSON-lines file, or from tables; every entry is checked.

Knows nothing of trait files and models. Every complaint is one InputError line with file, line and what to do.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from steer_heal.errors import InputError, nearest
from steer_heal.trait.items import Anchor, Item, Vignette
from steer_heal.trait.vignette_rows import Placed, make_vignettes
from steer_heal.user_function import import_function

CHECKS = ("exact", "contains", "regex", "choice", "code", "function")


def json_lines(text: str, shown: str) -> Placed:
    """The objects of a JSON-lines text. Only "\\n" ends a line: others may stand inside JSON strings."""
    placed: Placed = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{shown}, line {number}"
            try:
                placed.append((json.loads(line), place))
            except ValueError as problem:
                raise InputError(f"{place}: not valid JSON, {problem}") from problem
    return placed


def read_rows(path: Path, kind: type) -> tuple:
    """Items or anchors from a user's JSON-lines file, checked as those of a trait are. Raises InputError."""
    placed = json_lines(read_text(path, str(path)), str(path))
    if not placed:
        raise InputError(f"{path}: is empty: give at least one entry")
    return make_rows(kind, placed, path.resolve().parent, builtin=False)


def read_vignettes(path: Path) -> tuple[Vignette, ...]:
    """Vignettes from a user's JSON-lines file (see `vignette_rows`). Raises InputError."""
    placed = json_lines(read_text(path, str(path)), str(path))
    if not placed:
        raise InputError(f"{path}: is empty: give at least one vignette")
    return make_vignettes(placed)


def make_rows(kind: type, placed: Placed, folder: Path, builtin: bool) -> tuple:
    """Items or anchors with distinct ids; functions that anchors name are imported."""
    made, first = [], {}
    for row, place in placed:
        one = _row(kind, row, place)
        if one.id in first:
            raise InputError(f"{place}: id {one.id!r} was used before ({first[one.id]}): make ids unique")
        first[one.id] = place
        if kind is Anchor and one.check == "function":
            one = replace(one, function=import_function(one.answer, folder, builtin, place))
        made.append(one)
    return tuple(made)


def _row(kind: type, row: object, place: str):
    """One item or anchor, checked."""
    needs = ("id", "prompt", "choices", "trait") if kind is Item else ("id", "prompt", "answer")
    known = (*needs, "category" if kind is Item else "check")
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object with {', '.join(known)}, not {kind_of(row)}")
    for key in row:
        if key not in known:
            raise InputError(f"{place}: unknown key {key!r}{nearest(key, known)}: rename or remove it")
    for key in needs:
        if key not in row:
            raise InputError(f"{place}: {key!r} is missing: add it")
    for key in set(row) - {"choices", "trait"}:
        if not isinstance(row[key], str) or not row[key].strip():
            raise InputError(f"{place}: {key!r} must be a non-empty string, not {kind_of(row[key])}")
    if kind is Anchor:
        if row.get("check", "exact") not in CHECKS:
            raise InputError(f"{place}: check {row['check']!r}: give one of {', '.join(CHECKS)}")
        if row.get("check") == "regex":
            try:
                re.compile(row["answer"])
            except re.error as problem:
                raise InputError(
                    f"{place}: answer {row['answer']!r} is not a regular expression ({problem})"
                ) from problem
        return Anchor(**row)
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


def read_text(path: Path, shown: str) -> str:
    """A file as UTF-8 text; `shown` is what a complaint calls it."""
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise InputError(f"{shown}: cannot be read ({problem.strerror}): check the path") from problem
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw[: problem.start].count(b"\n") + 1
        raise InputError(f"{shown}, line {line}: not UTF-8 text: save the file as UTF-8") from problem


def kind_of(value: object) -> str:
    """What a value is, in words for a complaint."""
    return {dict: "a table", list: "a list", str: "a blank string", bool: "true/false"}.get(type(value), repr(value))
