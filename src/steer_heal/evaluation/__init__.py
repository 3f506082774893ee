"""Measures a model state on held-out items and prompts, compares two of them, and judges what became of a round.

Knows nothing of training and rounds. Base, steered, healed and prompted model are measured by the same function.
"""

from typing import TYPE_CHECKING

from steer_heal.lazy import lazily

if TYPE_CHECKING:
    from steer_heal.evaluation.choices import ChoiceRow
    from steer_heal.evaluation.measuring import evaluate, free_prompts, judge
    from steer_heal.evaluation.metrics import AnchorRow, CategoryScore, Metrics, ReplyRow
    from steer_heal.evaluation.shift import Shift, compare, retain
    from steer_heal.evaluation.vignettes import VignetteRow

__all__ = [
    "AnchorRow",
    "CategoryScore",
    "ChoiceRow",
    "Metrics",
    "ReplyRow",
    "Shift",
    "VignetteRow",
    "compare",
    "evaluate",
    "free_prompts",
    "judge",
    "retain",
]

__getattr__, __dir__ = lazily(__name__)
