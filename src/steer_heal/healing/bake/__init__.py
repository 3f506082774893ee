"""`AdapterStack`: rounds folded into plain weights and taken out again, bit for bit; export as one adapter or a model.

Knows nothing of training, data or divergences.
"""

from steer_heal.healing.bake.guards import preserved, weights_in_use
from steer_heal.healing.bake.stack import ROUNDING_WARNING, AdapterStack, FoldReport, refuse_folded, stack_of

__all__ = ["ROUNDING_WARNING", "AdapterStack", "FoldReport", "preserved", "refuse_folded", "stack_of", "weights_in_use"]
