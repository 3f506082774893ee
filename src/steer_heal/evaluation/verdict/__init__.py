"""Verdict of a round and of a run: pure decisions over a few numbers, floors first, said in one sentence.

Know nothing of models. `gather` fills in the numbers from metrics; everything else takes them plain.
"""

from steer_heal.evaluation.verdict.evidence import SHAPE, Evidence, gather, shape, shape_reference
from steer_heal.evaluation.verdict.judging import (
    SUCCESSES,
    VERDICTS,
    Floors,
    Round,
    Rules,
    Verdict,
    best_round,
    judge_round,
    judge_run,
    under_floors,
)

__all__ = [
    "SHAPE",
    "SUCCESSES",
    "VERDICTS",
    "Evidence",
    "Floors",
    "Round",
    "Rules",
    "Verdict",
    "best_round",
    "gather",
    "judge_round",
    "judge_run",
    "shape",
    "shape_reference",
    "under_floors",
]
