"""The processes of a launcher as one run: they share work out, and all of them go on with the same results.

Knows nothing of models and runs.
"""

from steer_heal.processes.team import (
    LostError,
    alike,
    count,
    each,
    first,
    launched,
    rank,
    says,
    spread,
    sum_gradients,
    together,
    told,
)

__all__ = [
    "LostError",
    "alike",
    "count",
    "each",
    "first",
    "launched",
    "rank",
    "says",
    "spread",
    "sum_gradients",
    "together",
    "told",
]
