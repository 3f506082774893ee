"""Help pages that fit a screen: the main options of a command, then one page per topic.

Knows nothing of what the options do; every line comes from the dataclasses and their docstrings.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING

from steer_heal.commands.options import Option, options_of, shown
from steer_heal.config import FOLLOWS_MODEL
from steer_heal.errors import InputError, nearest

INDENT = 24
WIDEST = 110
"""Columns of a page at most, however wide the terminal is."""
EXIT_CODES = "Exit codes: 0 done, 2 unusable input, 3 stopped by the method, 130 interrupted."
FLAGS = ("-h", "--help")


def asked_for_help(argv: Sequence[str]) -> str | None:
    """The topic of a call for help: "" for the main page, None where nobody asked."""
    for i, word in enumerate(argv):
        if word in FLAGS:
            follows = argv[i + 1] if i + 1 < len(argv) else ""
            return "" if follows.startswith("-") else follows
        if word.startswith(("--help-", "--help=")):
            return word[len("--help-") :]
    return None


def columns() -> int:
    """Columns of a page."""
    return min(shutil.get_terminal_size().columns, WIDEST)


def filled(text: str, indent: str = "") -> str:
    """A paragraph as wide as the page."""
    return textwrap.fill(text, columns(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def option_lines(options: Iterable[Option], width: int | None = None) -> str:
    """One option per paragraph: flag and value at the left, meaning and default at the right."""
    width = min(width or columns(), WIDEST)
    lines = []
    for option in options:
        left = f"  {option.flag} {option.takes}".rstrip() if not option.positional else f"  {option.flag}"
        text = option.text.replace(" Follows the model.", "")  # the default says it
        body = textwrap.wrap(f"{text}{_default(option)}", width - INDENT, break_on_hyphens=False) or [""]
        if len(left) >= INDENT - 1:
            lines.append(left)
        else:
            body[0] = f"{left:<{INDENT}}{body[0]}"
            lines.append(body.pop(0))
        lines += [" " * INDENT + line for line in body]
    return "\n".join(lines)


def command_page(usage: str, purpose: str, kind: type, more: str = "") -> str:
    """The help of a small command: usage, purpose, all options."""
    parts = [f"usage: {usage}", filled(purpose), option_lines(options_of(kind).values()), more.strip("\n")]
    return "\n\n".join(part for part in parts if part)


def topic_page(topic: str, topics: Mapping[str, tuple[str, tuple[str, ...]]], kind: type, prog: str) -> str:
    """The options of one topic, or of all of them. Raises InputError for an unknown one."""
    if topic != "all" and topic not in topics:
        known = (*topics, "presets", "all")
        raise InputError(f"no help on {topic!r}{nearest(topic, known)}: give one of {', '.join(known)}")
    options = {option.name: option for option in options_of(kind).values()}
    pages = []
    for name, (title, names) in topics.items():
        if topic in (name, "all"):
            pages.append(filled(f"{name}: {title}") + "\n\n" + option_lines(options[one] for one in names))
    return "\n\n".join([f"usage: {prog} [options]", *pages])


def _default(option: Option) -> str:
    """The default in brackets; where it follows the model, what it is for each."""
    follows = {model: shown(found[option.name]) for model, found in FOLLOWS_MODEL.items() if option.name in found}
    if option.default is None and follows:
        if len(follows) == len(FOLLOWS_MODEL) and len(set(follows.values())) == 1:
            return f" [{next(iter(follows.values()))}]"
        if len(follows) < len(FOLLOWS_MODEL):
            follows["others"] = "as the model's own"  # sampling
        return f" [{'; '.join(f'{model} {value}' for model, value in follows.items())}]"
    if option.is_switch or option.default in (None, MISSING, "", ()):
        return ""
    return f" [{shown(option.default)}]"
