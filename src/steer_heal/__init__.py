"""Iterative distill-then-heal training for language models: grow a steering-vector trait, keep the text coherent.

The names below are the public contract; each comes from the room of its stage, which is imported when it is asked for.
"""

from typing import TYPE_CHECKING

from steer_heal.lazy import lazily

if TYPE_CHECKING:
    from steer_heal.config import RunConfig
    from steer_heal.errors import InputError
    from steer_heal.evaluation import Metrics, Shift, compare, evaluate, retain
    from steer_heal.evaluation.probes import Probe
    from steer_heal.evaluation.verdict import Verdict
    from steer_heal.healing import (
        HealConfig,
        Healed,
        HealInterrupted,
        ReferenceStates,
        heal,
        mean_divergence,
        reference_states,
    )
    from steer_heal.healing.adapter import Adapter
    from steer_heal.healing.bake import AdapterStack
    from steer_heal.healing.bake.loading import load
    from steer_heal.loop.calibration import Calibration, calibrate
    from steer_heal.loop.rounds import run_rounds
    from steer_heal.loop.steps import RunResult
    from steer_heal.model import LM, wrap
    from steer_heal.steering import SteeringVector, extract, extract_pairs
    from steer_heal.texts.coherence import CoherenceFilter
    from steer_heal.texts.completion import Completion, load_completions, save_completions
    from steer_heal.texts.dose import DoseConfig, Walk, walk_c
    from steer_heal.texts.generation import Interrupted, generate
    from steer_heal.texts.rows import completion_rows, completions_from_rows
    from steer_heal.texts.sampling import Sampling
    from steer_heal.trait import Trait

__all__ = [
    "LM",
    "Adapter",
    "AdapterStack",
    "Calibration",
    "CoherenceFilter",
    "Completion",
    "DoseConfig",
    "HealConfig",
    "HealInterrupted",
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
    "completion_rows",
    "completions_from_rows",
    "evaluate",
    "extract",
    "extract_pairs",
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
    "wrap",
]

if not TYPE_CHECKING:  # a checker would take any name for a public one
    __getattr__, __dir__ = lazily(__name__)
