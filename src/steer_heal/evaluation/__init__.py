"""Measures a model state on held-out items and prompts, compares two of them, and judges what became of a round.

Measuring (`evaluate`, on `choices`, `vignettes` and sampled replies) gives `Metrics`; `shift` compares two of them item
by item. `anchors` asks whether what the original knew is still there, keep or revert; `verdict` names in one word what
became of trait and text; `probes` tell whether an adapter learnt content or one constant shift of the logits.
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
