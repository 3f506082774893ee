"""What a study leaves and says: rows of figures, grouped, as Markdown and as CSV, its page, and how long it has taken.

Knows nothing of what the figures mean. A row is a dict; its keys are the columns.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from steer_heal.report import markdown_table

Thing, Key = TypeVar("Thing"), TypeVar("Key", bound=Hashable)


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table; all rows have the columns of the first. Of no rows it says so."""
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows]) if rows else "(no rows)"


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """A CSV file, unrounded, with the columns of the first row; what another row lacks, and None, is left empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, rows[0] if rows else ())
        out.writeheader()
        out.writerows(rows)


def write_page(path: Path, *parts: str) -> str:
    """Write the parts of a page into its folder, a blank line between them; returns the text."""
    text = "\n\n".join(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")
    return text


def grouped(things: Iterable[Thing], key: Callable[[Thing], Key]) -> dict[Key, list[Thing]]:
    """Things by key, both in the order of first appearance."""
    out: dict[Key, list[Thing]] = {}
    for thing in things:
        out.setdefault(key(thing), []).append(thing)
    return out


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)


class Stopwatch:
    """The seconds since it was made, as text."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def __str__(self) -> str:
        return f"{time.perf_counter() - self.began:.0f} s"
