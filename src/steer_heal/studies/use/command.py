"""Adapters in use over seeds: the options, whose adapters they are, and the files after every seed.

Knows nothing of how a measurement is made and shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steer_heal.commands.folders import finished_run, fold_result, runs_in
from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.healing.adapter import Adapter
from steer_heal.loop.rounds import run_rounds
from steer_heal.model import LM
from steer_heal.studies.arms.jobs import finished
from steer_heal.studies.material import config_of, load_material
from steer_heal.studies.use.measuring import OTHER, Subject, Used, use
from steer_heal.studies.use.table import write
from steer_heal.studies.writing import Stopwatch, say
from steer_heal.trait import Trait


@dataclass(frozen=True)
class Arguments:
    """Adapters, scales, seeds."""

    run: tuple[Path, ...] = ()
    """One or two finished runs (a folder of scripts/arms.py that holds one, too) or PEFT adapters: the first is scaled
    and argued against, the second is added to it. None: a default run of each trait for each seed, which is kept."""
    traits: tuple[str, ...] = ("pocket-care", "pocket-warmth")
    """One or two traits; those of the adapters, in their order, where a folder does not say it."""
    model: str = "pocket"
    """The model of the default runs and of PEFT adapters."""
    scales: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    """Factors on the first adapter; 0 is base."""
    other: str = OTHER
    """A system prompt about another matter."""
    replies: int = 96
    """Sampled replies per measured model."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the runs, the measurements and the fine-tuning."""
    out: Path = Path("out/use")
    """Folder of the two files and of the runs."""


def subject_of(folder: Path, lm: LM, trait: str, model: str) -> Subject:
    """The adapters in a folder, which fit `lm`. InputError where there are none."""
    if (folder / "adapter_config.json").is_file():
        return Subject(Trait.load(trait), RunConfig(model=model, trait=trait), (Adapter.load(folder),))
    ledger = finished_run(folder)
    stack = fold_result(ledger, lm)
    adapters = stack.adapters
    for _ in adapters:
        stack.pop()
    return Subject(
        Trait.load(ledger.config["trait"] or ledger.events("start")[-1]["trait"]), config_of(ledger), adapters
    )


def folders_of(arguments: Arguments, seed: int) -> list[Path]:
    """Whose adapters are used with this seed; a default run that is missing is made."""
    found = []
    for path in arguments.run:
        several = [path] if (path / "adapter_config.json").is_file() else runs_in([str(path)])
        if len(several) > 1:
            raise InputError(f"--run {str(path)!r} holds {len(several)} runs: name one of them")
        found += several
    if found:
        return found
    for trait in arguments.traits:
        place = arguments.out / "runs" / f"{Path(trait).stem}_s{seed}"
        ledger = finished(place)
        if ledger is None:
            say(f"seed {seed}: no finished run in {place}, running the default on {trait}")
        config = RunConfig(model=arguments.model, trait=trait, seed=seed, out=str(place), quiet=True)
        found.append(run_rounds(config).folder if ledger is None else ledger.folder)
    return found


def use_adapters(arguments: Arguments) -> tuple[list[Used], str]:
    """All seeds, the files written after each; returns what was measured and the page. InputError for bad input."""
    watch, done = Stopwatch(), []
    for name, most in (("run", 2), ("traits", 2), ("seeds", None), ("scales", None)):
        given = getattr(arguments, name)
        if len(set(given)) < len(given) or (most and len(given) > most) or (name != "run" and not given):
            raise InputError(
                f"--{name} {' '.join(map(str, given))}: give {'one or two' if most else 'some'}, each once"
            )
    for seed in arguments.seeds:
        folders = folders_of(arguments, seed)
        done.append(use(*_loaded(folders, arguments), seed, arguments.scales, arguments.other, arguments.replies))
        say(f"seed {seed}: done {watch}")
        text = write(arguments.out, about(arguments, done), done)
    return done, f"{text}\n\n{watch}; written to {arguments.out}"


def _loaded(folders: Sequence[Path], arguments: Arguments) -> tuple[LM, list[Subject]]:
    """The original model that all adapters were made for, and the adapters."""
    is_run = not (folders[0] / "adapter_config.json").is_file()
    lm = load_material(config_of(finished_run(folders[0])) if is_run else RunConfig(model=arguments.model)).lm
    names = [*arguments.traits, arguments.traits[-1]]
    subjects = [subject_of(one, lm, name, arguments.model) for one, name in zip(folders, names, strict=False)]
    if len({one.trait.name for one in subjects}) < len(subjects):
        raise InputError(f"both adapters are of trait {subjects[0].trait.name!r}: give two of different traits")
    return lm, subjects


def about(arguments: Arguments, done: Sequence[Used]) -> str:
    """What was measured, in one line."""
    where = ", ".join(map(str, arguments.run)) or f"default runs on {arguments.model} ({', '.join(arguments.traits)})"
    return (
        f"{where}; seeds {', '.join(str(used.seed) for used in done)}; {arguments.replies} replies per model; "
        f"another prompt: {arguments.other!r}."
    )
