"""Hand-written pieces of text by family, and the sentences and words that they are made of.

Knows nothing of labels.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PER_FAMILY = 52
"""Texts of a family."""
PROSE = ("narrative", "expository", "advice", "letters", "technical")


@dataclass(frozen=True)
class Pieces:
    """A folder with one text file per family, its pieces separated by lines "%%", and word lists in tables.toml."""

    folder: Path

    def of(self, family: str) -> list[str]:
        """The hand-written pieces of a family."""
        text = (self.folder / f"{family}.txt").read_text(encoding="utf-8")
        return [piece.strip() for piece in text.split("\n%%\n")]

    @cached_property
    def tables(self) -> dict:
        """Word lists, frames, and every broken text that was quoted where it was found."""
        return tomllib.loads((self.folder / "tables.toml").read_text(encoding="utf-8"))

    @cached_property
    def held_out(self) -> frozenset[str]:
        """Families that nobody looked at while the limits of the model-free gates were chosen."""
        return frozenset(self.tables["held_out"].split())

    @cached_property
    def prose(self) -> list[str]:
        """The pieces of all families of prose."""
        return [piece for family in PROSE for piece in self.of(family)]

    @cached_property
    def sentences(self) -> list[str]:
        """Their sentences of more than five words."""
        found = [s.replace("\n", " ") for p in self.prose for s in re.split(r"(?<=[.!?])\s+", p)]
        return [s for s in found if len(s.split()) > 5]

    @cached_property
    def content(self) -> list[str]:
        """Their words of four letters and more."""
        return sorted({w for s in self.sentences for w in re.findall(r"[a-z]{4,}", s)})

    @cached_property
    def function(self) -> list[str]:
        """Function words."""
        return self.tables["function"].split()

    def start(self, rng: random.Random, low: int, high: int) -> str:
        """The first `low` to `high` words of good prose."""
        words = " ".join(rng.sample(self.sentences, 30)).split()
        return " ".join(words[: rng.randint(low, high)])


def filled(first: list[str], make: Callable[[], str]) -> list[str]:
    """A family: the texts there are, and made ones up to `PER_FAMILY`."""
    return first + [make() for _ in range(PER_FAMILY - len(first))]
