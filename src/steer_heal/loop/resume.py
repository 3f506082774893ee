"""Going on with a run that was stopped: which one, whether it can, and what to say when one is stopped.

Knows nothing of the stages: the loop is replayed, and finds its results in the run folder (see `units`).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError

from steer_heal.config import RunConfig
from steer_heal.config.leave import check_leave, named_code
from steer_heal.errors import InputError, NotWrittenError
from steer_heal.ledger import Ledger, led, plain
from steer_heal.ledger.environment import other_bits
from steer_heal.model.memory import is_short
from steer_heal.processes import LostError, told
from steer_heal.texts.generation import MemoryShortError

NOT_BITS = ("out", "quiet")
"""Options that a resumed run may be given anew: they change what is shown, and where `auto` looks."""


def reopen(folder: str | Path, out: str | Path = "out", given: Mapping[str, object] | None = None) -> Ledger:
    """An unfinished run, taken for this process; `auto` is the newest one under `out`.

    `given` are the options of this very call: code that the folder names is run only where they name it too.

    Raises InputError when there is none, when it is finished, in use, damaged, of another version of the program, or
    names code that `given` does not; nothing of it has been loaded then.
    """
    ledger = led(partial(_taken, folder, out, given or {}))
    torch.set_num_threads(told(torch.get_num_threads))
    return ledger


def _taken(folder: str | Path, out: str | Path, given: Mapping[str, object]) -> Ledger:
    ledger = Ledger.open(newest_unfinished(out) if str(folder) == "auto" else folder)
    try:
        ledger.hold()
    except OSError as problem:
        raise NotWrittenError(f"{str(ledger.folder)!r} cannot be written ({problem.strerror})") from problem
    try:
        _check(ledger)
        check_leave(ledger.config, given, ledger.folder)
        ledger.replay()
    except BaseException:
        ledger.release()
        raise
    return ledger


def newest_unfinished(out: str | Path) -> Path:
    """The run under `out` that was started last and has not come to its end. Raises InputError without one."""
    found = sorted(config.parent for config in Path(out).glob("*/config.json") if _unfinished(config.parent))
    if not found:
        raise InputError(f"there is no unfinished run under {str(out)!r}: name another folder with --out")
    return max(found, key=lambda folder: (folder / "config.json").stat().st_mtime)


def _unfinished(folder: Path) -> bool:
    return (folder / "units").is_dir()


def _check(ledger: Ledger) -> None:
    folder = str(ledger.folder)
    if not _unfinished(ledger.folder):
        if ledger.events("end"):
            ledger.settle()  # it may have been stopped while it did
            raise InputError(f"{folder!r} is finished: its result is in summary.md, there is nothing to resume")
        raise InputError(f"{folder!r} has no committed results (units/): it was made by a version without --resume")
    recorded = ledger.check_record()
    threads = recorded.get("cpu_threads")
    if type(threads) is int and 0 < threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)  # as the run chose them; this process has not chosen yet
    if other := other_bits(recorded):
        raise InputError(
            f"{folder!r} would go on with other bits ({other}): go back to what it was, or start a new run"
        )


def recorded_config(ledger: Ledger) -> RunConfig:
    """The configuration in `config.json`. Raises InputError when it is not one of this version."""
    recorded = {name: value for name, value in ledger.config.items() if name != "schema_version"}
    try:
        config = RunConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items()})
    except TypeError as problem:
        raise InputError(f"{ledger.folder / 'config.json'}: other options than this version's ({problem})") from problem
    if other := differing(recorded, config):
        raise InputError(f"{ledger.folder / 'config.json'}: {other[0]} cannot be read back: start a new run")
    return config


def differing(recorded: Mapping, config: RunConfig) -> list[str]:
    """Options that are not as recorded."""
    now = plain(config.to_dict())
    return [name for name in {**recorded, **now} if recorded.get(name) != now.get(name)]


def check_given(ledger: Ledger, given: Mapping[str, object], preset: str | None = None) -> None:
    """Raises InputError when an option that was given is not the run's own: a resumed run is what it was.

    `preset` names the preset that gave the options, if it was not the user.
    """
    config = recorded_config(ledger)
    if "out" in given and Path(str(given["out"])).resolve() != ledger.folder.parent.resolve():
        raise InputError(f"--out {given['out']} is not where {str(ledger.folder)!r} lies: leave it out to resume")
    wanted = replace(config, **{k: v for k, v in given.items() if k not in NOT_BITS}).resolved()
    for name in differing(plain(config.to_dict()), wanted):
        option = f"--{name.replace('_', '-')} {given.get(name, getattr(wanted, name))}"
        said = f"--preset {preset} ({option})" if preset else option
        raise InputError(
            f"{said} is not what {str(ledger.folder)!r} was started with "
            f"({getattr(config, name)}): leave it out to resume, or start a new run"
        )


def command(ledger: Ledger) -> str:
    """What to type to go on, with the leave for code that the run needs."""
    leave = [word for words in named_code(ledger.config).values() for word in words]
    return shlex.join(("python", "-m", "steer_heal.run", "--resume", str(ledger.shown), *leave))


@contextmanager
def resumable(ledger: Ledger, in_memory: bool = False) -> Iterator[Ledger]:
    """Whatever stops the block, the run folder is let go, and what can go on later says how, in a note of one line.

    `in_memory`: of a model or trait that a command line cannot name.

    Raises InputError for a disk that is full and for memory that ran out, with everything committed kept.
    """
    how = ""
    try:
        again = f"run_rounds(resume=reopen({str(ledger.shown)!r}), lm=..., trait=...)" if in_memory else command(ledger)
        how = f"everything committed is kept; go on with: {again}"
        yield ledger
    except (KeyboardInterrupt, NotWrittenError, MemoryShortError, LostError) as stop:
        stop.add_note(how)
        raise
    except (OSError, SafetensorError) as problem:
        stop = InputError(f"{str(ledger.shown)!r} was stopped ({problem})")
        stop.add_note(how)
        raise stop from problem
    except (RuntimeError, MemoryError) as problem:
        if not is_short(problem):
            raise
        stop = InputError("memory ran out: use a smaller model, dtype or --batch-size, or free memory and go on")
        stop.add_note(how)
        raise stop from problem
    finally:
        ledger.release()
