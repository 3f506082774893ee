"""A command line from its words to its exit code; bad input is one line on stderr. For the commands and for scripts.

Knows nothing of what a command does. Exit codes: 0 done, 2 unusable input, 3 stopped by the method, 130 interrupted;
other exceptions stay tracebacks.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from steer_heal.commands.options import asked_for_help, parse, print_help
from steer_heal.errors import InputError, printable
from steer_heal.model.memory import is_short
from steer_heal.processes import says

DONE, BAD_INPUT, STOPPED, INTERRUPTED = 0, 2, 3, 130
EXIT_CODES = "Exit codes: 0 done, 2 unusable input, 3 stopped by the method, 130 interrupted."
REFUSED = ("EACCES", "EPERM", "EROFS", "EIO", "ENOSPC", "EDQUOT", "EFBIG", "EMFILE", "ENFILE", "ENAMETOOLONG", "ELOOP")
"""Errors of files that no program can help, only the user: they are told like bad input."""
PACKAGE = Path(__file__).parents[1]
LEAST_COLUMNS = 20
"""What is printed is at least so wide: tyro's boxes have no end in less."""
Arguments = TypeVar("Arguments")


def guarded(command: Callable[[list[str]], int], argv: Sequence[str], interrupted: str = "nothing was changed") -> int:
    """Run a command; an InputError, a refused file or Ctrl-C is one line and an exit code; `--debug`: the traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if (logging := sys.modules.get("transformers.utils.logging")) is not None:
        logging.disable_progress_bar()  # it was imported before the environment could say so
    os.environ.pop("MPLBACKEND", None)  # pictures go to files; one that is not there would end the run at its report
    if shutil.get_terminal_size().columns < LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(LEAST_COLUMNS)
    debug = "--debug" in argv
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without some character shows its code
    try:
        if not _stands():
            raise InputError("the working directory was deleted: change to one that is there")
        if sys.flags.optimize > 1:
            raise InputError("python -OO takes out the docstrings that the options are told by: start without it")
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore", FutureWarning)  # of libraries among themselves
            return command([word for word in argv if word != "--debug"])
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader, such as `head`, has gone
        return DONE
    except (InputError, OSError) as problem:
        if not (told := _told(problem)):
            raise
        if debug:
            traceback.print_exc()
        _say(problem, told)
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        _say(stop, "interrupted" if hasattr(stop, "__notes__") else f"interrupted; {interrupted}")
        return INTERRUPTED
    except Exception as problem:
        if isinstance(problem, MemoryError | RuntimeError) and is_short(problem):
            told = "memory ran out: use a smaller model, dtype, rank or batch, or free memory"
        elif not (told := _unimportable(problem)):
            raise
        if debug:
            traceback.print_exc()
        _say(problem, told)
        return BAD_INPUT


def run_script(
    kind: type[Arguments],
    work: Callable[[Arguments], int | None],
    argv: Sequence[str] | None = None,
    *,
    about: str,
    name: str,
    interrupted: str = "what is written so far is kept",
) -> int:
    """Fill `kind` from the command line and do the work; returns the exit code, 0 where the work returns none.

    Args:
        about: the script's docstring, printed above the options by `--help`.
        name: of the script. interrupted: what to say on Ctrl-C.
    """
    prog = f"scripts/{name}.py"

    def command(words: list[str]) -> int:
        if asked_for_help(words) is not None:
            print_help(kind, prog, about.strip())
            return DONE
        return work(parse(kind, words, prog)) or DONE

    return guarded(command, sys.argv[1:] if argv is None else argv, interrupted)


def _stands() -> bool:
    """Whether the working directory is there; without one not even a relative path means anything."""
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def _told(problem: InputError | OSError) -> str:
    """What to say of it; empty for an error that is no user's."""
    if isinstance(problem, InputError):
        return str(problem)
    if errno.errorcode.get(problem.errno) not in REFUSED:
        return ""
    return f"{problem.filename or 'a file'} cannot be read or written ({problem.strerror}): see to it and try again"


def _unimportable(problem: Exception) -> str:
    """What to say where the import of a library failed, as it does on an odd environment variable; else empty."""
    frames = traceback.extract_tb(problem.__traceback__)
    own = max((i for i, frame in enumerate(frames) if Path(frame.filename).is_relative_to(PACKAGE)), default=-1)
    importing = [frame.filename for frame in frames[own + 1 :] if frame.name == "<module>"]
    if not importing:
        return ""
    library = next(iter(re.findall(r"site-packages/(\w+)", importing[-1])), "a library")
    why = f"{type(problem).__name__}: {problem}"[:200]
    return f"{library} cannot be imported ({why}): correct the environment variable that it reads, or install it again"


def _say(problem: BaseException, what: str) -> None:
    """One line on stderr: what happened, and what was noted about it on the way, such as how to go on.

    Of the processes of a launcher one says it.
    """
    words = "; ".join([what, *getattr(problem, "__notes__", ())])
    if (who := says(problem)) is not None:
        print(f"steer_heal: {who}{printable(' '.join(words.split()))}", file=sys.stderr)
