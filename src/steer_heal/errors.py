"""The one exception for bad input: a single line that names the input, what is wrong and what to do.

Knows nothing of models. The command line turns it into exit code 2 without a traceback.
"""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line that says what, why and what to do instead."""


class TooLongError(InputError):
    """A prompt does not fit the model's context."""


class NotWrittenError(InputError):
    """A file cannot be written: the disk is full, the folder read-only. What was committed before is kept."""
