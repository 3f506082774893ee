"""Arguments against their annotations: what may be given stands once, beside the field, for Python and command line.

Knows nothing of what they mean. Annotations of other types than numbers, texts, switches, choices and lists of them are
passed over.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from steer_heal.errors import InputError

LARGEST = 3e38
"""What float32 holds; a larger number overflows wherever it is used."""
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}
FITS: dict[object, Callable[[object], bool]] = {
    int: lambda value: isinstance(value, Integral) and not isinstance(value, bool) and -(2**63) <= value < 2**63,
    float: lambda value: isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= LARGEST,
    str: lambda value: isinstance(value, str) and not HALF.search(value),
    bool: lambda value: isinstance(value, bool),
    type(None): lambda value: value is None,
}
HALF = re.compile("[\ud800-\udfff]")
"""Halves of characters, which no file and no tokenizer takes."""
Function = TypeVar("Function", bound=Callable)


LEAST_SCALE, MOST_SCALE = -1.0, 1.5
"""Bounds of c, the factor on what was trained. Nothing says that a student is sound outside them."""


def checked_scale(c: float) -> float:
    """c itself. Raises InputError outside its bounds."""
    if not LEAST_SCALE <= c <= MOST_SCALE:
        raise InputError(
            f"c {c:g}: give a number from {LEAST_SCALE:g} to {MOST_SCALE:g}; 1 is as trained, 0 the base, -1 reversed"
        )
    return c


def check_fields(given: object, but: Sequence[str] = ()) -> None:
    """Raises InputError for the first field of a dataclass whose value is none of its annotation; a default is one."""
    hints = _hints_of(type(given))
    for one in fields(given):
        value = getattr(given, one.name)
        if one.name not in but and not (one.default is not MISSING and value is one.default):
            check_value(one.name, value, hints[one.name])


def checked(function: Function) -> Function:
    """The function, which first looks at its arguments: InputError for one that is none of its annotation."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def looked_at(*args, **options):
        for name, value in signature.bind(*args, **options).arguments.items():
            if value is not signature.parameters[name].default:
                check_value(name, value, _hint(function, signature.parameters[name].annotation))
        return function(*args, **options)

    return looked_at


def check_value(name: str, value: object, hint: object) -> None:
    """Raises InputError for a value that is none of an annotation."""
    if not fits(value, hint):
        raise InputError(f"{name} {shortened(value)}: give {wanted(hint)}")


def shortened(value: object) -> str:
    """A value as Python shows it, cut at 80 characters; a number of thousands of digits by how many it has."""
    try:
        shown = repr(value)
    except ValueError:  # Python shows no such number
        shown = f"a {type(value).__name__} of thousands of digits"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def fits(value: object, hint: object) -> bool:
    """Whether a value is one of an annotation; true for annotations that are not known here."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        return fits(value, inner[0])
    if kind in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if kind is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if kind is tuple and inner:
        if not isinstance(value, (tuple, list)):
            return False
        if Ellipsis in inner:
            return all(fits(one, inner[0]) for one in value)
        return len(value) == len(inner) and all(map(fits, value, inner))
    if kind is Sequence and inner:
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            return False
        if is_dataclass(inner[0]):
            return all(isinstance(one, inner[0]) for one in value)
        return inner[0] not in FITS or all(fits(one, inner[0]) for one in value)
    return FITS[kind](value) if kind in FITS else True


def wanted(hint: object) -> str:
    """What to give, in words: `a number`, `one of a, b, c`."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        return wanted(inner[0])
    if kind in (Union, types.UnionType):
        return " or ".join(wanted(one) for one in inner if one is not type(None))
    if kind is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if kind in (tuple, Sequence) and inner:
        one = wanted(inner[0]).removeprefix("a ")
        several = "one or more" if kind is tuple else "a list of"
        return f"{several} {one}s" if Ellipsis in inner or kind is Sequence else f"{len(inner)} {one}s"
    return WORDS.get(kind, "a value")


@functools.cache
def _hints_of(kind: type) -> Mapping[str, object]:
    return get_type_hints(kind)


@functools.cache
def _hint(function: Callable, annotation: object) -> object:
    """An annotation of a function; one that only a type checker can resolve is any."""
    try:
        return eval(annotation, inspect.unwrap(function).__globals__) if isinstance(annotation, str) else annotation
    except NameError:
        return Any
