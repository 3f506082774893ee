"""The small template language of the corpus: `[a|b]` picks an alternative, `{slot}` is filled, tables come from TOML.

Knows nothing of what the sentences mean.
"""

import random
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

_INNERMOST = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


@cache
def table(name: str) -> dict[str, Any]:
    """One data table of the corpus, e.g. `table("entities")`."""
    return tomllib.loads((DATA / f"{name}.toml").read_text(encoding="utf-8"))


def expand(template: str, rng: random.Random) -> str:
    """Pick one alternative of every `[a|b|...]`, innermost first; slots stay."""
    while match := _INNERMOST.search(template):
        template = template[: match.start()] + rng.choice(match[1].split("|")) + template[match.end() :]
    return template


def realise(template: str, slots: Mapping[str, str], rng: random.Random) -> str:
    """Expand alternatives, then fill every slot; a missing slot is a KeyError."""
    return _SLOT.sub(lambda match: slots[match[1]], expand(template, rng))


def variants(template: str) -> list[str]:
    """All different expansions of a template, in a fixed order."""
    match = _INNERMOST.search(template)
    if match is None:
        return [template]
    heads = (template[: match.start()] + choice + template[match.end() :] for choice in match[1].split("|"))
    return list(dict.fromkeys(full for head in heads for full in variants(head)))
