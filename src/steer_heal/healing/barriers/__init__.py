"""What a heal is held back by: divergences, aggregates, hinge and multiplier, and the loss over the vocabulary.

Knows nothing of LoRA, data, rounds or steering. Its modules are imported when they are asked for.
"""

from typing import TYPE_CHECKING

from steer_heal.lazy import lazily

if TYPE_CHECKING:
    from steer_heal.healing.barriers.budget import AGGREGATES, aggregate_rows, penalty, scheduled_lam, update_lam
    from steer_heal.healing.barriers.chunked import PositionLosses, default_chunk, position_losses
    from steer_heal.healing.barriers.divergences import DIVERGENCES, Divergence, kl_fwd, kl_rev, resolve_reg, top_k

__all__ = [
    "AGGREGATES",
    "DIVERGENCES",
    "Divergence",
    "PositionLosses",
    "aggregate_rows",
    "default_chunk",
    "kl_fwd",
    "kl_rev",
    "penalty",
    "position_losses",
    "resolve_reg",
    "scheduled_lam",
    "top_k",
    "update_lam",
]

__getattr__, __dir__ = lazily(__name__)
