"""`steer-heal traits`: list the built-in traits, show one, check a file.

Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from steer_heal.commands.options import console
from steer_heal.errors import InputError, nearest
from steer_heal.reading import reachable
from steer_heal.trait import Trait, builtin_traits

if TYPE_CHECKING:
    from rich.console import Console

ACTIONS = ("list", "show", "check")
ENOUGH_CONTEXTS = 200
ENOUGH_ITEMS = 40
LENGTHS = 1.5
"""Ratio of the personas' lengths in words from which on they are no longer alike."""
NEGATIONS = frozenset(["not", "no", "never", "don't", "doesn't", "won't", "without", "nor", "cannot", "can't"])


@dataclass(frozen=True)
class Traits:
    """The built-in traits; one trait's personas, sizes and examples; or what is wrong with, or weak in, a file.

    Attributes:
        action: list, show or check.
        name: Name of a built-in trait, or a TOML file.
    """

    action: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="list|show|check")] = "list"
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|FILE")] = ""

    def __call__(self) -> int:
        """List, show or check."""
        action, name, out = self.action, self.name, console(120)
        if action not in ACTIONS:
            hint = nearest(action, ACTIONS)
            raise InputError(f"traits {action!r} is unknown{hint}: give list, show NAME or check FILE")
        if action != "list" and not name:
            raise InputError(f"traits {action}: name a built-in trait ({', '.join(builtin_traits())}) or a file")
        if action == "list" and name:
            raise InputError(f"traits list takes no {name!r}: give show {name}")
        if action == "list":
            print_list(out)
            return 0
        if action == "check" and not reachable(name).exists():
            raise InputError(f"{name}: no such file; check takes the path of a trait's .toml file")
        trait = Trait.load(name)
        print_trait(out, trait)
        if action == "check":
            trait.check_functions()
            found = weaknesses(trait)
            for line in found:
                out.print(f"weak: {line}")
            out.print(f"{name}: usable, {len(found)} {'weakness' if len(found) == 1 else 'weaknesses'}")
        return 0


def print_list(out: Console) -> None:
    """The built-in traits, with their sizes."""
    for name in builtin_traits():
        one = Trait.load(name)
        out.print(f"{name:22}{one.description}")
        used = f"; default of {', '.join(one.models)}" if one.models else ""
        out.print(f"{'':22}{len(one.items)} items, {len(one.prompts)} prompts{used}")
    out.print("Each also with -reversed. A trait of your own is a TOML file: --trait my_trait.toml")


def print_trait(out: Console, trait: Trait) -> None:
    """Personas, sizes and one example of each list."""
    out.print(f"{trait.name}  {trait.description}")
    for label, text in (("pos", trait.pos), ("neg", trait.neg), ("neutral", trait.neutral or "(none)")):
        out.print(f"  {label:8}{text}")
    examples = dict.fromkeys(("contexts", "prompts", "eval_prompts", "replay_prompts"), str)
    examples |= dict.fromkeys(("items", "off_target"), lambda item: f"{item.prompt} ({' / '.join(item.choices)})")
    examples["held_out_choice_templates"] = str
    examples["anchors"] = lambda anchor: f"{anchor.prompt} ({anchor.answer}, {anchor.check})"
    examples["vignettes"] = lambda vignette: f"{vignette.text} ({vignette.foundation})"
    for name, example in examples.items():
        rows = getattr(trait, name)
        out.print(f"  {len(rows):4} {name}" + (f", such as: {example(rows[0])[:90]}" if rows else ""))
    out.print(f"  checker {trait.checker or 'none: free text is judged by its form only'}")


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
