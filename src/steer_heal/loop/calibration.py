"""The dose whose divergence from the unsteered model hits a target in nats: raw doses do not carry over between models.

Knows nothing of filters, training and rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steer_heal.arguments import checked
from steer_heal.errors import InputError
from steer_heal.healing import HealConfig, ReferenceStates, mean_divergence, reference_states
from steer_heal.ledger.units import FORGET, Keep
from steer_heal.model import LM, GivenLM, as_lm
from steer_heal.shown import brief
from steer_heal.steering import SteeringVector
from steer_heal.texts.completion import Completion
from steer_heal.texts.engines import TRANSFORMERS, Engine
from steer_heal.texts.generation import OnBatch, generate

REACH = 1000.0
"""Largest dose tried, in multiples of the vector at unit norm."""
TOLERANCE = 0.02
"""The search ends within 2 % of the target."""
MAX_PASSES = 40


@dataclass(frozen=True)
class Calibration:
    """Result of `calibrate`.

    Attributes:
        dose: multiples of the vector that come nearest to the target from what was tried.
        divergence: what that dose causes, in nats.
        reached: it is within 2 % of the target; False means that no dose up to 1000 times unit norm gets there.
        curve: every (dose, divergence) tried, by dose.
    """

    dose: float
    divergence: float
    reached: bool
    curve: tuple[tuple[float, float], ...]

    __repr__ = brief

    @staticmethod
    def from_dict(data: Mapping) -> Calibration:
        """The inverse of `dataclasses.asdict`, also after JSON."""
        return Calibration(**{**data, "curve": tuple(map(tuple, data["curve"]))})


@checked
def calibrate(
    lm: GivenLM,
    vector: SteeringVector,
    prompts: Sequence[str],
    target_kl: float = 1.0,
    stat: str = "rmse",
    system: str | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    keep: Keep = FORGET,
    on_batch: OnBatch | None = None,
    engine: Engine = TRANSFORMERS,
) -> Calibration:
    """Find the dose at which mean over replies of stat_t KL(steered || unsteered) equals `target_kl` nats.

    The divergence is measured by teacher forcing on the unsteered model's own replies to the prompts, steering the
    same positions that sampling steers. It grows about as dose^2, so each guess is the last one scaled by
    sqrt(target / divergence), kept inside the bracket found so far.

    Args:
        target_kl: in nats, above 0.
        stat: aggregate over the positions of a reply: mean, rmse, p95, max, cvar.

    Raises:
        InputError: a target that is not above 0, an unknown stat, no prompts.
    """
    lm = as_lm(lm)
    if not 0 < target_kl < math.inf:
        raise InputError(f"target_kl {target_kl}: give a number of nats above 0")
    config = HealConfig(reg="kl_rev", kl_agg=stat)
    replies = generate(
        lm,
        prompts,
        system=system,
        max_new_tokens=max_new_tokens,
        seed=seed,
        keep=keep,
        on_batch=on_batch,
        engine=engine,
    )
    plain = reference_states(lm, replies)
    low, high = 0.0, REACH / vector.norm()
    dose, tried = high / REACH, {}
    for _ in range(MAX_PASSES):
        tried[dose] = _caused(lm, vector, dose, replies, plain, config)
        if abs(tried[dose] / target_kl - 1) <= TOLERANCE or (dose == REACH / vector.norm() and tried[dose] < target_kl):
            break
        low, high = (dose, high) if tried[dose] < target_kl else (low, dose)
        guess = dose * min(8.0, math.sqrt(target_kl / max(tried[dose], 1e-12)))
        middle = math.sqrt(low * high) if low else high / 2
        dose = guess if low < guess < high else REACH / vector.norm() if guess >= high > max(tried) else middle
    best = min(tried, key=lambda d: abs(math.log(max(tried[d], 1e-12) / target_kl)))
    reached = abs(tried[best] / target_kl - 1) <= TOLERANCE
    return Calibration(best, tried[best], reached, tuple(sorted(tried.items())))


def _caused(
    lm: LM, vector: SteeringVector, dose: float, replies: list[Completion], plain: ReferenceStates, config: HealConfig
) -> float:
    steered = reference_states(lm, replies, around=lambda batch: vector.applied(lm.model, dose))
    return mean_divergence(lm, steered, plain, replies, config)
