"""Heal: LoRA training on completions while a barrier holds the student near a frozen reference.

Read `training.heal` first; `loss` is one of its steps, `barriers` what holds the student back, `references` what it is
held to, `lora` and `adapter` what is trained, `bake` how it becomes part of the weights.
Knows nothing of steering, filters and rounds. Its modules are imported when they are asked for.
"""

from typing import TYPE_CHECKING

from steer_heal.healing.config import HealConfig
from steer_heal.lazy import lazily

if TYPE_CHECKING:
    from steer_heal.healing.references import ReferenceStates, mean_divergence, reference_states
    from steer_heal.healing.result import DivergedError, Healed, HealInterrupted
    from steer_heal.healing.training import heal, overfit_check

__all__ = [
    "DivergedError",
    "HealConfig",
    "HealInterrupted",
    "Healed",
    "ReferenceStates",
    "heal",
    "mean_divergence",
    "overfit_check",
    "reference_states",
]

__getattr__, __dir__ = lazily(__name__)
