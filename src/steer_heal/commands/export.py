"""`steer-heal export RUN --to FOLDER`: a run's result as one PEFT adapter, or merged into a plain model.

Knows nothing of training; folding and the check by loading again are `bake`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from steer_heal.commands.folders import finished_run
from steer_heal.errors import InputError

USAGE = "steer-heal export RUN --to FOLDER [--merged]"
PURPOSE = (
    "Write the student of a run's best round: one adapter that plain peft loads, or the merged model with its "
    "tokenizer. The folder counts as written only after it was loaded again and gave the same logits."
)


@dataclass(frozen=True)
class Options:
    """What to write where."""

    run: tyro.conf.Positional[str]
    """The run's folder."""
    to: str
    """Folder to write, which must not exist or be empty."""
    merged: bool = False
    """A whole model with the adapters in its weights, instead of an adapter."""
    device: str | None = None
    """cpu, cuda, mps or auto; default as the run."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


def main(options: Options) -> int:
    """Load the model, fold the standing rounds in, write."""
    ledger, target = finished_run(options.run), Path(options.to).expanduser()
    check_target(target)
    from steer_heal.commands.handed_over import fold_result, load_model

    lm = load_model(ledger, options.device, options.trust_remote_code)
    stack = fold_result(ledger, lm)
    try:
        if options.merged:
            stack.export_merged(target, lm)
        else:
            stack.export_peft(target)
    except PermissionError as problem:
        raise InputError(f"--to {options.to!r} cannot be written ({problem.strerror}): choose another") from problem
    kind = "merged model" if options.merged else f"PEFT adapter for {lm.name}"
    rounds = ", ".join(map(str, ledger.events("end")[-1]["folded"]))
    print(f"{target}: {kind}, rounds {rounds}; loaded again, logits agree")
    return 0


def check_target(target: Path) -> None:
    """Refuse a target that would overwrite something. Raises InputError."""
    if target.exists() and not target.is_dir():
        raise InputError(f"--to {str(target)!r} is a file: name a folder that does not exist yet")
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"--to {str(target)!r} is not empty: name a folder that does not exist yet")
    for parent in target.parents:
        if parent.exists() and not parent.is_dir():
            raise InputError(f"--to {str(target)!r} lies under {str(parent)!r}, which is a file: name another folder")
