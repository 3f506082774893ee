"""The command line: `python -m steer_heal.run --reg kl_rev`. Parses, calls the loop, gives an exit code.

Knows nothing of the method. Exit codes: 0 done, 2 unusable input, 3 stopped by the method, 130 interrupted.
`--resume FOLDER` goes on with a run that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import tyro

from steer_heal.commands.help import asked_for_help
from steer_heal.commands.options import parse
from steer_heal.commands.outcome import DONE, STOPPED, guarded
from steer_heal.commands.presets import PRESETS, with_preset
from steer_heal.commands.run_help import page, preset_page, topics
from steer_heal.config import (
    EvaluationOptions,
    GateOptions,
    HealOptions,
    LoopOptions,
    ModelOptions,
    RunConfig,
    SteeringOptions,
    WalkOptions,
)
from steer_heal.errors import InputError

if TYPE_CHECKING:
    from steer_heal.ledger import Ledger

STOPPED_BY_METHOD = ("starved", "diverged", "collapsed", "reverted")


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """What the command itself does."""

    preset: str | None = None
    """Settings for a published model: gemma-3-4b, qwen3-0.6b or llama-3.1-8b; other options beat it."""
    dry_run: bool = False
    """Print the resolved options, the number of generations, an estimate of time and memory; run nothing."""
    verbose: bool = False
    """Also print every batch with its plan and tokens/s, every step of a heal, and the texts at the filter's limits."""
    debug: bool = False
    """Print the traceback of an error about the input."""


@dataclass(frozen=True)
class CommandLine:
    """Grow a steering-vector trait over rounds while the text stays coherent."""

    command: tyro.conf.OmitArgPrefixes[CommandOptions] = field(default_factory=CommandOptions)
    loop: tyro.conf.OmitArgPrefixes[LoopOptions] = field(default_factory=LoopOptions)
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    steering: tyro.conf.OmitArgPrefixes[SteeringOptions] = field(default_factory=SteeringOptions)
    walk: tyro.conf.OmitArgPrefixes[WalkOptions] = field(default_factory=WalkOptions)
    heal: tyro.conf.OmitArgPrefixes[HealOptions] = field(default_factory=HealOptions)
    evaluation: tyro.conf.OmitArgPrefixes[EvaluationOptions] = field(default_factory=EvaluationOptions)
    gate: tyro.conf.OmitArgPrefixes[GateOptions] = field(default_factory=GateOptions)
    resume: str | None = None
    """Go on with a stopped run: its folder, or auto for the newest one under --out. Same options, same bits."""

    def options(self) -> dict[str, object]:
        """All groups side by side."""
        flat: dict[str, object] = {}
        for group in (self.heal, self.loop, self.model, self.steering, self.walk, self.evaluation, self.gate):
            flat |= {f.name: getattr(group, f.name) for f in fields(group)}
        return flat

    def config(self) -> RunConfig:
        """All groups as one flat configuration."""
        return RunConfig(**self.options())


def main(argv: Sequence[str] | None = None, prog: str = "python -m steer_heal.run") -> int:
    """Run the job; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda rest: _run(rest, prog), words, "complete rounds are in the run folder")


def parsed(argv: Sequence[str], prog: str) -> CommandLine:
    """The command line, over the values of its preset. Raises InputError."""
    command = parse(CommandLine, argv, prog)
    if command.command.preset is None:
        return command
    return parse(CommandLine, argv, prog, default=with_preset(CommandLine(), command.command.preset))


def _run(argv: list[str], prog: str) -> int:
    topic = asked_for_help(argv)
    if topic is not None:
        print(preset_page() if topic == "presets" else page(topic, CommandLine, prog))
        return DONE
    command = parsed(argv, prog)
    given = {**command.options(), "resume": command.resume, "preset": command.command.preset}
    if empty := next((name for name, value in given.items() if value == ""), None):
        raise InputError(f"--{empty.replace('_', '-')} is empty: give a value, or leave it out")
    if command.command.verbose and command.loop.quiet:
        raise InputError("--quiet and --verbose exclude each other: leave one of them out")
    config = None if command.resume else command.config()
    if command.command.dry_run and config is None:
        raise InputError("--dry-run shows what a new run would do: leave it out to resume one")
    if command.command.dry_run:
        from steer_heal.commands.dry_run import show

        return show(config, command.command.preset, {t: names for t, (_, names) in topics(CommandLine).items()})
    from steer_heal.loop.rounds import run_rounds
    from steer_heal.report.console import Reporter

    ledger = _reopened(command, argv) if command.resume else None
    result = run_rounds(config, Reporter(quiet=command.loop.quiet, verbose=command.command.verbose), ledger)
    return STOPPED if result.verdict.name in STOPPED_BY_METHOD else DONE


def _reopened(command: CommandLine, argv: Sequence[str]) -> Ledger:
    """The run to go on with; InputError when an option was typed, or set by a preset, that is not the run's own."""
    from steer_heal.loop.resume import check_given, reopen

    typed = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
    preset = command.command.preset
    ledger = reopen(command.resume, command.loop.out)
    try:
        check_given(ledger, {name: value for name, value in command.options().items() if name in typed})
        if preset is not None:
            of_preset = {name: value for name, value in PRESETS[preset].options.items() if name not in typed}
            check_given(ledger, of_preset, preset)
    except InputError:
        ledger.release()
        raise
    return ledger


if __name__ == "__main__":
    sys.exit(main())
