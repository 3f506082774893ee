"""Steering vectors: extraction from a persona pair, arithmetic, saving, and applying them with a dose per row.

Knows nothing of sampling, filters and training.
"""

from steer_heal.steering.bands import DEFAULT_BAND, choose_band
from steer_heal.steering.direction import StateShift, mean_states, state_shift
from steer_heal.steering.extraction import POSITIONS, TOO_LONG, contexts_sha256, extract, extract_pairs
from steer_heal.steering.injector import SCOPES
from steer_heal.steering.vector import Provenance, Quality, SteeringVector

__all__ = [
    "DEFAULT_BAND",
    "POSITIONS",
    "SCOPES",
    "TOO_LONG",
    "Provenance",
    "Quality",
    "StateShift",
    "SteeringVector",
    "choose_band",
    "contexts_sha256",
    "extract",
    "extract_pairs",
    "mean_states",
    "state_shift",
]
