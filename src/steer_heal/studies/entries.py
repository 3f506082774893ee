"""Entries of a command line that hold options of their own: `kl_rev,lam=0.3`, `pocket,trait=pocket-warmth,lr=2e-3`.

Knows nothing of what the options do.
"""

from __future__ import annotations

from collections.abc import Collection

from steer_heal.errors import InputError


def read_entry(entry: str, known: Collection[str], what: str, whose: str) -> tuple[str, dict[str, str]]:
    """What stands before the first comma, and the options behind it as they were typed.

    Args:
        known: names that an option may have. what, whose: how a complaint calls the entry and its options.

    Raises InputError for anything but option=value of a known name.
    """
    head, *options = entry.split(",")
    found = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in known or not value:
            raise InputError(f"{what} {entry!r}: {option!r} is no option=value of {whose}")
        found[name] = value
    return head, found


def number_or_text(text: str) -> int | float | str:
    """The value that was typed: a whole number, a number, or a text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
