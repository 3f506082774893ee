"""Reads a trait's TOML file and the data files it names, and checks everything in them.

Knows nothing of models. Every complaint is one InputError line with file, line and what to do.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import string
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from steer_heal.errors import InputError
from steer_heal.trait import CHOICE_TEMPLATE, Anchor, Item, Trait, nearest

MIN_EVAL_PROMPTS = 8
CHECKS = ("exact", "contains", "regex", "choice", "code", "function")
TEXTS = ("name", "pos", "neg")
LISTS = ("contexts", "prompts", "eval_prompts")
REQUIRED = ("name", "pos", "neg", "neutral", "contexts", "prompts", "eval_prompts", "items")
OPTIONAL = ("description", "models", "replay_prompts", "off_target", "anchors", "choice_template", "checker")


class TraitFile:
    """Reads and checks one file; every complaint is an InputError with the place it is about."""

    def __init__(self, path: Path, builtin: bool):
        self.path, self.builtin = path, builtin
        self.text = _read(path, f"{path}")
        try:
            self.data = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as problem:
            raise InputError(f"{path}: not valid TOML, {problem}") from problem

    def trait(self) -> Trait:
        known = (*REQUIRED, *OPTIONAL)
        for key in self.data:
            if key not in known:
                raise self.wrong(key, f"unknown key {key!r}{nearest(key, known)}: rename or remove it")
        for key in REQUIRED:
            if key not in self.data:
                more = f": add at least {MIN_EVAL_PROMPTS} held-out prompts" if key == "eval_prompts" else ": add it"
                raise InputError(f"{self.path}: {key!r} is missing{more}")
        texts = {key: self.string(key) for key in TEXTS}
        if texts["pos"] == texts["neg"]:
            raise self.wrong("neg", "'pos' and 'neg' are the same: write two opposite personas")
        prompts, held_out = self.strings("prompts"), self.strings("eval_prompts")
        if len(held_out) < MIN_EVAL_PROMPTS:
            raise self.wrong("eval_prompts", f"{len(held_out)} entries: give at least {MIN_EVAL_PROMPTS}")
        if seen := set(prompts) & set(held_out):
            raise self.wrong("eval_prompts", f"{min(seen)[:60]!r} also stands in 'prompts': hold it out of one")
        spec = self.string("checker") if "checker" in self.data else None
        return Trait(
            **texts,
            description=self.string("description", empty=True) if "description" in self.data else "",
            neutral=self.string("neutral", empty=True),
            contexts=self.strings("contexts"),
            prompts=prompts,
            eval_prompts=held_out,
            replay_prompts=self.strings("replay_prompts") if "replay_prompts" in self.data else (),
            items=self.rows("items", Item),
            off_target=self.rows("off_target", Item) if "off_target" in self.data else (),
            anchors=self.rows("anchors", Anchor) if "anchors" in self.data else (),
            models=self.strings("models") if self.data.get("models") else (),
            choice_template=self.template() if "choice_template" in self.data else CHOICE_TEMPLATE,
            checker=spec,
            check=import_function(spec, self.path.resolve().parent, self.builtin, self.place("checker"))
            if spec
            else None,
        )

    def wrong(self, key: str, what: str) -> InputError:
        return InputError(f"{self.place(key)}: {what}")

    def place(self, key: str) -> str:
        line = _line_of(self.text, key)
        return f"{self.path}, line {line}" if line else str(self.path)

    def string(self, key: str, empty: bool = False) -> str:
        value = self.data[key]
        if not isinstance(value, str) or not (empty or value.strip()):
            raise self.wrong(key, f"{key!r} must be a{' ' if empty else ' non-empty '}string, not {_kind(value)}")
        return value.strip()

    def template(self) -> str:
        value = self.string("choice_template")
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
        except ValueError as problem:
            raise self.wrong(
                "choice_template", f"'choice_template' cannot be read ({problem}): double lone braces"
            ) from problem
        if sorted(names) != ["choices", "prompt"]:
            raise self.wrong("choice_template", "'choice_template' must contain {prompt} and {choices} once each")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of texts: inline, or a .txt file with one entry per line (blank lines are skipped)."""
        value = self.data[key]
        if isinstance(value, str):
            text = self.data_file(key, value, ".txt")
            value = [line for line in text.split("\n") if line.strip()]
            if not value:
                raise self.wrong(key, f"{self.data[key]} is empty: one entry per line")
        if not isinstance(value, list) or not all(isinstance(entry, str) and entry.strip() for entry in value):
            raise self.wrong(key, f"{key!r} must be a list of non-empty strings or the name of a .txt file")
        if not value:
            raise self.wrong(key, f"{key!r} is empty: give at least one entry")
        return tuple(entry.strip() for entry in value)

    def rows(self, key: str, kind: type) -> tuple:
        """A list of items or anchors: tables in the TOML, or a .jsonl file with one object per line."""
        value = self.data[key]
        if isinstance(value, str):
            placed = json_lines(self.data_file(key, value, ".jsonl"), str(self.path.parent / value))
        elif isinstance(value, list):
            lines = _table_lines(self.text, key)
            exact = len(lines) == len(value)  # not for an inline list
            placed = [
                (row, f"{self.path}, line {lines[i]}" if exact else self.place(key)) for i, row in enumerate(value)
            ]
        else:
            raise self.wrong(key, f"{key!r} must be [[{key}]] tables or the name of a .jsonl file, not {_kind(value)}")
        if not placed:
            raise self.wrong(key, f"{key!r} is empty: give at least one entry")
        return make_rows(kind, placed, self.path.resolve().parent, self.builtin)

    def data_file(self, key: str, name: str, suffix: str) -> str:
        folder = self.path.resolve().parent
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            raise self.wrong(key, f"{name!r} lies outside the trait's folder: move it beside {self.path.name}")
        if path.suffix != suffix:
            raise self.wrong(key, f"{key!r} names {name!r}: expected a {suffix} file or an inline list")
        if not path.is_file():
            raise self.wrong(key, f"data file {name!r} was not found in {folder}: add it or correct the name")
        return _read(path, f"{self.path.parent / name}")


