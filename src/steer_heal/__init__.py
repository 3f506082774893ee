"""Iterative distill-then-heal training for language models: grow a steering-vector trait, keep the text coherent.

The names below are the public contract; each comes from the room of its stage, which is imported when it is asked for.
"""

from typing import TYPE_CHECKING

from steer_heal.lazy import lazily

if TYPE_CHECKING:
    from steer_heal.adapter import Adapter
    from steer_heal.bake import AdapterStack
    from steer_heal.calibration import Calibration, calibrate
    from steer_heal.coherence import CoherenceFilter
    from steer_heal.completion import Completion, load_completions, save_completions
    from steer_heal.config import RunConfig
    from steer_heal.dose import DoseConfig, Walk, walk_c
    from steer_heal.errors import InputError
    from steer_heal.evaluation import Metrics, Shift, compare, evaluate, retain
    from steer_heal.generation import Interrupted, generate
    from steer_heal.healing import HealConfig, Healed, ReferenceStates, heal, mean_divergence, reference_states
    from steer_heal.lm import LM, load
    from steer_heal.probes import Probe
    from steer_heal.rounds import RunResult, run_rounds
    from steer_heal.sampling import Sampling
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
    "Interrupted",
    "Metrics",
    "Probe",
    "ReferenceStates",
    "RunConfig",
    "RunResult",
    "Sampling",
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

_ROOMS = {
    "adapter": ("Adapter",),
    "bake": ("AdapterStack",),
    "calibration": ("Calibration", "calibrate"),
    "coherence": ("CoherenceFilter",),
    "completion": ("Completion", "load_completions", "save_completions"),
    "config": ("RunConfig",),
    "dose": ("DoseConfig", "Walk", "walk_c"),
    "errors": ("InputError",),
    "evaluation": ("Metrics", "Shift", "compare", "evaluate", "retain"),
    "generation": ("Interrupted", "generate"),
    "healing": ("HealConfig", "Healed", "ReferenceStates", "heal", "mean_divergence", "reference_states"),
    "lm": ("LM", "load"),
    "probes": ("Probe",),
    "rounds": ("RunResult", "run_rounds"),
    "sampling": ("Sampling",),
    "steering": ("SteeringVector", "extract"),
    "trait": ("Trait",),
    "verdict": ("Verdict",),
}
__getattr__, __dir__ = lazily(__name__, {name: room for room, names in _ROOMS.items() for name in names})
