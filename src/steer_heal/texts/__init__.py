"""Texts: sampling under a dose, the dose that enough of them survive (walk-C), and the filter that says which do.

Knows nothing of training and rounds.
"""

from typing import TYPE_CHECKING

from steer_heal.lazy import lazily

if TYPE_CHECKING:
    from steer_heal.texts.coherence import CoherenceFilter, FilterReport, text_figures
    from steer_heal.texts.completion import COMPLETIONS, Completion, load_completions, save_completions
    from steer_heal.texts.dose import DoseConfig, Walk, walk_c
    from steer_heal.texts.generation import (
        Interrupted,
        MemoryShortError,
        OnBatch,
        Progress,
        Request,
        derive_seed,
        generate,
        generate_requests,
    )
    from steer_heal.texts.rows import completion_rows, completions_from_rows
    from steer_heal.texts.sampling import Sampling
    from steer_heal.texts.selection import held_temperature, length_weights

__all__ = [
    "COMPLETIONS",
    "CoherenceFilter",
    "Completion",
    "DoseConfig",
    "FilterReport",
    "Interrupted",
    "MemoryShortError",
    "OnBatch",
    "Progress",
    "Request",
    "Sampling",
    "Walk",
    "completion_rows",
    "completions_from_rows",
    "derive_seed",
    "generate",
    "generate_requests",
    "held_temperature",
    "length_weights",
    "load_completions",
    "save_completions",
    "text_figures",
    "walk_c",
]

__getattr__, __dir__ = lazily(__name__)
