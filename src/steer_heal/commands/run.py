"""`steer-heal run`, also `python -m steer_heal.run`: parses, calls the loop, gives an exit code.

Knows nothing of the method. `--resume FOLDER` goes on with a run that was stopped.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from typing import Annotated, get_type_hints

import tyro

from steer_heal.commands.options import asked_for_help, filled, options_of, parse, print_help, shown, typed
from steer_heal.commands.script import DONE, EXIT_CODES, STOPPED, guarded
from steer_heal.config import RunConfig
from steer_heal.config.options import (
    EvaluationOptions,
    GateOptions,
    HealOptions,
    LoopOptions,
    ModelOptions,
    SteeringOptions,
    WalkOptions,
    text_of,
)
from steer_heal.config.presets import PRESETS, UNTRIED, preset_words
from steer_heal.errors import InputError, nearest
from steer_heal.ledger import Ledger
from steer_heal.model.names import check_name
from steer_heal.processes import first, together
from steer_heal.trait import Anchor, Trait
from steer_heal.trait.rows import read_rows

STOPPED_BY_METHOD = ("starved", "diverged", "collapsed", "unfit", "shorter", "reverted")
PURPOSE = (
    "Grow a trait in a model's weights over rounds while its text stays coherent. Without options: three rounds on "
    "`pocket`, about two minutes on a CPU."
)
MAIN = ("reg", "model", "trait", "preset", "n_rounds", "lam", "tau", "doses", "layers", "seed", "out", "device")
MAIN += ("resume", "fast_dev_run", "dry_run", "quiet", "verbose")
"""Options of the first help page."""


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """What the command itself does.

    Attributes:
        preset: Settings for a published model: gemma-3-4b, qwen3-0.6b or llama-3.1-8b; other options beat it.
        resume: Go on with a stopped run: its folder, or auto for the newest one under --out. Same options, same bits.
        dry_run: Print the resolved options, the number of generations, an estimate of time and memory; run nothing.
        verbose: Also print every batch with its plan and tokens/s, every step of a heal, and the texts at the filter's
            limits.
        debug: Print the traceback of an error about the input.
    """

    preset: str | None = None
    resume: str | None = None
    dry_run: bool = False
    verbose: bool = False
    debug: bool = False


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
    command: tyro.conf.OmitArgPrefixes[CommandOptions] = field(default_factory=CommandOptions)

    def options(self) -> dict[str, object]:
        """The options of a run side by side."""
        groups = (self.heal, self.loop, self.model, self.steering, self.walk, self.evaluation, self.gate)
        return {one.name: getattr(group, one.name) for group in groups for one in fields(group)}

    def config(self) -> RunConfig:
        """The options of a run as one flat configuration."""
        return RunConfig(**self.options())


GROUPS: Mapping[str, type] = get_type_hints(CommandLine)
"""The options by stage, as `--help STAGE` shows them."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m steer_heal.run") -> int:
    """Run the job; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(partial(command, prog=prog), words, "complete rounds are in the run folder")


def parsed(argv: Sequence[str], prog: str) -> CommandLine:
    """The command line, over the values of its preset. Raises InputError."""
    preset = typed(argv, "--preset")
    return parse(CommandLine, [*(preset_words(preset[0]) if preset else ()), *argv], prog)


@together()
def command(argv: list[str], prog: str) -> int:
    """What `main` does, unguarded, in every process of a launcher; the first one prints. Raises InputError."""
    with contextlib.nullcontext() if first() else contextlib.redirect_stdout(io.StringIO()):
        return _answer(argv, prog)


def _answer(argv: list[str], prog: str) -> int:
    topic = asked_for_help(argv)
    if topic is not None:
        _print_page(topic, prog)
        return DONE
    _check_names(argv)
    command = parsed(argv, prog)
    own = command.command
    given = {**command.options(), "resume": own.resume, "preset": own.preset}
    if empty := next((name for name, value in given.items() if value == ""), None):
        raise InputError(f"--{empty.replace('_', '-')} is empty: give a value, or leave it out")
    if own.verbose and command.loop.quiet:
        raise InputError("--quiet and --verbose exclude each other: leave one of them out")
    if own.dry_run and own.resume:
        raise InputError("--dry-run shows what a new run would do: leave it out to resume one")
    config = None if own.resume else command.config()
    if own.dry_run:
        from steer_heal.commands.dry_run import show

        topics = {name: [option.name for option in options_of(kind).values()] for name, kind in GROUPS.items()}
        return show(config, own.preset, topics)
    from steer_heal.loop.rounds import run_rounds
    from steer_heal.report.console import Reporter

    ledger = _reopened(command, argv) if own.resume else None
    result = run_rounds(config, Reporter(quiet=command.loop.quiet, verbose=own.verbose), ledger)
    return STOPPED if result.verdict.name in STOPPED_BY_METHOD else DONE


def _check_names(argv: Sequence[str]) -> None:
    """What was typed names a model, a trait, a run and a file that can be. Raises InputError.

    The run would say the same; here it is said before torch is imported, and before anything else of the command line
    is read.
    """
    checks = {
        "--model": check_name,
        "--trait": Trait.load,
        "--anchors": lambda name: read_rows(name, Anchor),
    }
    if typed(argv, "--resume"):  # what else is typed is read after the run's record
        checks = {"--resume": lambda name: name == "auto" or not first() or Ledger.open(name)}
    for flag, check in checks.items():
        if any(given := typed(argv, flag) or ()):
            check(given[0])


def _reopened(command: CommandLine, argv: Sequence[str]) -> Ledger:
    """The run to go on with; InputError when an option was typed, or set by a preset, that is not the run's own."""
    from steer_heal.loop.resume import check_given, reopen

    preset = command.command.preset
    given = {option.name for flag, option in options_of(CommandLine).items() if typed(argv, flag) is not None}
    options = {name: value for name, value in command.options().items() if name in given}
    ledger = reopen(command.command.resume, command.loop.out, options)
    try:
        check_given(ledger, options)
        if preset is not None:
            of_preset = {name: value for name, value in PRESETS[preset].options.items() if name not in given}
            check_given(ledger, of_preset, preset)
    except InputError:
        ledger.release()
        raise
    return ledger


