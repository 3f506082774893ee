"""A dose sweep as a command: its options, what they load, and the three files.

Knows nothing of how a dose is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from steer_heal.errors import InputError
from steer_heal.model import load
from steer_heal.steering import extract
from steer_heal.studies.dose_sweep.drawing import plot_sweep
from steer_heal.studies.dose_sweep.found import DosePoint
from steer_heal.studies.dose_sweep.measuring import FLOOR, automatic_doses, sweep
from steer_heal.studies.writing import write_csv, write_page
from steer_heal.trait import Trait, default_trait

DOSES = ("0", "0.25", "0.5", "0.75", "1", "1.5", "2", "3")


@dataclass(frozen=True)
class Arguments:
    """A dose sweep."""

    model: str = "pocket"
    """pocket (embedded), tiny-random, a folder or a hub id."""
    trait: str | None = None
    """Built-in trait or a TOML file; default follows the model."""
    layers: tuple[str, ...] = ("0.45", "0.55")
    """A band of relative depth (two fractions), block indices, or auto."""
    doses: tuple[str, ...] = DOSES
    """Multiples of the vector, or auto: around the dose that reaches --target-kl."""
    target_kl: float = 1.0
    """With --doses auto: rmse divergence from the unsteered model, in nats."""
    floor: float = FLOOR
    """The knee is the largest dose up to which coherence keeps this share of that at dose 0."""
    n_items: int | None = None
    """Forced-choice items; default all."""
    n_free: int = 96
    """Sampled replies per dose."""
    max_new_tokens: int = 72
    """Longest reply, in tokens."""
    seed: int = 0
    """Seed of items and sampling."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    threads: int = 1
    """CPU threads of torch."""
    out: Path = Path("out/csweep")
    """Folder of the three files."""


def layers_of(given: Sequence[str]) -> tuple[float, ...] | str:
    """`auto`, a band of fractions, or block indices. Raises InputError for anything else."""
    if tuple(given) == ("auto",):
        return "auto"
    try:
        return tuple(float(x) if "." in x else int(x) for x in given)
    except ValueError as problem:
        raise InputError(f"layers {' '.join(given)}: give two fractions, block indices, or auto") from problem


def doses_of(given: Sequence[str]) -> tuple[float, ...] | None:
    """The doses, None for `auto`. Raises InputError for what is no number."""
    if tuple(given) == ("auto",):
        return None
    try:
        return tuple(float(x) for x in given)
    except ValueError as problem:
        raise InputError(f"doses {' '.join(given)}: give numbers, or auto") from problem


def sweep_doses(arguments: Arguments) -> str:
    """Load, extract, sweep, write; returns the page. Raises InputError for unusable input."""
    torch.set_num_threads(arguments.threads)
    layers, doses = layers_of(arguments.layers), doses_of(arguments.doses)
    trait = Trait.load(arguments.trait or default_trait(arguments.model))
    lm = load(arguments.model, device=arguments.device)
    vector = extract(lm, trait.pos, trait.neg, trait.contexts, layers)
    notes = []
    if doses is None:
        doses, said = automatic_doses(lm, vector, trait, arguments.target_kl, seed=arguments.seed)
        notes.append(f"doses chosen automatically: {said}")

    def progress(point: DosePoint) -> None:
        print(f"dose {point.dose:.3g} measured", file=sys.stderr, flush=True)

    names = ("floor", "n_items", "n_free", "max_new_tokens", "seed")
    options = {name: getattr(arguments, name) for name in names}
    found = sweep(lm, trait, vector, doses, notes=notes, progress=progress, **options)
    out = arguments.out
    text = write_page(out / "csweep.txt", found.table(), found.texts())
    write_csv(out / "csweep.csv", found.rows())
    plot_sweep(found, out / "csweep.png")
    return f"{text}\n\nwritten to {out}"
