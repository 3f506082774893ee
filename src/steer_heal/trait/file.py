"""Reads a trait's TOML file and the data files it names, and checks everything in them.

Knows nothing of models. Every complaint is one InputError line with file, line and what to do.
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Mapping
from pathlib import Path

from steer_heal.errors import InputError, nearest
from steer_heal.model.chat import PERSONA_SLOT
from steer_heal.trait.items import CHOICE_TEMPLATE, CONTINUATION, Anchor, Item
from steer_heal.trait.rows import json_lines, kind_of, make_rows, read_text
from steer_heal.trait.vignette_rows import foundation, make_vignettes
from steer_heal.user_function import import_function

MIN_EVAL_PROMPTS = 8
TEXTS = ("name", "pos", "neg")
LISTS = ("contexts", "prompts", "eval_prompts")
REQUIRED = ("name", "pos", "neg", "neutral", "contexts", "prompts", "eval_prompts", "items")
OPTIONAL = (
    "description", "models", "replay_prompts", "off_target", "anchors", "choice_template", "checker", "vignettes",
    "vignette_up", "vignette_down", "vignette_agreement",
)  # fmt: skip


class TraitFile:
    """Reads and checks one file; every complaint is an InputError with the place it is about."""

    def __init__(self, path: Path, builtin: bool):
        self.path, self.builtin = path, builtin
        self.text = read_text(path, f"{path}")
        try:
            self.data = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as problem:
            raise InputError(f"{path}: not valid TOML, {problem}") from problem

    def fields(self) -> dict[str, object]:
        """The fields of a `Trait`, checked."""
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
            raise self.wrong(
                "eval_prompts", f"{len(held_out)} entries: give at least {MIN_EVAL_PROMPTS} 'eval_prompts'"
            )
        if seen := set(prompts) & set(held_out):
            raise self.wrong("eval_prompts", f"{min(seen)[:60]!r} also stands in 'prompts': hold it out of one")
        spec = self.string("checker") if "checker" in self.data else None
        fields = dict(
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
            **self.vignettes(),
            models=self.strings("models") if self.data.get("models") else (),
            choice_template=self.template() if "choice_template" in self.data else CHOICE_TEMPLATE,
            checker=spec,
            check=import_function(spec, self.path.resolve().parent, self.builtin, self.place("checker"))
            if spec
            else None,
        )
        self.same_slots(fields)
        return fields

    def same_slots(self, trait: Mapping[str, object]) -> None:
        """All texts of a trait take the persona in a slot, or none: else some would get it as a line in front."""
        texts = {key: trait[key] for key in ("contexts", "prompts", "eval_prompts", "replay_prompts")}
        texts |= {key: [row.prompt for row in trait[key]] for key in ("items", "off_target", "anchors")}
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

    def template(self) -> str:
        value = self.string("choice_template")
        if value == CONTINUATION:
            return value
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
            what = f"{key!r} must be [[{key}]] tables or the name of a .jsonl file, not {kind_of(value)}"
            raise self.wrong(key, what)
        if not placed:
            raise self.wrong(key, f"{key!r} is empty: give at least one entry")
        return make_rows(kind, placed, self.path.resolve().parent, self.builtin)

    def vignettes(self) -> dict[str, object]:
        """The trait's fields that concern vignettes."""
        if "vignettes" not in self.data:
            if lone := next((key for key in OPTIONAL if key.startswith("vignette_") and key in self.data), None):
                raise self.wrong(lone, f"{lone!r} stands without 'vignettes': add the vignettes or remove it")
            return {}
        name = self.string("vignettes")
        placed = json_lines(self.data_file("vignettes", name, ".jsonl"), str(self.path.parent / name))
        if not placed:
            raise self.wrong("vignettes", f"{name} is empty: give at least one vignette")
        chosen = {key: self.foundations(key) for key in ("vignette_up", "vignette_down") if key in self.data}
        if both := set(chosen.get("vignette_up", ())) & set(chosen.get("vignette_down", ())):
            raise self.wrong("vignette_down", f"{min(both)!r} also stands in 'vignette_up': a foundation has one side")
        question = self.string("vignette_agreement") if "vignette_agreement" in self.data else ""
        return {"vignettes": make_vignettes(placed), "vignette_agreement": question, **chosen}

    def foundations(self, key: str) -> tuple[str, ...]:
        return tuple(foundation(name, self.place(key)) for name in self.strings(key))

    def data_file(self, key: str, name: str, suffix: str) -> str:
        folder = self.path.resolve().parent
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            raise self.wrong(key, f"{name!r} lies outside the trait's folder: move it beside {self.path.name}")
        if path.suffix != suffix:
            raise self.wrong(key, f"{key!r} names {name!r}: expected a {suffix} file or an inline list")
        if not path.is_file():
            raise self.wrong(key, f"data file {name!r} was not found in {folder}: add it or correct the name")
        return read_text(path, f"{self.path.parent / name}")


def _line_of(text: str, key: str) -> int | None:
    """Line of a top-level key (or of its first table), counted from 1."""
    pattern = re.compile(rf"\s*(\[\[?\s*)?[\"']?{re.escape(key)}[\"']?\s*(=|\]|\.)")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), None)


def _table_lines(text: str, key: str) -> list[int]:
    """Lines of the `[[key]]` headers."""
    pattern = re.compile(rf"\s*\[\[\s*{re.escape(key)}\s*\]\]")
    return [number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)]
