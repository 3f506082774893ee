"""Command lines of the documentation, read by the parser of the command they call; cheap ones are run."""

import argparse
import functools
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tyro

from steer_heal.commands import main as commands
from steer_heal.commands import run
from steer_heal.commands.options import options_of, parse
from steer_heal.errors import InputError
from steer_heal.trait import Trait

ROOT = Path(__file__).parents[1]
SMALL = ("pocket", "tiny-random")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


class UnknownCommand(AssertionError):
    """A command line that no parser here reads."""


def command_lines(text):
    """The commands of a block as lists of words: continued lines are joined, comments left out, `&&` split."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word == "&&":
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def check(words):
    """Read one command line as its own parser does. Raises UnknownCommand, InputError or SystemExit."""
    if words[:2] == ["uv", "run"]:
        words = words[2:]
    while words[0] == "--extra":
        assert words[1] in EXTRAS, words[1]
        words = words[2:]
    match words:
        case ["python", "-m", "steer_heal.run", *rest] | ["steer-heal", "run", *rest]:
            check_run(rest)
        case ["torchrun", "--nproc-per-node", n, "-m", "steer_heal.run", *rest] | [
            "accelerate",
            "launch",
            "--num_processes",
            n,
            "-m",
            "steer_heal.run",
            *rest,
        ]:
            assert n.isdigit()
            check_run(rest)
        case ["python", "-m", "steer_heal", *rest] | ["steer-heal", *rest]:
            check_command(rest)
        case ["python", path, *rest] if path.startswith("scripts/"):
            check_script(path, rest)
        case ["python", "-m", module, *rest] if module.startswith("steer_heal.") and all(map(str.isupper, rest)):
            assert importlib.util.find_spec(module), f"there is no module {module}"
        case ["just", *rest]:
            done = subprocess.run([just(), "--dry-run", *rest], cwd=ROOT, capture_output=True, text=True)
            assert not rest or done.returncode == 0, done.stderr
        case ["pytest", *rest]:
            files = [word.partition("::")[0] for word in rest if word.startswith("tests")]
            assert all((ROOT / file).exists() for file in files), files
            assert set(rest) - set(rest[i] for i, w in enumerate(rest) if w.startswith("tests")) <= {
                "-m",
                "slow",
                "-n",
                "0",
            }
        case (
            ["ruff", "check", "."]
            | ["ruff", "format", "."]
            | ["ruff", "format", "--check", "."]
            | ["pip", "install", "uv"]
        ):
            pass
        case ["uv", "build", "--wheel"]:
            pass  # tests/test_wheel.py does it
        case _:
            raise UnknownCommand(shlex.join(words))


def just():
    """The `just` beside this interpreter."""
    return str(Path(sys.executable).with_name("just"))


def check_run(rest):
    """A run's options have values that fit; of an embedded model the plan is made, help is printed."""
    if any(word.startswith("--help") or word == "-h" for word in rest):
        assert run.main(rest) == 0
        return
    command = run.parsed(rest, "steer-heal run")
    config = command.config()
    if config.trait and (ROOT / config.trait).is_file():
        Trait.load(ROOT / config.trait)
    if command.command.resume is None and (config.model_name in SMALL or command.command.preset):
        assert run.main([*rest, *([] if "--dry-run" in rest else ["--dry-run"])]) == 0


def check_command(rest):
    """A sub-command's options; help, version and `traits` are run."""
    known = rest[:1] and rest[0] in commands.COMMANDS
    if not rest or not known or "--help" in rest or rest[0] == "traits":
        files = [word for word in rest[1:] if word.endswith(".toml") and not Path(word).is_file()]
        assert files or commands.main(rest) == 0, shlex.join(rest)
        return
    parse(commands.command_class(rest[0]), rest[1:], f"steer-heal {rest[0]}")


class Parsed(BaseException):
    """Stops a script once its command line is read, with what was read and all options that there are."""

    def __init__(self, found, flags):
        self.found, self.flags = found, frozenset(flags)


READS = re.compile(r"^(import|from) (tyro|argparse|steer_heal\.commands\.script)\b", re.MULTILINE)
"""How a script that reads its command line begins."""


def takes_options(path):
    """Whether a script reads its command line; one that does not would do its work when it is run."""
    return bool(READS.search((ROOT / path).read_text(encoding="utf-8")))


def read_by_script(path, words):
    """What a script reads from its command line; `words` None: only which options it has. The rest of it never runs.

    Raises UnknownCommand for a script without options that is given some.
    """
    if not takes_options(path):
        if words:
            raise UnknownCommand(f"{path} takes no options")
        return Parsed(None, ())
    cli, subcommands = tyro.cli, tyro.extras.subcommand_cli_from_dict
    parse_args = argparse.ArgumentParser.parse_args

    def one(kind, **more):
        raise Parsed(None if words is None else cli(kind, **{**more, "args": words}), options_of(kind))

    def several(kinds, **more):
        found = None if words is None else subcommands(kinds, **{**more, "args": words})
        raise Parsed(found, [flag for kind in kinds.values() for flag in options_of(kind)])

    def plain(parser, args=None, namespace=None):
        raise Parsed(None if words is None else parse_args(parser, words), parser._option_string_actions)

    def house(kind, work, argv=None, *, name, **more):
        patch.setattr(tyro, "cli", cli)
        given = words if argv is None else argv
        raise Parsed(None if words is None else parse(kind, given, f"scripts/{name}.py"), options_of(kind))

    def anew(*words):
        raise UnknownCommand(f"{path} would start itself anew")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "execve", anew)
        patch.setattr(sys, "argv", [path, *(words or ())])
        patch.syspath_prepend(str((ROOT / path).parent))
        for variable, value in re.findall(r'"(\w+_)": "(\d+)"', (ROOT / path).read_text(encoding="utf-8")):
            patch.setenv(variable, value)  # a script that starts itself anew to set them has no need to
        patch.setattr("steer_heal.commands.script.run_script", house)
        patch.setattr(tyro, "cli", one)
        patch.setattr(tyro.extras, "subcommand_cli_from_dict", several)
        patch.setattr(argparse.ArgumentParser, "parse_args", plain)
        try:
            benches = runpy.run_path(str(ROOT / path)).get("BENCHES")
            if benches is not None and not words:  # a word that picks the options comes first
                return Parsed(None, [flag for kind, _ in benches.values() for flag in options_of(kind)])
            runpy.run_path(str(ROOT / path), run_name="__main__")
        except Parsed as stop:
            return stop
    raise UnknownCommand(f"{path} reads no command line")


def check_script(path, rest):
    """A script's own parser takes the words; cases that are options of a run are read too."""
    if not (ROOT / path).is_file():
        raise InputError(f"{path} does not exist")
    found = read_by_script(path, rest).found
    if path == "scripts/carry_over.py":
        from steer_heal.studies.carry_over import parse as parse_case

        for case in found.cases:
            parse_case(case)


@functools.cache
def known_flags():
    """Every option of every command and script, and of the launchers."""
    flags = {"--help", "--version", "--extra", "--nproc-per-node", "--num_processes", *options_of(run.CommandLine)}
    for name in commands.COMMANDS:
        if name != "run":
            flags |= set(options_of(commands.command_class(name)))
    for path in sorted((ROOT / "scripts").glob("*.py")):
        flags |= read_by_script(f"scripts/{path.name}", None).flags
    return flags
