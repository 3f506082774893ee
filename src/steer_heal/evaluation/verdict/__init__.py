"""Verdict of a round and of a run: pure decisions over a few numbers, floors first, said in one sentence.

Know nothing of models. `gather` fills in the numbers from metrics; everything else takes them plain.
"""

from steer_heal.evaluation.verdict.evidence import OF_BASE, Cost, Evidence, cost, gather, shape, shape_reference
from steer_heal.evaluation.verdict.judging import (
    SUCCESSES,
    UNDER_A_FLOOR,
    VERDICTS,
    Floors,
    Rules,
    Verdict,
    judge_round,
    under_floors,
)
from steer_heal.evaluation.verdict.of_run import Round, Slacks, best_round, judge_run

__all__ = [
    "OF_BASE",
    "SUCCESSES",
    "UNDER_A_FLOOR",
    "VERDICTS",
    "Cost",
    "Evidence",
    "Floors",
    "Round",
    "Rules",
    "Slacks",
    "Verdict",
    "best_round",
    "cost",
    "gather",
    "judge_round",
    "judge_run",
    "shape",
    "shape_reference",
    "under_floors",
]
