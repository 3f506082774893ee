"""A model state's metrics as the figures by item that `decide` compares.

Knows nothing of what is allowed.
"""

from __future__ import annotations

import math

from steer_heal.evaluation.anchors.tasks import Checked
from steer_heal.evaluation.metrics import Metrics
from steer_heal.evaluation.shift import coherent


def figures(metrics: Metrics, original: Metrics, checked: Checked | None = None) -> dict[str, dict[str, float]]:
    """The figures of `DEFAULT_CHECKS` from metrics: coherence and words per prompt, anchors per id, diversity pooled.

    Anchors are those the original got right, from `checked` where given, else from the metrics; without any the
    figure is left out, and its check must be too.
    """
    coherence: dict[str, list[float]] = {}
    words: dict[str, list[float]] = {}
    for row, ok in zip(metrics.replies, coherent(metrics, original), strict=True):
        coherence.setdefault(row.prompt, []).append(ok)
        words.setdefault(row.prompt, []).append(float(row.words))
    held = {row.id for row in original.anchors if row.right}
    anchors = checked.right if checked else {row.id: float(row.right) for row in metrics.anchors if row.id in held}
    out = {
        "coherence": {prompt: math.fsum(some) / len(some) for prompt, some in coherence.items()},
        "words": {prompt: math.fsum(some) / len(some) for prompt, some in words.items()},
        "anchors": anchors,
    } | {
        # A model that says nothing has no diversity, which must not pass for a figure that was not measured.
        name: {} if getattr(original, name) is None else {"all": getattr(metrics, name) or 0.0}
        for name in ("distinct4", "token_entropy")
    }
    return {name: found for name, found in out.items() if found}
