"""Measures every dose of a vector on the same items, prompts and seed: the options of a sweep, and its three files.

Knows nothing of training and rounds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from steer_heal.errors import InputError
from steer_heal.evaluation import evaluate
from steer_heal.loop.calibration import calibrate
from steer_heal.model import LM, load
from steer_heal.steering import SteeringVector, extract
from steer_heal.studies.dose_sweep.drawing import plot_sweep
from steer_heal.studies.dose_sweep.found import DosePoint, Sweep
from steer_heal.studies.writing import write_csv, write_page
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.completion import Completion
from steer_heal.trait import Trait, default_trait

STEPS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Automatic doses, in multiples of the dose that `calibrate` finds for the target divergence."""
FLOOR = 0.9
"""Share of the unsteered coherence that a dose has to keep to lie before the knee."""


def automatic_doses(
    lm: LM, vector: SteeringVector, trait: Trait, target_kl: float = 1.0, n: int = 16, seed: int = 0
) -> tuple[tuple[float, ...], str]:
    """Doses around the one whose divergence (rmse over positions) is `target_kl` nats, and a line that says so."""
    prompts = trait.prompts[:: max(1, len(trait.prompts) // n)][:n]
    found = calibrate(lm, vector, prompts, target_kl, system=trait.neutral, max_new_tokens=48, seed=seed)
    said = f"dose {found.dose:.3g} diverges by {found.divergence:.2f} nats (rmse, target {target_kl:g}"
    said += ")" if found.reached else "; NOT reached up to 1000 times unit norm)"
    return (0.0, *(found.dose * step for step in STEPS)), said


def sweep(
    lm: LM,
    trait: Trait,
    vector: SteeringVector,
    doses: Sequence[float],
    *,
    floor: float = FLOOR,
    n_items: int | None = None,
    n_free: int = 48,
    max_new_tokens: int = 72,
    seed: int = 0,
    filt: CoherenceFilter | None = None,
    notes: Sequence[str] = (),
    progress: Callable[[DosePoint], None] | None = None,
) -> Sweep:
    """Measure every dose; dose 0 is added where it is missing.

    Args:
        doses: multiples of the vector, 0 or larger.
        floor: share (0..1) of the unsteered coherence that defines the knee.
        n_items, n_free: forced-choice items (None: all) and sampled replies per dose.
        filt: the filter that judges the replies; None calibrates one on the model as it is.
        progress: called after each dose.

    Raises InputError for no dose, a negative or infinite one, a floor outside 0..1, fewer than 2 replies.
    """
    if not doses or not all(isinstance(d, (int, float)) and 0 <= d < math.inf for d in doses):
        raise InputError(f"doses {tuple(doses)}: give finite numbers of at least 0")
    if not 0 < floor <= 1:
        raise InputError(f"floor {floor}: give a share above 0 and up to 1, such as 0.9")
    if n_free < 2:
        raise InputError(f"n_free {n_free}: a dose needs at least 2 replies, 48 is a good number")
    filt = filt or CoherenceFilter.calibrate(
        lm, trait.prompts, system=trait.neutral, seed=seed, max_new_tokens=max_new_tokens
    )
    points = []
    for dose in sorted({0.0, *map(float, doses)}):
        judged: list[Completion] = []

        def scorer(completions: list[Completion], judged: list[Completion] = judged) -> list[float]:
            found = filt(lm, completions)  # not steered here: this is the model's own surprise
            judged += found
            return [c.scores.get("nll", math.nan) for c in found]

        sizes = {"n_items": n_items, "n_free": n_free, "max_new_tokens": max_new_tokens}
        metrics = evaluate(lm, trait, vector=vector, dose=dose, seed=seed, scorer=scorer, **sizes)
        own = judged[:n_free]  # behind them stand the same replies behind other prompts
        points.append(DosePoint(dose, metrics, tuple(own)))
        if progress:
            progress(points[-1])
    return Sweep(tuple(points), floor, lm.name, trait.name, vector.layers, seed, tuple(notes))


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
