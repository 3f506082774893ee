"""Command lines from dataclasses: words to values, help pages, and one line with the nearest option for every mistake.

Knows nothing of what the options do. tyro reads the words and prints the pages; the complaints are written here.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import itertools
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args, get_origin, get_type_hints

import tyro

from steer_heal.arguments import wanted
from steer_heal.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

Parsed = TypeVar("Parsed")
CONFIG = (tyro.conf.FlagCreatePairsOff,)
"""A switch has no --no- twin."""


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: of the field, with underscores.
        kind: the annotation without tyro's markers.
        default: MISSING where the user has to give it.
        positional: a word without a flag.
    """

    name: str
    kind: object
    default: object
    positional: bool = False

    @property
    def flag(self) -> str:
        """As it is typed, `--n-rounds`; a word without a flag by its name in capitals."""
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")

    @property
    def wanted(self) -> str:
        """What to give, in words: `a number`, `one of a, b, c`."""
        return wanted(self.kind)

    @property
    def is_list(self) -> bool:
        """Takes any number of values."""
        kinds = (self.kind, *get_args(self.kind))
        return any(get_origin(kind) is tuple and Ellipsis in get_args(kind) for kind in kinds)


def options_of(kind: type) -> dict[str, Option]:
    """The options of a dataclass by flag; groups, that is fields that are dataclasses themselves, are opened."""
    found: dict[str, Option] = {}
    hints = get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        hint, markers = hints[one.name], ()
        if get_origin(hint) is Annotated:
            hint, *markers = get_args(hint)
        if is_dataclass(hint):
            found |= options_of(hint)
        elif tyro.conf.Suppress not in markers:
            default = one.default if one.default_factory is MISSING else one.default_factory()
            option = Option(one.name, hint, default, tyro.conf.Positional in markers)
            found[option.flag] = option
    return found


def asked_for_help(argv: Sequence[str]) -> str | None:
    """The topic of a call for help: "" for the main page, None where nobody asked."""
    for i, word in enumerate(argv):
        if word in ("-h", "--help"):
            follows = argv[i + 1] if i + 1 < len(argv) else ""
            return "" if follows.startswith("-") else follows
        if word.startswith(("--help-", "--help=")):
            return word[len("--help-") :]
    return None


def filled(text: str, indent: str = "") -> str:
    """A paragraph as wide as the page."""
    width = min(shutil.get_terminal_size().columns, 110)
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def print_help(kind: type, prog: str, about: str | None = None) -> None:
    """Print what a command is for, by default its docstring; and every option with meaning and default, in groups."""
    paragraphs = inspect.cleandoc(kind.__doc__).split("\n\n")
    told = itertools.takewhile(lambda one: not one.startswith("Attributes:"), paragraphs)
    print(about or "\n\n".join(filled(" ".join(one.split())) for one in told), end="\n\n")
    with contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], prog=prog, description="", config=CONFIG)


def console(width: int) -> Console:
    """Where a command prints; `width` columns where there is no terminal."""
    from steer_heal.terminal import Terminal  # a mistyped name is answered without it

    return Terminal(width)


def parse(kind: type[Parsed], argv: Sequence[str], prog: str) -> Parsed:
    """A `kind` filled from the command line.

    Raises InputError, one line, for an unknown option (with the nearest one), a value that does not fit, a missing or
    superfluous word.
    """
    known = options_of(kind)
    for word in argv:
        if word.startswith("--") and _flag(word) not in known:
            raise _unknown(_flag(word), known, prog)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            found, left = tyro.cli(
                kind, args=list(argv), prog=prog, add_help=False, return_unknown_args=True, config=CONFIG
            )
    except SystemExit:
        raise _unfit(printed.getvalue(), argv, known, prog) from None
    if left:
        raise _unknown(left[0], known, prog)
    _check_lists(found, argv, known, prog)
    return found


def typed(argv: Sequence[str], flag: str) -> list[str] | None:
    """The words that stand behind an option, up to the next one; None where it is not named. The last one counts."""
    places = [i for i, word in enumerate(argv) if word.startswith("--") and _flag(word) == flag]
    if not places:
        return None
    word, rest = argv[places[-1]], argv[places[-1] + 1 :]
    if "=" in word:
        return [word.split("=", 1)[1]]
    return list(rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))])


def shown(value: object) -> str:
    """A value as it would be typed."""
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _flag(word: str) -> str:
    return word.split("=")[0].replace("_", "-")


def _check_lists(found: object, argv: Sequence[str], known: Mapping[str, Option], prog: str) -> None:
    """Raises InputError for an option of several values that got none: not typed, or taken as the word before it."""
    required = [option.flag for option in known.values() if option.positional and option.default is MISSING]
    for flag, option in known.items():
        if option.positional or not option.is_list:
            continue
        given = typed(argv, flag)
        if given == []:
            raise InputError(f"{flag} without a value: give {option.wanted}, see {prog} --help")
        if given and required and not getattr(found, option.name):
            raise InputError(f"give {' and '.join(required)} before {flag}: see {prog} --help")


def _unknown(word: str, known: Mapping[str, Option], prog: str) -> InputError:
    """The complaint about an option that does not exist, or a word that belongs to none."""
    if not word.startswith("-"):
        return InputError(f"unexpected word {word!r}: options start with --, see {prog} --help")
    flags = [flag for flag, option in known.items() if not option.positional]
    close = difflib.get_close_matches(word, flags, n=1, cutoff=0.5) if word.startswith("--") else ()
    hint = f"did you mean {close[0]}? See" if close else "see"
    return InputError(f"unknown option {word}: {hint} {prog} --help")


def _unfit(printed: str, argv: Sequence[str], known: Mapping[str, Option], prog: str) -> InputError:
    """The complaint about a value, from the first option that tyro's box of lines names."""
    named = next((flag for flag in re.findall(r"--[a-z][a-z0-9-]*", printed) if flag in known), None)
    if named is None:
        missing = [flag for flag, option in known.items() if option.default is MISSING]
        missing.sort(key=lambda flag: not known[flag].positional)
        return InputError(f"give {' and '.join(missing) or 'other words'}: see {prog} --help")
    option, given = known[named], typed(argv, named)
    if given is None:
        return InputError(f"{named} is missing: give {option.wanted}, see {prog} --help")
    said = " ".join(given).strip() or "without a value"
    default = "" if option.default in (None, MISSING, "") else f" (default {shown(option.default)})"
    return InputError(f"{named} {said}: give {option.wanted}{default}")
