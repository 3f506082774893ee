"""Anti-forgetting: freeze what a model gets right, re-check it later, decide to keep or to revert a change.

Knows nothing of training. `decide` is a pure function over figures; the caller acts on it.
"""

from steer_heal.evaluation.anchors.decision import DEFAULT_CHECKS, Before, Check, Decision, Figures, decide, figures
from steer_heal.evaluation.anchors.tasks import (
    Captured,
    Checked,
    Halves,
    answer,
    capture,
    check,
    halves,
    load_tasks,
    replayed_rows,
)

__all__ = [
    "DEFAULT_CHECKS",
    "Before",
    "Captured",
    "Check",
    "Checked",
    "Decision",
    "Figures",
    "Halves",
    "answer",
    "capture",
    "check",
    "decide",
    "figures",
    "halves",
    "load_tasks",
    "replayed_rows",
]