Placed = list[tuple[object, str]]
"""Objects, each with the place it stands at (for complaints)."""


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
    placed = json_lines(_read(path, str(path)), str(path))
    if not placed:
        raise InputError(f"{path}: is empty: give at least one entry")
    return make_rows(kind, placed, path.resolve().parent, builtin=False)


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


def import_function(spec: str, folder: Path, builtin: bool, place: str) -> Callable:
    """The function `module:name`; an undotted module may also be a .py file in `folder`. It runs the user's code."""
    module_name, colon, function = spec.partition(":")
    if not colon or not module_name or not function:
        raise InputError(f"{place}: checker {spec!r}: write it as module:function")
    if builtin and module_name.split(".")[0] != "steer_heal":
        raise InputError(f"{place}: checker {spec!r}: a built-in trait may only name a steer_heal module")
    beside = folder / f"{module_name}.py"
    try:
        module = _load_file(beside) if beside.is_file() else importlib.import_module(module_name)
        found = getattr(module, function)
    except (ImportError, SyntaxError, AttributeError, NameError, TypeError, ValueError, LookupError) as problem:
        reason = " ".join(str(problem).split())
        raise InputError(
            f"{place}: checker {spec!r} cannot be imported ({type(problem).__name__}: {reason}): correct it"
        ) from problem
    if not callable(found):
        raise InputError(f"{place}: checker {spec!r} is not a function: name one")
    return found


def _row(kind: type, row: object, place: str):
    """One item or anchor, checked."""
    needs = ("id", "prompt", "choices", "trait") if kind is Item else ("id", "prompt", "answer")
    known = (*needs, "category" if kind is Item else "check")
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object with {', '.join(known)}, not {_kind(row)}")
    for key in row:
        if key not in known:
            raise InputError(f"{place}: unknown key {key!r}{nearest(key, known)}: rename or remove it")
    for key in needs:
        if key not in row:
            raise InputError(f"{place}: {key!r} is missing: add it")
    for key in set(row) - {"choices", "trait"}:
        if not isinstance(row[key], str) or not row[key].strip():
            raise InputError(f"{place}: {key!r} must be a non-empty string, not {_kind(row[key])}")
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


def _read(path: Path, shown: str) -> str:
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise InputError(f"{shown}: cannot be read ({problem.strerror}): check the path") from problem
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw[: problem.start].count(b"\n") + 1
        raise InputError(f"{shown}, line {line}: not UTF-8 text: save the file as UTF-8") from problem


def _load_file(path: Path):
    """A module from a file, under a name of its own so that it shadows nothing."""
    name = f"steer_heal_checker_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses of the module look themselves up there
    spec.loader.exec_module(module)
    return module


def _line_of(text: str, key: str) -> int | None:
    """Line of a top-level key (or of its first table), counted from 1."""
    pattern = re.compile(rf"\s*(\[\[?\s*)?[\"']?{re.escape(key)}[\"']?\s*(=|\]|\.)")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), None)


def _table_lines(text: str, key: str) -> list[int]:
    """Lines of the `[[key]]` headers."""
    pattern = re.compile(rf"\s*\[\[\s*{re.escape(key)}\s*\]\]")
    return [number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)]


def _kind(value: object) -> str:
    return {dict: "a table", list: "a list", str: "a blank string", bool: "true/false"}.get(type(value), repr(value))
