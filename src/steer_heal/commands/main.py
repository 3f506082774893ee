"""The command `steer-heal` (also `python -m steer_heal`): picks the sub-command.

Knows nothing of what they do.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from steer_heal.commands.folders import check_export, check_folder, check_run_or_model
from steer_heal.commands.options import asked_for_help, filled, parse, print_help
from steer_heal.commands.script import EXIT_CODES, guarded
from steer_heal.errors import InputError, nearest

COMMANDS = {
    "run": "grow a trait over rounds: the whole job",
    "report": "write a run's pages again",
    "compare": "several runs side by side",
    "export": "a run's student as a PEFT adapter or a merged model, with its card",
    "push": "an exported folder onto the Hugging Face hub",
    "chat": "base, steered and healed side by side on one prompt",
    "doctor": "check this machine and the method's foundations on it",
    "traits": "list and show traits, check a trait file",
}
NAMED_FIRST = {
    "report": check_folder,
    "compare": check_folder,
    "export": check_folder,
    "push": check_export,
    "chat": check_run_or_model,
}
"""What the first word is. A mistyped one is answered before the words are parsed, which alone takes a third of a
second."""
FILES = {"report": "finished", "compare": "finished", "export": "exports.export", "push": "exports.push"}
"""Where a command's class stands, if not in a file of its own name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--debug"]:  # before the command it means the same as behind it
        words = [*words[1:], "--debug"] if words[1:] else []
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"steer-heal {version('steer-heal')}")
        return 0
    if words[0] == "run":
        return guarded(_run, words[1:], "complete rounds are in the run folder")
    return guarded(_command, words)


def overview() -> str:
    """The commands."""
    lines = "\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items())
    what_for = filled("Grow a trait in a language model by steering, and give the text its coherence back.")
    more = filled(f"`steer-heal COMMAND --help` shows a command's options. {EXIT_CODES} --debug: an error's traceback.")
    return f"usage: steer-heal COMMAND ...\n\n{what_for}\n\n{lines}\n\n{more}"


def command_class(name: str) -> type:
    """The options of a command, as a dataclass whose call does the work and returns the exit code; not of `run`."""
    module = importlib.import_module(f"steer_heal.commands.{FILES.get(name, name)}")
    return getattr(module, name.capitalize())


def _run(words: list[str]) -> int:
    from steer_heal.commands import run  # inside the guard: the import takes a while, and may fail

    return run.command(words, "steer-heal run")


def _command(words: list[str]) -> int:
    name, *rest = words
    if name.startswith("-"):
        raise InputError(f"unknown option {name}: a command comes first, see steer-heal --help")
    if name not in COMMANDS:
        known = tuple(COMMANDS)
        raise InputError(f"unknown command {name!r}{nearest(name, known)}: give one of {', '.join(known)}")
    kind, prog = command_class(name), f"steer-heal {name}"
    if asked_for_help(rest) is not None:
        print_help(kind, prog)
        return 0
    if name in NAMED_FIRST and rest and not rest[0].startswith("-"):
        NAMED_FIRST[name](rest[0])
    return parse(kind, rest, prog)()


if __name__ == "__main__":
    sys.exit(main())
