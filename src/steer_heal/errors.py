"""The one exception for bad input: a single line that names the input, what is wrong and what to do.

Knows nothing of models. The command line turns it into exit code 2 without a traceback.
"""

import difflib
from collections.abc import Sequence


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line that says what, why and what to do instead."""


class TooLongError(InputError):
    """A prompt does not fit the model's context."""


class NotWrittenError(InputError):
    """A file cannot be written: the disk is full, the folder read-only. What was committed before is kept."""


def nearest(word: str, known: Sequence[str]) -> str:
    """A "did you mean" for the known word closest to a mistyped one; empty when none is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