def _print_page(topic: str, prog: str) -> None:
    """The main page for "", else the options of one stage, of all, or the presets. InputError for an unknown topic."""
    known = (*GROUPS, "presets", "all")
    if topic == "presets":
        print(_preset_page())
    elif topic:
        if topic not in known:
            raise InputError(f"no help on {topic!r}{nearest(topic, known)}: give one of {', '.join(known)}")
        print_help(GROUPS.get(topic, CommandLine), prog)
    else:
        stages = "\n".join(f"  {name:<12}{kind.__doc__.split('.')[0]}" for name, kind in GROUPS.items())
        more = f"More options by stage, `{prog} --help STAGE` (or all):\n{stages}"
        last = filled(f"`--help presets`: what each preset sets. {EXIT_CODES}")
        print_help(_main_options(), prog, f"{filled(PURPOSE)}\n\n{more}\n\n{last}")


def _main_options() -> type:
    """The options of the first page as a dataclass of their own."""
    found = {}
    for kind in GROUPS.values():
        hints = get_type_hints(kind, include_extras=True)
        for one in (one for one in fields(kind) if one.name in MAIN):
            hint = Annotated[hints[one.name], text_of(kind, one.name)]
            found.setdefault(one.name, (one.name, hint, field(default=one.default)))
    return make_dataclass("Options", [found[name] for name in MAIN])


def _preset_page() -> str:
    """What each preset sets."""
    lines = [filled(f"Note: {UNTRIED}. An option that is given beats the preset."), ""]
    for name, preset in PRESETS.items():
        values = ", ".join(f"{key} {shown(value)}" for key, value in preset.options.items())
        lines += [name, filled(values, "  "), filled(preset.note, "  "), ""]
    return "\n".join(lines).rstrip()
