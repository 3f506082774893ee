"""Arguments against their annotations: what may be given stands once, beside the field, for Python and command line.

Knows nothing of what they mean. Annotations that are looked at: numbers, texts, switches, choices, paths, functions,
classes and protocols, and lists and mappings of them; others are passed over.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from numbers import Integral, Number, Real
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from steer_heal.errors import InputError

LARGEST = 3e38
"""What float32 holds; a larger number overflows wherever it is used."""
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}
WORDS |= {Path: "a path", Callable: "a function"}
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
ELSEWHERE = "what takes it looks at it"
"""In an `Annotated`: nothing is asked of the value here."""

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
    """Raises InputError for the first field of a dataclass whose value is none of its annotation; a default is one.

    A number of numpy, a path, and a list for a tuple become what JSON gives back: records compare and hash by it.
    """
    hints = _hints_of(type(given))
    for one in fields(given):
        value = getattr(given, one.name)
        value = str(value) if isinstance(value, PurePath) else value
        if one.name not in but and not (one.default is not MISSING and value is one.default):
            check_value(one.name, value, hints[one.name])
            object.__setattr__(given, one.name, _plain(value))


def checked(function: Function) -> Function:
    """The function, which first looks at its arguments: InputError for one that is none of its annotation.

    A number of numpy becomes Python's: what is drawn, saved and compared by it takes no other.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def looked_at(*args, **options):
        given = signature.bind(*args, **options)
        for name, value in given.arguments.items():
            parameter = signature.parameters[name]
            for one in value if parameter.kind is parameter.VAR_POSITIONAL else [value]:
                if one is not parameter.default:
                    check_value(name, one, _hint(function, parameter.annotation))
            if isinstance(value, Number):
                given.arguments[name] = _plain(value)
        return function(*given.args, **given.kwargs)

    return looked_at


def check_value(name: str, value: object, hint: object) -> None:
    """Raises InputError for a value that is none of an annotation."""
    if not fits(value, hint):
        raise InputError(f"{name} {shortened(value)}: give {wanted(hint)}{_besides(value)}")


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
        return ELSEWHERE in inner or fits(value, inner[0])
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
        return isinstance(value, Sequence) and fits(value, Iterable[inner])
    if kind is Iterable and inner:  # an iterator cannot be looked at without being used up
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            return False
        return not isinstance(value, Sequence) or all(fits(one, inner[0]) for one in value)
    if kind is Mapping and inner:
        return isinstance(value, Mapping) and all(fits(one, inner[1]) for one in value.values())
    if kind is Path:
        return isinstance(value, (str, os.PathLike))
    if kind is Callable:
        return callable(value)
    if (array := getattr(kind, "array_type", None)) is not None:  # of jaxtyping; shapes are left to what takes it
        return isinstance(value, array)
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in vars(kind) if not name.startswith("_"))
    if isinstance(kind, type) and kind not in FITS and kind.__module__.startswith("steer_heal."):
        return isinstance(value, kind)
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
    if kind in (tuple, Sequence, Iterable) and inner:
        one = wanted(inner[0]).removeprefix("a ")
        several = "one or more" if kind is tuple else "a list of"
        several = several if Ellipsis in inner or kind in (Sequence, Iterable) else str(len(inner))
        return f"{several} {one} each" if one[0].isdigit() else f"{several} {one}s"
    if kind is Mapping and inner:
        return f"a mapping of names to {wanted(inner[1])}"
    if hasattr(kind, "array_type"):
        return f"a {kind.array_type.__name__.lower()}"
    known = isinstance(kind, type) and kind.__module__.startswith("steer_heal.")
    return WORDS.get(kind) or (f"steer_heal's {kind.__name__}" if known else "a value")


def _besides(value: object) -> str:
    """What else is asked of a number or a text that is one, but not any is good."""
    if isinstance(value, (tuple, list)):
        return next((more for one in value if (more := _besides(one))), "")
    if isinstance(value, str):
        return " without halves of characters" if HALF.search(value) else ""
    if not isinstance(value, Real) or isinstance(value, bool):
        return ""
    if isinstance(value, Integral):
        return "" if FITS[int](value) else " of at most 63 bits"
    return "" if FITS[float](value) else f" that is finite and at most {LARGEST:g} in size"


def _plain(value: object) -> object:
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


@functools.cache
def _hints_of(kind: type) -> Mapping[str, object]:
    return get_type_hints(kind)


@functools.cache
def _hint(function: Callable, annotation: object) -> object:
    """An annotation of a function; one that only a type checker can resolve is any."""
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return eval(annotation, inspect.unwrap(function).__globals__) if isinstance(annotation, str) else annotation
    except NameError:
        return Any
