"""Verdict of a run: that of its best round, with what became of the rounds around it.

Knows nothing of models and metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from steer_heal.evaluation.verdict.of_round import VERDICTS, Verdict

SUCCESSES = ("healed", "moved")


@dataclass(frozen=True)
class Round:
    """What a run's verdict needs of a round: number, verdict, the student's trait (None: no student), does it stand."""

    number: int
    verdict: Verdict
    trait: float | None
    stands: bool = True


def best_round(rounds: Sequence[Round]) -> Round | None:
    """The round with the highest trait among the successes, or else among those above the floors; None without any.

    Only rounds that stand: what the gate took out is in no result.
    Never a ratio of trait to coherence loss: its denominator makes a collapsed model look excellent.
    """
    fit = [r for r in rounds if r.stands and r.verdict.above_floors and r.trait is not None and math.isfinite(r.trait)]
    good = [r for r in fit if r.verdict.name in SUCCESSES]
    return max(good or fit, key=lambda r: (r.trait, -r.number), default=None)


def judge_run(rounds: Sequence[Round]) -> Verdict:
    """Verdict of a run: that of its best round, with what became of the rounds around it.

    The adapters of a best round include those of the rounds before it, so a best round that had nothing to heal is
    `healed` when an earlier round on the way was. `reverted`: rounds were trained and the gate let none through.
    """
    if not rounds:
        return Verdict("starved", "no round was completed.")
    best = best_round(rounds)
    course = ", ".join(f"{r.number} {r.verdict.name}{'' if r.stands else ' (reverted)'}" for r in rounds)
    if best is None:
        last = rounds[-1]
        if not any(r.stands and r.trait is not None for r in rounds) and not all(r.stands for r in rounds):
            return Verdict("reverted", f"{VERDICTS['reverted']} ({course}). Last: {last.verdict.text}")
        return Verdict(last.verdict.name, f"No round stands above the coherence floors ({course}). {last.verdict.text}")
    earlier = [r for r in rounds if r.stands and r.number < best.number and r.verdict.name == "healed"]
    healed = best.verdict.name == "moved" and earlier
    name = "healed" if healed else best.verdict.name
    why = f" (healed in round {earlier[-1].number}, nothing left to heal since)" if healed else ""
    text = f"Best round {best.number}{why} of: {course}. {best.verdict.text}"
    return Verdict(name, text, above_floors=True)
