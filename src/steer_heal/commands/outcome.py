"""How a command ends: its exit code, and one line on stderr for input that cannot be used.

Exit codes: 0 done, 2 unusable input, 3 stopped by the method, 130 interrupted. Other exceptions stay tracebacks.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from steer_heal.errors import InputError

DONE, BAD_INPUT, STOPPED, INTERRUPTED = 0, 2, 3, 130


def guarded(command: Callable[[list[str]], int], argv: Sequence[str], interrupted: str = "nothing was changed") -> int:
    """Run a command and turn an InputError or Ctrl-C into one line and an exit code; `--debug` adds the traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if (logging := sys.modules.get("transformers.utils.logging")) is not None:
        logging.disable_progress_bar()  # it was imported before the environment could say so
    debug = "--debug" in argv
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore", FutureWarning)  # of libraries among themselves
            return command([word for word in argv if word != "--debug"])
    except InputError as problem:
        if debug:
            traceback.print_exc()
        _say(problem, str(problem))
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        _say(stop, "interrupted" if hasattr(stop, "__notes__") else f"interrupted; {interrupted}")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader, such as `head`, has gone
        return DONE


def _say(problem: BaseException, what: str) -> None:
    """One line on stderr: what happened, and what was noted about it on the way, such as how to go on."""
    words = "; ".join([what, *getattr(problem, "__notes__", ())])
    print(f"steer_heal: {' '.join(words.split())}", file=sys.stderr)
