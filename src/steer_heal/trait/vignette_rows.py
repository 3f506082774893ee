"""Checks rows of a vignettes file: `id`, `foundation_coarse`, `text`, optional `condition` and `human_<Category>`.

Knows nothing of files and models. Every complaint is one InputError line with the row's place.
"""

from __future__ import annotations

import math

from steer_heal.errors import InputError, nearest
from steer_heal.trait.items import FOUNDATIONS, Vignette

Placed = list[tuple[object, str]]
"""Objects, each with the place it stands at (for complaints)."""

COLUMNS = ("id", "foundation_coarse", "text", "condition")
NEEDED = COLUMNS[:3]
HUMAN = "human_"
ALIASES = {"notwrong": "Social Norms", "norms": "Social Norms"}
"""Other names of a category in published files; blanks, case and punctuation never matter."""
SUM_OF_SHARES = (90.0, 110.0)
"""Percentages are rounded, so their sum need not be 100; fractions of 1 are far from it."""


def make_vignettes(placed: Placed) -> tuple[Vignette, ...]:
    """Vignettes with distinct pairs of id and condition.

    Columns that published files have besides (ratings, finer categories) are passed over, unless they look like a
    misspelt one of the known. Raises InputError.
    """
    made, first = [], {}
    for row, place in placed:
        one = _vignette(row, place)
        if (one.id, one.condition) in first:
            raise InputError(
                f"{place}: id {one.id!r} with condition {one.condition!r} was used before "
                f"({first[one.id, one.condition]}): make them unique"
            )
        first[one.id, one.condition] = place
        made.append(one)
    return tuple(made)


def foundation(name: object, place: str) -> str:
    """One of `FOUNDATIONS` by its name or an alias. Raises InputError for another."""
    known = {_plain(one): one for one in FOUNDATIONS} | ALIASES
    if not isinstance(name, str) or _plain(name) not in known:
        hint = nearest(name, FOUNDATIONS) if isinstance(name, str) else ""
        raise InputError(f"{place}: unknown foundation {name!r}{hint}: give one of {', '.join(FOUNDATIONS)}")
    return known[_plain(name)]


def _vignette(row: object, place: str) -> Vignette:
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object with {', '.join(NEEDED)}, not {type(row).__name__}")
    for key in NEEDED:
        if key not in row:
            near = next((f" (is {other!r} meant as it?)" for other in row if nearest(other, [key])), "")
            raise InputError(f"{place}: {key!r} is missing{near}: add it")
    for key in COLUMNS:
        if key in row and (not isinstance(row[key], str) or not row[key].strip()):
            raise InputError(f"{place}: {key!r} must be a non-empty string, not {row[key]!r}")
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


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())
