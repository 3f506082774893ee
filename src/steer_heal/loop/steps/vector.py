"""A round's vector: extract it from the student as it is, and give it the run's unit of dose.

Knows nothing of texts and training.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

from steer_heal.evaluation import free_prompts
from steer_heal.loop.calibration import Calibration, calibrate
from steer_heal.loop.kinds import CALIBRATION, VECTOR
from steer_heal.loop.steps.state import Run, contexts
from steer_heal.steering import SteeringVector, extract


def extract_vector(run: Run, number: int) -> SteeringVector:
    """The round's steering vector, from the student as it is now."""
    config, trait = run.config, run.trait
    if run.rounds and config.vector_from == "first":
        vector = run.rounds[0].vector
    else:
        # `auto` chooses once: vectors of different blocks could not be compared between rounds.
        layers = run.rounds[0].vector.layers if run.rounds and config.layers == "auto" else config.layers
        progress = partial(run.reporter.progress, "extract")
        personas = (trait.pos, trait.neg, contexts(run))
        compute = partial(
            extract, run.lm, *personas, layers, config.position, too_long=config.too_long, progress=progress
        )
        vector = run.keep(number).once("vector", compute, VECTOR)
        if run.rounds and config.vector_from == "mixed":
            first = run.rounds[0].vector.scaled_like(vector)
            vector = replace(0.5 * (vector + first), quality=vector.quality)
        if config.vector == "random":
            vector = replace(vector.random_like(run.seed(number, "vector")), quality=vector.quality)
    unit = dose_unit(run, number, vector) if config.target_kl and config.vector != "none" else None
    if unit:
        vector = replace(vector * unit.dose, quality=vector.quality)
    run.ledger.record(
        "extract",
        number,
        kind=config.vector,
        n_contexts=vector.provenance.n_contexts,
        norm=vector.norm(),
        n_skipped=vector.provenance.n_skipped,
        layers=list(vector.layers),
        reason=vector.provenance.reason,
        unit=unit and asdict(unit),
        quality={i: asdict(q) for i, q in vector.quality.items()},
        cosine_first=_cosine_first(run, vector),
    )
    return vector


def _cosine_first(run: Run, vector: SteeringVector) -> float | None:
    """Cosine with round 0's vector; None where it is that vector by construction: kept, or of the original again."""
    if not run.rounds:
        return 1.0
    same = run.config.vector_from == "first" or (run.config.vector != "random" and not run.standing)
    return None if same else vector.cosine(run.rounds[0].vector)


def dose_unit(run: Run, number: int, vector: SteeringVector) -> Calibration:
    """The multiple of the vector that causes `target_kl` nats on the student as it is now."""
    config, seed = run.config, run.seed(number, "unit")
    prompts = free_prompts(run.trait.prompts, 8 if config.fast_dev_run else 32, 0)
    place = run.sampled("find the dose", number, "dose")
    compute = partial(calibrate, run.lm, vector, prompts, config.target_kl, seed=seed, **place)
    return run.keep(number).once("dose", compute, CALIBRATION)
