"""Measures every dose of a vector on the same items, prompts and seed.

Knows nothing of training and rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from steer_heal.errors import InputError
from steer_heal.evaluation import evaluate
from steer_heal.loop.calibration import calibrate
from steer_heal.model import LM
from steer_heal.steering import SteeringVector
from steer_heal.studies.dose_sweep.found import DosePoint, Sweep
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.completion import Completion
from steer_heal.trait import Trait

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
