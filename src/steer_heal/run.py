"""The command line: `python -m steer_heal.run --reg kl_rev`. Parses, calls the loop, gives an exit code.

Knows nothing of the method. Exit codes: 0 done, 2 unusable input, 3 stopped by the method, 130 interrupted.
`--resume FOLDER` goes on with a run that was stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import tyro

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


@dataclass(frozen=True)
class CommandLine:
    """Grow a steering-vector trait over rounds while the text stays coherent."""

    loop: tyro.conf.OmitArgPrefixes[LoopOptions] = field(default_factory=LoopOptions)
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    steering: tyro.conf.OmitArgPrefixes[SteeringOptions] = field(default_factory=SteeringOptions)
    walk: tyro.conf.OmitArgPrefixes[WalkOptions] = field(default_factory=WalkOptions)
    heal: tyro.conf.OmitArgPrefixes[HealOptions] = field(default_factory=HealOptions)
    evaluation: tyro.conf.OmitArgPrefixes[EvaluationOptions] = field(default_factory=EvaluationOptions)
    gate: tyro.conf.OmitArgPrefixes[GateOptions] = field(default_factory=GateOptions)
    resume: str | None = None
    """Go on with a run that was stopped: its folder, or auto for the newest unfinished one under --out. It keeps its
    options and seed, and ends with the same bits as if it had not been stopped."""

    def options(self) -> dict[str, object]:
        """All groups side by side."""
        flat: dict[str, object] = {}
        for group in (self.heal, self.loop, self.model, self.steering, self.walk, self.evaluation, self.gate):
            flat |= {f.name: getattr(group, f.name) for f in fields(group)}
        return flat

    def config(self) -> RunConfig:
        """All groups as one flat configuration."""
        return RunConfig(**self.options())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    command = tyro.cli(CommandLine, args=argv, prog="python -m steer_heal.run", config=(tyro.conf.FlagCreatePairsOff,))
    try:
        config = None if command.resume else command.config()
        from transformers.utils import logging as transformers_logging

        from steer_heal.console import Reporter
        from steer_heal.rounds import run_rounds

        transformers_logging.disable_progress_bar()
        ledger = _reopened(command, sys.argv[1:] if argv is None else argv) if command.resume else None
        result = run_rounds(config, Reporter(quiet=command.loop.quiet), ledger)
    except InputError as problem:
        _say(problem, str(problem))
        return 2
    except KeyboardInterrupt as stop:
        _say(stop, "interrupted")
        return 130
    return 3 if result.verdict.name in STOPPED_BY_METHOD else 0


def _reopened(command: CommandLine, argv: Sequence[str]) -> Ledger:
    """The run to go on with; InputError when an option was typed that is not the run's own."""
    from steer_heal.resume import check_given, reopen

    typed = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
    ledger = reopen(command.resume, command.loop.out)
    try:
        check_given(ledger, {name: value for name, value in command.options().items() if name in typed})
    except InputError:
        ledger.release()
        raise
    return ledger


def _say(problem: BaseException, what: str) -> None:
    """One line on stderr: what happened, and how to go on where that is possible."""
    print("; ".join([f"steer_heal: {what}", *getattr(problem, "__notes__", ())]), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
