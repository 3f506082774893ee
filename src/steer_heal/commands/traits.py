"""`steer-heal traits`: list the built-in traits, show one, check a file.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from steer_heal.errors import InputError, nearest
from steer_heal.trait import Trait, builtin_traits

USAGE = "steer-heal traits [list | show NAME | check FILE]"
PURPOSE = "The built-in traits; one trait's personas, sizes and examples; or what is wrong with, or weak in, a file."
ACTIONS = ("list", "show", "check")
ENOUGH_CONTEXTS = 200
ENOUGH_ITEMS = 40
LENGTHS = 1.5
"""Ratio of the personas' lengths in words from which on they are no longer alike."""
NEGATIONS = frozenset(["not", "no", "never", "don't", "doesn't", "won't", "without", "nor", "cannot", "can't"])


@dataclass(frozen=True)
class Options:
    """What to do with which trait."""

    action: tyro.conf.Positional[str] = "list"
    """list, show or check."""
    name: tyro.conf.Positional[str] = ""
    """Name of a built-in trait, or a TOML file."""


def main(options: Options) -> int:
    """List, show or check."""
    if options.action not in ACTIONS:
        hint = nearest(options.action, ACTIONS)
        raise InputError(f"traits {options.action!r} is unknown{hint}: give list, show NAME or check FILE")
    if options.action != "list" and not options.name:
        raise InputError(f"traits {options.action}: name a built-in trait ({', '.join(builtin_traits())}) or a file")
    if options.action == "list" and options.name:
        raise InputError(f"traits list takes no {options.name!r}: give show {options.name}")
    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    if options.action == "list":
        for name in builtin_traits():
            one = Trait.load(name)
            console.print(f"{name:22}{one.description}", markup=False)
            used = f"; default of {', '.join(one.models)}" if one.models else ""
            console.print(f"{'':22}{len(one.items)} items, {len(one.prompts)} prompts{used}", markup=False)
        console.print("Each also with -reversed. A trait of your own is a TOML file: --trait my_trait.toml")
        return 0
    if options.action == "check" and not Path(options.name).expanduser().is_file():
        raise InputError(f"{options.name}: no such file; check takes the path of a trait's .toml file")
    trait = Trait.load(options.name)
    print_trait(console, trait)
    if options.action == "check":
        found = weaknesses(trait)
        for line in found:
            console.print(f"weak: {line}", markup=False)
        weak = "weakness" if len(found) == 1 else "weaknesses"
        console.print(f"{options.name}: usable, {len(found)} {weak}", markup=False)
    return 0


def print_trait(console: Console, trait: Trait) -> None:
    """Personas, sizes and one example of each list."""
    console.print(f"[bold]{trait.name}[/bold]  {trait.description}")
    for label, text in (("pos", trait.pos), ("neg", trait.neg), ("neutral", trait.neutral or "(none)")):
        console.print(f"  {label:8}{text}", markup=False)
    for name in ("contexts", "prompts", "eval_prompts", "replay_prompts"):
        _print_list(console, name, getattr(trait, name), str)
    for name in ("items", "off_target"):
        _print_list(console, name, getattr(trait, name), lambda i: f"{i.prompt} ({' / '.join(i.choices)})")
    _print_list(console, "anchors", trait.anchors, lambda a: f"{a.prompt} ({a.answer}, {a.check})")
    _print_list(console, "vignettes", trait.vignettes, lambda v: f"{v.text} ({v.foundation})")
    console.print(f"  checker {trait.checker or 'none: free text is judged by its form only'}", markup=False)


def _print_list(console: Console, name: str, rows: Sequence, of_row) -> None:
    console.print(f"  {len(rows):4} {name}" + (f", such as: {of_row(rows[0])[:90]}" if rows else ""), markup=False)


def weaknesses(trait: Trait) -> list[str]:
    """What is allowed but known to weaken a trait, one line each."""
    found = []
    if len(set(trait.contexts)) < ENOUGH_CONTEXTS:
        found.append(
            f"{len(set(trait.contexts))} distinct contexts: a vector from under {ENOUGH_CONTEXTS} diverse ones fits "
            "their format"
        )
    if len(trait.items) < ENOUGH_ITEMS:
        found.append(f"{len(trait.items)} items: intervals of forced choice are wide under about {ENOUGH_ITEMS}")
    pos, neg = trait.pos.split(), trait.neg.split()
    if max(len(pos), len(neg)) > LENGTHS * min(len(pos), len(neg)):
        found.append(f"pos has {len(pos)} words and neg {len(neg)}: the vector will also hold their length")
    for name, words in (("pos", pos), ("neg", neg)):
        if said := sorted(NEGATIONS & {word.casefold().strip(".,;") for word in words}):
            found.append(f"{name} says {said[0]!r}: describe the pole instead of denying the other")
    if not trait.off_target:
        found.append("no off_target items: whether other matters move as well will not be seen")
    if not trait.anchors:
        found.append("no anchors: the gate will not see whether known answers are lost")
    if trait.check is None:
        found.append("no checker: the trait of free text is not measured, only forced choice is")
    return found
