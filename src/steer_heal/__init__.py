"""Iterative distill-then-heal training for language models: grow a steering-vector trait, keep the text coherent.

The names below are the public contract; each comes from the room of its stage.
"""

from steer_heal.adapter import Adapter
from steer_heal.bake import AdapterStack
from steer_heal.calibration import Calibration, calibrate
from steer_heal.coherence import CoherenceFilter
from steer_heal.completion import Completion, load_completions, save_completions
from steer_heal.config import RunConfig
from steer_heal.dose import DoseConfig, Walk, walk_c
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, Shift, compare, evaluate, retain
from steer_heal.generation import generate
from steer_heal.healing import HealConfig, Healed, ReferenceStates, heal, mean_divergence, reference_states
from steer_heal.lm import LM, load
from steer_heal.rounds import RunResult, run_rounds
from steer_heal.steering import SteeringVector, extract
from steer_heal.trait import Trait
from steer_heal.verdict import Verdict

__all__ = [
    "LM",
    "Adapter",
    "AdapterStack",
    "Calibration",
    "CoherenceFilter",
    "Completion",
    "DoseConfig",
    "HealConfig",
    "Healed",
    "InputError",
    "Metrics",
    "ReferenceStates",
    "RunConfig",
    "RunResult",
    "Shift",
    "SteeringVector",
    "Trait",
    "Verdict",
    "Walk",
    "calibrate",
    "compare",
    "evaluate",
    "extract",
    "generate",
    "heal",
    "load",
    "load_completions",
    "mean_divergence",
    "reference_states",
    "retain",
    "run_rounds",
    "save_completions",
    "walk_c",
]
