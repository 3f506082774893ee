"""The command line of a script: help, mistakes in one line with the nearest valid option, and exit codes as everywhere.

Knows nothing of what a script does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from steer_heal.commands.help import asked_for_help, option_lines
from steer_heal.commands.options import options_of, parse
from steer_heal.commands.outcome import DONE, guarded

Arguments = TypeVar("Arguments")


def run_script(
    kind: type[Arguments], work: Callable[[Arguments], int | None], argv: Sequence[str] | None, about: str, name: str,
    interrupted: str = "what is written so far is kept",
) -> int:  # fmt: skip
    """Fill `kind` from the command line and do the work; returns the exit code, 0 where the work returns none.

    Args:
        about: the script's docstring, printed above the options by `--help`.
        name: of the script. interrupted: what to say on Ctrl-C.
    """

    def command(words: list[str]) -> int:
        if asked_for_help(words) is not None:
            print(f"{about.strip()}\n\nOptions:\n{option_lines(options_of(kind).values())}")
            return DONE
        return work(parse(kind, words, f"scripts/{name}.py")) or DONE

    return guarded(command, sys.argv[1:] if argv is None else argv, interrupted)
