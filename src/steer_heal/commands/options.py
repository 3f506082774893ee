"""Command-line options from dataclasses: what each is called, takes and defaults to, and one line for every mistake.

Knows nothing of what the options do. tyro turns words into values; everything that a user reads is written here.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import io
import itertools
import re
import textwrap
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from steer_heal.errors import InputError

Parsed = TypeVar("Parsed")
WORDS = {int: "a whole number", float: "a number", str: "a value"}
METAVARS = {int: "N", float: "X", str: "TEXT"}


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: of the field, with underscores. flag: as it is typed, `--n-rounds`, or the bare name in capitals for a
            word without a flag.
        kind: the annotation without tyro's markers. default: MISSING where the user has to give it.
        text: the field's docstring, in one line.
    """

    name: str
    kind: object
    default: object
    text: str
    positional: bool = False

    @property
    def flag(self) -> str:
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """On when it is named; takes no value."""
        return self.kind is bool

    @property
    def takes(self) -> str:
        """What stands behind the flag in a help page: `X`, `a|b|c`, `X X`; empty for a switch."""
        return "" if self.is_switch else _metavar(self.kind)

    @property
    def wanted(self) -> str:
        """What to give, in words: `a number`, `one of a, b, c`."""
        return _wanted(self.kind)


def options_of(kind: type) -> dict[str, Option]:
    """The options of a dataclass by flag; groups, that is fields that are dataclasses themselves, are opened."""
    found: dict[str, Option] = {}
    hints, texts = get_type_hints(kind, include_extras=True), field_texts(kind)
    for one in fields(kind):
        hint, markers = hints[one.name], ()
        if get_origin(hint) is Annotated:
            hint, *markers = get_args(hint)
        if tyro.conf.Suppress in markers:
            continue
        if is_dataclass(hint):
            found |= options_of(hint)
            continue
        default = one.default if one.default_factory is MISSING else one.default_factory()
        option = Option(one.name, hint, default, texts.get(one.name, ""), tyro.conf.Positional in markers)
        found[option.flag] = option
    return found


def field_texts(kind: type) -> dict[str, str]:
    """Docstrings of a dataclass's fields, in one line each, those of its bases included."""
    texts: dict[str, str] = {}
    for base in reversed([one for one in kind.__mro__ if is_dataclass(one)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


def parse(kind: type[Parsed], argv: Sequence[str], prog: str, default: Parsed | None = None) -> Parsed:
    """A `kind` filled from the command line, `default` elsewhere.

    Raises InputError, one line, for an unknown option (with the nearest one), a value that does not fit, a missing or
    superfluous word.
    """
    known = options_of(kind)
    for word in argv:
        if word.startswith("--") and (flag := word.split("=")[0].replace("_", "-")) not in known:
            raise _unknown(flag, known, prog)
    printed = io.StringIO()
    more = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            found, left = tyro.cli(
                kind, args=list(argv), prog=prog, add_help=False, return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff,), **more,
            )  # fmt: skip
    except SystemExit:
        raise _unfit(printed.getvalue(), argv, known, prog) from None
    if left:
        raise _unknown(left[0], known, prog)
    _check_lists(found, argv, known, prog)
    return found


def _check_lists(found: object, argv: Sequence[str], known: Mapping[str, Option], prog: str) -> None:
    """Raises InputError for an option of several values that got none: not typed, or taken as the word before it."""
    required = [option.flag for option in known.values() if option.positional and option.default is MISSING]
    for flag, option in known.items():
        if option.positional or not option.takes.endswith("..."):
            continue
        given = _given(argv, flag)
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
    """The complaint about a value, from the first option that tyro's message names."""
    named = next((flag for flag in re.findall(r"--[a-z][a-z0-9-]*", printed) if flag in known), None)
    if named is None:
        missing = [option.flag for option in known.values() if option.positional and option.default is MISSING]
        needed = [flag for flag, option in known.items() if not option.positional and option.default is MISSING]
        return InputError(f"give {' and '.join([*missing, *needed]) or 'other words'}: see {prog} --help")
    option, given = known[named], _given(argv, named)
    if given is None:
        return InputError(f"{named} is missing: give {option.wanted}, see {prog} --help")
    said = " ".join(given).strip() if given else ""
    said = said or "without a value"
    return InputError(f"{named} {said}: give {option.wanted}{_default_hint(option)}")


def _given(argv: Sequence[str], flag: str) -> list[str] | None:
    """The words that stand behind an option, up to the next one; None where it is not named."""
    plain = [word.split("=")[0].replace("_", "-") if word.startswith("--") else word for word in argv]
    if flag not in plain:
        return None
    at = len(plain) - 1 - plain[::-1].index(flag)
    if "=" in argv[at]:
        return [argv[at].split("=", 1)[1]]
    rest = argv[at + 1 :]
    return list(rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))])


def _default_hint(option: Option) -> str:
    return "" if option.default in (None, MISSING, "") else f" (default {shown(option.default)})"


def shown(value: object) -> str:
    """A default as it would be typed."""
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _metavar(kind: object) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return "|".join(_metavar(one) for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        return f"{_metavar(inner[0])} ..." if Ellipsis in inner else " ".join(map(_metavar, inner))
    return METAVARS.get(kind, "TEXT")


def _wanted(kind: object) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_wanted(one) for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0])
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        one = _wanted(inner[0]).removeprefix("a ")
        return f"one or more {one}s" if Ellipsis in inner else f"{len(inner)} {one}s"
    return WORDS.get(kind, "a value")
