"""The one exception for bad input: a single line that names the input, what is wrong and what to do.

Knows nothing of models. The command line turns it into exit code 2 without a traceback.
"""

import difflib
import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

LONGEST = 800
"""Characters of a message; what it quotes may be longer, and is cut in the middle."""
NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that act on a terminal or split a line or cannot be written at all; line feeds and tabs aside."""


def printable(text: str) -> str:
    """The text with control characters, lone surrogates and changes of direction shown as `\\x1b`, not sent."""
    return NOT_TEXT.sub(lambda found: ascii(found[0])[1:-1], text)


def is_name(text: str) -> bool:
    """Whether a text can stand in one line and one column as it is."""
    return printable(text) == text and not {"\n", "\t"} & {*text}


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line that says what, why and what to do instead."""

    def __init__(self, message: str = ""):
        said = printable(" ".join(message.split()))
        super().__init__(said if len(said) <= LONGEST else f"{said[: LONGEST - 200]} ... {said[-190:]}")


class TooLongError(InputError):
    """A prompt does not fit the model's context."""


class NotWrittenError(InputError):
    """A file cannot be written: the disk is full, the folder read-only. What was committed before is kept."""


@contextmanager
def writing(path: object) -> Iterator[None]:
    """A file that the user named is written; raises NotWrittenError with one line where it cannot be."""
    try:
        yield
    except Exception as problem:
        if not (isinstance(problem, OSError) or type(problem).__name__ == "SafetensorError"):
            raise
        why = getattr(problem, "strerror", None) or problem
        raise NotWrittenError(f"{path} cannot be written ({why}): name a file in a folder that is there") from problem


def nearest(word: str, known: Sequence[str]) -> str:
    """A "did you mean" for the known word closest to a mistyped one; empty when none is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def library(module: str, package: str) -> ModuleType:
    """A module of a package that only some users have. Raises InputError where it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        raise InputError(f"{package} is needed here and cannot be imported ({problem}): pip install {package}") from (
            problem
        )
