"""Dose against trait, coherence and perplexity, with the knee marked: `uv run python scripts/csweep.py`.

    uv run python scripts/csweep.py                                         # pocket, doses 0 to 3
    uv run python scripts/csweep.py --doses auto --target-kl 1.0            # doses around a divergence of 1 nat
    uv run python scripts/csweep.py --model ./folder --trait care-over-authority --layers 0.45 0.55 --doses auto
    uv run python scripts/csweep.py --model tiny-random --n-free 8 --n-items 8 --max-new-tokens 16

Writes `csweep.txt` (table, knee, one whole reply per dose), `csweep.csv` and `csweep.png`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from steer_heal.commands.script import run_script
from steer_heal.errors import InputError
from steer_heal.model import load
from steer_heal.steering import extract
from steer_heal.studies.sweep import FLOOR, Sweep, automatic_doses, plot_sweep, sweep
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


def run(arguments: Arguments) -> Sweep:
    """Load, extract, sweep, print, write. Raises InputError for unusable input."""
    torch.set_num_threads(arguments.threads)
    layers, doses = layers_of(arguments.layers), doses_of(arguments.doses)
    trait = Trait.load(arguments.trait or default_trait(arguments.model))
    lm = load(arguments.model, device=arguments.device)
    vector = extract(lm, trait.pos, trait.neg, trait.contexts, layers)
    notes = []
    if doses is None:
        doses, said = automatic_doses(lm, vector, trait, arguments.target_kl, seed=arguments.seed)
        notes.append(f"doses chosen automatically: {said}")
    found = sweep(
        lm, trait, vector, doses, floor=arguments.floor, n_items=arguments.n_items, n_free=arguments.n_free,
        max_new_tokens=arguments.max_new_tokens, seed=arguments.seed, notes=notes,
        progress=lambda point: print(f"dose {point.dose:.3g} measured", file=sys.stderr, flush=True),
    )  # fmt: skip
    text = f"{found.table()}\n\n{found.texts()}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "csweep.txt").write_text(f"{text}\n", encoding="utf-8")
    found.save_csv(arguments.out / "csweep.csv")
    plot_sweep(found, arguments.out / "csweep.png")
    print(f"{text}\n\nwritten to {arguments.out}", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, sweep; 2 for unusable input."""
    return run_script(Arguments, lambda given: run(given) and None, argv, __doc__, "csweep")


if __name__ == "__main__":
    sys.exit(main())
