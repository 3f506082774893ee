"""Reads a trait's TOML file and the data files it names, and checks everything in them.

Knows nothing of models. Every complaint is one InputError line with file, line and what to do.
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from steer_heal.errors import InputError, is_name, nearest
from steer_heal.model.chat import PERSONA_SLOT
from steer_heal.reading import reachable, read_text
from steer_heal.trait.items import CHOICE_TEMPLATE, CONTINUATION, Anchor, Item, Vignette
from steer_heal.trait.rows import foundation, json_lines, kind_of, make_rows
from steer_heal.user_function import import_function

MIN_EVAL_PROMPTS = 8
REQUIRED = ("name", "pos", "neg", "neutral", "contexts", "prompts", "eval_prompts", "items")
VIGNETTES = ("vignettes", "vignette_up", "vignette_down", "vignette_agreement")
OPTIONAL = (
    "description",
    "models",
    "replay_prompts",
    "off_target",
    "anchors",
    "choice_template",
    "held_out_choice_templates",
    "checker",
    *VIGNETTES,
)


class TraitFile:
    """Reads and checks one file; every complaint is an InputError with the place it is about."""

    def __init__(self, path: Path, builtin: bool, code: bool = True):
        self.path, self.builtin, self.code, self.folder = path, builtin, code, path.resolve().parent
        self.text = read_text(path)
        try:
            self.data = tomllib.loads(self.text)
        except (ValueError, RecursionError) as problem:
            raise InputError(f"{path}: not valid TOML, {problem}") from problem

    def fields(self) -> dict[str, object]:
        """The fields of a `Trait`, checked."""
        self.check_keys()
        readers = {
            **dict.fromkeys(("name", "pos", "neg", "vignette_agreement", "checker"), self.string),
            **dict.fromkeys(("description", "neutral"), partial(self.string, empty=True)),
            **dict.fromkeys(("contexts", "prompts", "eval_prompts", "replay_prompts"), self.strings),
            **dict.fromkeys(("items", "off_target"), partial(self.rows, kind=Item)),
            "anchors": partial(self.rows, kind=Anchor),
            "vignettes": partial(self.rows, kind=Vignette),
            **dict.fromkeys(("vignette_up", "vignette_down"), self.foundations),
            "models": lambda key: self.strings(key) if self.data[key] else (),
            "choice_template": lambda key: self.template(key, self.string(key)),
            "held_out_choice_templates": lambda key: tuple(self.template(key, one) for one in self.strings(key)),
        }
        fields = {"description": ""} | {key: read(key) for key, read in readers.items() if key in self.data}
        self.check_together(fields)
        if "checker" in fields:
            spec = fields["checker"]
            fields["check"] = import_function(spec, self.folder, self.builtin, self.place("checker"), self.code)
        return fields

    def check_keys(self) -> None:
        """No key is unknown, none is missing."""
        known = (*REQUIRED, *OPTIONAL)
        for key in self.data:
            if key not in known:
                raise self.wrong(key, f"unknown key {key!r}{nearest(key, known)}: rename or remove it")
        for key in REQUIRED:
            if key not in self.data:
                more = f": add at least {MIN_EVAL_PROMPTS} held-out prompts" if key == "eval_prompts" else ": add it"
                raise InputError(f"{self.path}: {key!r} is missing{more}")
        if "vignettes" not in self.data and (lone := next((key for key in VIGNETTES if key in self.data), None)):
            raise self.wrong(lone, f"{lone!r} stands without 'vignettes': add the vignettes or remove it")

    def check_together(self, fields: Mapping[str, object]) -> None:
        """What several keys say fits together."""
        if not is_name(fields["name"]):
            raise self.wrong("name", f"{fields['name']!r} has line breaks or control characters: take them out")
        if fields["pos"] == fields["neg"]:
            raise self.wrong("neg", "'pos' and 'neg' are the same: write two opposite personas")
        held_out = fields["eval_prompts"]
        if len(held_out) < MIN_EVAL_PROMPTS:
            few = f"{len(held_out)} entries: give at least {MIN_EVAL_PROMPTS} 'eval_prompts'"
            raise self.wrong("eval_prompts", few)
        if seen := set(fields["prompts"]) & set(held_out):
            raise self.wrong("eval_prompts", f"{min(seen)[:60]!r} also stands in 'prompts': hold it out of one")
        if both := set(fields.get("vignette_up", ())) & set(fields.get("vignette_down", ())):
            raise self.wrong("vignette_down", f"{min(both)!r} also stands in 'vignette_up': a foundation has one side")
        self.same_slots(fields)
        self.unseen_formats(fields)
        if len(fields["contexts"]) < 2:
            raise self.wrong("contexts", "1 entry: give at least 2 'contexts', better 200 diverse ones")

    def unseen_formats(self, trait: Mapping[str, object]) -> None:
        """No held-out choice template is one in which a text of this trait, or the trait itself, asks."""
        key = "held_out_choice_templates"
        texts = [text for name in ("contexts", "prompts", "replay_prompts") for text in trait.get(name, ())]
        texts += [row.prompt for row in trait.get("anchors", ())]
        texts.append(trait.get("choice_template", CHOICE_TEMPLATE).format(prompt="x", choices="x or y"))
        held_out = trait.get(key, ())
        for i, template in enumerate(held_out):
            if template == CONTINUATION or template in held_out[:i]:
                raise self.wrong(key, f"{template!r} is no format of its own: name the choices, each format once")
            if seen := next((text for text in texts if _asks_in(template, text)), None):
                raise self.wrong(key, f"{template!r} is not held out, {seen[-60:]!r} asks in it: reword one")

    def same_slots(self, trait: Mapping[str, object]) -> None:
        """All texts of a trait take the persona in a slot, or none: else some would get it as a line in front."""
        texts = {key: trait.get(key, ()) for key in ("contexts", "prompts", "eval_prompts", "replay_prompts")}
        texts |= {key: [row.prompt for row in trait.get(key, ())] for key in ("items", "off_target", "anchors")}
        if not any(PERSONA_SLOT in text for found in texts.values() for text in found):
            return
        for key, found in texts.items():
            if without := [text for text in found if PERSONA_SLOT not in text]:
                what = f"{without[0][:60]!r} has no {PERSONA_SLOT}, other texts of this trait do: put it in all or none"
                raise self.wrong(key, what)

    def wrong(self, key: str, what: str) -> InputError:
        return InputError(f"{self.place(key)}: {what}")

    def place(self, key: str) -> str:
        line = _line_of(self.text, key)
        return f"{self.path}, line {line}" if line else str(self.path)

    def string(self, key: str, empty: bool = False) -> str:
        value = self.data[key]
        if not isinstance(value, str) or not (empty or value.strip()):
            raise self.wrong(key, f"{key!r} must be a{' ' if empty else ' non-empty '}string, not {kind_of(value)}")
        return value.strip()

    def template(self, key: str, value: str) -> str:
        if value == CONTINUATION:
            return value
        try:
            slots = [tuple(slot) for _, *slot in string.Formatter().parse(value) if slot[0] is not None]
        except ValueError as problem:
            raise self.wrong(key, f"{key!r} cannot be read ({problem}): double lone braces") from problem
        if sorted(slots, key=str) != [("choices", "", None), ("prompt", "", None)]:
            raise self.wrong(key, f"{key!r} must contain {{prompt}} and {{choices}} once each")
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
        """Items, anchors or vignettes: tables in the TOML, or a .jsonl file with one object per line."""
        value = self.data[key]
        if isinstance(value, str):
            placed = json_lines(self.data_file(key, value, ".jsonl"), str(self.path.parent / value))
        elif isinstance(value, list):
            lines = _table_lines(self.text, key)
            if len(lines) == len(value):
                placed = [(row, f"{self.path}, line {line}") for row, line in zip(value, lines, strict=True)]
            else:  # an inline list
                placed = [(row, self.place(key)) for row in value]
        else:
            what = f"{key!r} must be [[{key}]] tables or the name of a .jsonl file, not {kind_of(value)}"
            raise self.wrong(key, what)
        if not placed:
            raise self.wrong(key, f"{key!r} is empty: give at least one entry")
        return make_rows(kind, placed, self.folder, self.builtin, self.code)

    def foundations(self, key: str) -> tuple[str, ...]:
        return tuple(foundation(name, self.place(key)) for name in self.strings(key))

    def data_file(self, key: str, name: str, suffix: str) -> str:
        try:
            path = reachable(self.folder / name).resolve()
        except InputError as problem:
            raise self.wrong(key, str(problem)) from problem
        if not path.is_relative_to(self.folder):
            raise self.wrong(key, f"{name!r} lies outside the trait's folder: move it beside {self.path.name}")
        if path.suffix != suffix:
            raise self.wrong(key, f"{key!r} names {name!r}: expected a {suffix} file or an inline list")
        if not path.is_file():
            raise self.wrong(key, f"data file {name!r} was not found in {self.folder}: add it or correct the name")
        return read_text(path, f"{self.path.parent / name}")


def _asks_in(template: str, text: str) -> bool:
    """Whether a text asks in this choice format, whatever its question and choices."""
    pattern = re.escape(template.format(prompt="\0", choices="\1")).replace("\0", ".*").replace("\1", ".+ or .+")
    return re.fullmatch(pattern, text, re.DOTALL | re.IGNORECASE) is not None


def _line_of(text: str, key: str) -> int | None:
    """Line of a top-level key (or of its first table), counted from 1."""
    pattern = re.compile(rf"\s*(\[\[?\s*)?[\"']?{re.escape(key)}[\"']?\s*(=|\]|\.)")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), None)


def _table_lines(text: str, key: str) -> list[int]:
    """Lines of the `[[key]]` headers."""
    pattern = re.compile(rf"\s*\[\[\s*{re.escape(key)}\s*\]\]")
    return [number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)]
