"""What a heal is held back by: divergences, aggregates, hinge and multiplier, and the loss over the vocabulary.

Knows nothing of LoRA, data, rounds or steering.
"""

from steer_heal.barriers.budget import (
    AGGREGATES,
    aggregate_rows,
    penalty,
    resolve_aggregate,
    scheduled_lam,
    update_lam,
)
from steer_heal.barriers.chunked import PositionLosses, check_head, default_chunk, position_losses
from steer_heal.barriers.divergences import (
    DIVERGENCES,
    Divergence,
    DivergenceFunction,
    kl_fwd,
    kl_rev,
    resolve_reg,
    top_k,
)

__all__ = [
    "AGGREGATES",
    "DIVERGENCES",
    "Divergence",
    "DivergenceFunction",
    "PositionLosses",
    "aggregate_rows",
    "check_head",
    "default_chunk",
    "kl_fwd",
    "kl_rev",
    "penalty",
    "position_losses",
    "resolve_aggregate",
    "resolve_reg",
    "scheduled_lam",
    "top_k",
    "update_lam",
]
