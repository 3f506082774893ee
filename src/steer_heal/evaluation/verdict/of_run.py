"""Verdict of a run: which of its rounds is the best, and what became of the others.

Knows nothing of models and metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from steer_heal.evaluation.verdict.evidence import Cost
from steer_heal.evaluation.verdict.judging import SUCCESSES, VERDICTS, Verdict


@dataclass(frozen=True)
class Slacks:
    """By how much more than the least of the rounds a round may cost, in the units of `Cost`, and still be the best."""

    coherence: float = 0.02
    distinct4: float = 0.08
    nll: float = 0.1


@dataclass(frozen=True)
class Round:
    """What a run's verdict needs of a round.

    Attributes:
        trait: of the student, log-odds in nats; None without a student.
        stands: the gate let it through.
        cost: what its text costs.
    """

    number: int
    verdict: Verdict
    trait: float | None
    stands: bool = True
    cost: Cost = field(default_factory=Cost)


def best_round(rounds: Sequence[Round], slacks: Slacks | None = None) -> Round | None:
    """The round with the highest trait among those whose text is as good as that of any; None without a candidate.

    Candidates stand (what the gate took out is in no result) and are successes, or else above the floors. Log-odds go
    on rising when free text is at its ceiling while the text gets worse, so a candidate must be within every slack
    (`Slacks`) of the least that the candidates cost in coherence, 4-grams and nll: always, saturated or not. Where none
    is within all of them, the one that is beyond by the fewest slacks sets how far.
    Never a ratio of trait to coherence loss: its denominator makes a collapsed model look excellent.
    """
    found = candidates(rounds)
    beyond = [max(_slacks_beyond(r, found, slacks or Slacks()).values()) for r in found]
    allowed = max(1.0, min(beyond, default=1.0)) + 1e-9  # a difference of exactly the slack is within it
    near = [r for r, slack in zip(found, beyond, strict=True) if slack <= allowed]
    return max(near, key=_rank, default=None)


def candidates(rounds: Sequence[Round]) -> list[Round]:
    """The standing successes, or else the standing rounds above the floors."""
    fit = [r for r in rounds if r.stands and r.verdict.above_floors and r.trait is not None and math.isfinite(r.trait)]
    return [r for r in fit if r.verdict.name in SUCCESSES] or fit


def _rank(r: Round) -> tuple[float, int]:
    return r.trait, -r.number


def _slacks_beyond(one: Round, others: Sequence[Round], slacks: Slacks) -> dict[str, float]:
    """By how many slacks a round costs more than the least of others, by figure."""
    least = {name: min(getattr(r.cost, name) for r in others) for name in asdict(slacks)}
    return {name: (getattr(one.cost, name) - least[name]) / slack for name, slack in asdict(slacks).items()}


def _passed_over(best: Round, rounds: Sequence[Round], slacks: Slacks) -> str:
    """Why the round with the highest trait is not the best, in words; empty where it is."""
    found = candidates(rounds)
    highest = max(found, key=_rank)
    if highest is best:
        return ""
    beyond = [name for name, n in _slacks_beyond(highest, found, slacks).items() if n > 1]
    told = [
        f"{name} {getattr(highest.cost, name):.3f} (at least {min(getattr(r.cost, name) for r in found):.3f}, slack "
        f"{getattr(slacks, name)})"
        for name in beyond
    ]
    return (
        f" Round {highest.number} has the higher log-odds ({highest.trait:+.2f} against {best.trait:+.2f} nats), but "
        f"its text costs more than that of others: {', '.join(told)}."
    )


def judge_run(rounds: Sequence[Round], slacks: Slacks | None = None) -> Verdict:
    """Verdict of a run: that of its best round, with what became of the rounds around it.

    The adapters of a best round include those of the rounds before it, so a best round that had nothing to heal is
    `healed` when an earlier round on the way was. `reverted`: rounds were trained and the gate let none through.
    """
    if not rounds:
        return Verdict("starved", "no round was completed.")
    best = best_round(rounds, slacks)
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
    passed_over = _passed_over(best, rounds, slacks or Slacks())
    return Verdict(name, f"Best round {best.number}{why} of: {course}.{passed_over} {best.verdict.text}", True)
