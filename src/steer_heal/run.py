"""The command line: `python -m steer_heal.run --reg kl_rev`. Parses, calls the loop, gives an exit code.

Knows nothing of the method. Exit codes: 0 done, 2 unusable input, 3 stopped by the method, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

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

    def config(self) -> RunConfig:
        """All groups as one flat configuration."""
        flat: dict[str, object] = {}
        for group in (self.heal, self.loop, self.model, self.steering, self.walk, self.evaluation, self.gate):
            flat |= {f.name: getattr(group, f.name) for f in fields(group)}
        return RunConfig(**flat)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    command = tyro.cli(CommandLine, args=argv, prog="python -m steer_heal.run", config=(tyro.conf.FlagCreatePairsOff,))
    try:
        config = command.config()
        from transformers.utils import logging as transformers_logging

        from steer_heal.console import Reporter
        from steer_heal.rounds import run_rounds

        transformers_logging.disable_progress_bar()
        result = run_rounds(config, Reporter(quiet=config.quiet))
    except InputError as problem:
        print(f"steer_heal: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("steer_heal: interrupted; complete rounds are in the run folder", file=sys.stderr)
        return 130
    return 3 if result.verdict.name in STOPPED_BY_METHOD else 0


if __name__ == "__main__":
    sys.exit(main())
