"""The bar that a long loop is held to: per run and line, what was found, and by how much the line is met or missed.

Knows nothing of files and of how figures are shown. States that stand count; a run that ended early is judged by what
stood at its end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from steer_heal.statistics import Estimate
from steer_heal.studies.arms.comparing import by_arm, compare_states
from steer_heal.studies.arms.reading import ArmRun, figures

FIRST_NATS, END_NATS = 2.0, 4.3
"""Least shift of forced choice after round 0 and at the end, nats."""
SHARES = {
    "sentence_share": ("sentence ok of base, every round", 0.97),
    "distinct4_share": ("distinct 4-grams of base, every round, at least prompted's", None),
    "words_share": ("words of base, every round", 0.9),
    "entropy_share": ("token entropy of base, every round", 0.95),
}
"""Least share of base in every round; None: the prompted model's."""
ANCHORS = 0.95
"""Least share of the counted anchors in every round."""
OFF_TARGET = 0.15
"""An off-target category moves less than this share of the target."""
CONTROL = 1 / 4
"""The interval of a control's shift ends below this share of the steered run's shift."""


@dataclass(frozen=True)
class BarLine:
    """One line of the bar for one run, or for all seeds of an arm together.

    Attributes:
        seed: None is all seeds together, items and prompts as clusters over them.
        value: what was found; None where it could not be measured, or was not reached.
        margin: how far the value is on the good side of its limit (negative: missed), in `unit`; None without a limit,
            minus infinity where there is nothing to measure because the trait did not move.
        met: None for a line that is reported only, or not measured. note: what a reader needs beside the number.
        strict: the limit itself misses. beside: shown beside the bar (reverted rounds), no part of it.
    """

    arm: str
    seed: int | None
    line: str
    value: float | None
    margin: float | None
    unit: str
    note: str = ""
    strict: bool = False
    beside: bool = False

    @property
    def met(self) -> bool | None:
        if self.margin is None:
            return None
        return self.margin > 0 if self.strict else self.margin >= -1e-9


def bar_lines(runs: Sequence[ArmRun]) -> list[BarLine]:
    """Every line for every run; controls are held to theirs, against the first arm that is steered, seed by seed."""
    steered = {run.seed: run for run in next((a for a in by_arm(runs).values() if not a[0].is_control), [])}
    out = []
    for group in by_arm(runs).values():
        if group[0].is_control:
            pairs = [(run, steered[run.seed]) for run in group if run.seed in steered]
            out += [line for pair in pairs for line in control_lines(*zip(pair, strict=True))]
            out += control_lines(*zip(*pairs, strict=True)) if len(pairs) > 1 else []
        else:
            out += [line for run in group for line in run_lines(run)]
            out += prompted_lines(group) if len(group) > 1 else []
    return out


def run_lines(run: ArmRun) -> list[BarLine]:
    """The lines of one steered run."""
    first, last = (figures(state, run.base) for state in (run.standing(0), run.last))
    done = len(run.rounds)

    def line(name: str, value: float | None, margin: float | None, unit: str, note: str = "", strict: bool = False):
        return BarLine(run.arm, run.seed, name, value, margin, unit, note, strict)

    out = [
        line("rounds run", done, done - run.n_rounds, "rounds", run.ended_by or ""),
        line(f"round 0 moves at least {FIRST_NATS:g} nats", first["shift"], first["shift"] - FIRST_NATS, "nats"),
    ]
    out.append(line(f"end at least {END_NATS:g} nats", last["shift"], last["shift"] - END_NATS, "nats"))
    for key, (name, _) in SHARES.items():
        least = least_share(key, run)
        out.append(_worst(run, key, name, least, trained=False))
        if any(r.student is not None and not r.stands for r in run.rounds):
            out.append(_worst(run, key, f"{name}, reverted ones too", least, trained=True))
    if last["off_target"] is not None:
        ratio, note = last["off_ratio"], f"{last['off_target']:.2f} of {last['shift']:+.2f} nats"
        margin = -math.inf if ratio is None else OFF_TARGET - ratio
        out.append(
            line(f"off-target under {OFF_TARGET:g} of the target, end", ratio, margin, "of target", note, strict=True)
        )
    out += prompted_lines([run])
    if last["anchors"] is not None:
        worst = min(r.student.anchors for r in run.rounds if r.stands) if any(r.stands for r in run.rounds) else 1.0
        out.append(line("counted anchors kept, every round", worst, worst - ANCHORS, "share"))
    return out


def least_share(key: str, run: ArmRun) -> float | None:
    """Least share of base in every round of this run; None for a figure without one."""
    _, least = SHARES.get(key, ("", math.nan))
    return figures(run.prompted, run.base)[key] if least is None else None if math.isnan(least) else least


def _worst(run: ArmRun, key: str, name: str, least: float | None, trained: bool) -> BarLine:
    """The lowest share over the rounds: of the states that stand, or of all that were trained."""
    rounds = [r for r in run.rounds if r.student is not None]
    states = [(r.number, r.student if trained else run.standing(r.number)) for r in rounds]
    found = [(figures(state, run.base)[key], number) for number, state in states]
    known = [pair for pair in found if pair[0] is not None]
    if not known or least is None:
        return BarLine(run.arm, run.seed, name, None, None, "share", "not measured")
    value, number = min(known)
    return BarLine(run.arm, run.seed, name, value, value - least, "share", f"round {number}", beside=trained)


def prompted_lines(group: Sequence[ArmRun]) -> list[BarLine]:
    """The end against the prompted model: free text must not be surely below; the gap in forced choice is reported."""
    shift = compare_states([run.prompted for run in group], [run.last for run in group])
    arm, seed = group[0].arm, group[0].seed if len(group) == 1 else None
    out = []
    if (free := shift.free_trait) is not None:
        name = "free text not below prompted, end"
        out.append(BarLine(arm, seed, name, free.value, free.high, "share", between(free)))
    odds = shift.log_odds
    return [*out, BarLine(arm, seed, "log-odds against prompted, end", odds.value, None, "nats", between(odds))]


def control_lines(controls: Sequence[ArmRun], steered: Sequence[ArmRun]) -> list[BarLine]:
    """Shift of one control, or of all its seeds together, toward the trait against a quarter of the steered shift."""

    def shift(runs: Sequence[ArmRun]):
        return compare_states([run.base for run in runs], [run.last for run in runs])

    arm, seed = controls[0].arm, controls[0].seed if len(controls) == 1 else None
    of_control, of_run, out = shift(controls), shift(steered), []
    for key, name, unit in (("free_trait", "free text", "share"), ("log_odds", "log-odds", "nats")):
        found, reference = getattr(of_control, key), getattr(of_run, key)
        if found is not None and reference is not None:
            limit = CONTROL * reference.value
            line, note = f"{name}: control under a quarter of {steered[0].arm}", f"{between(found)}, limit {limit:+.2f}"
            out.append(BarLine(arm, seed, line, found.value, limit - found.high, unit, note, strict=True))
    return out


def between(found: Estimate) -> str:
    """`[+0.40, +0.63]`."""
    return f"[{found.low:+.2f}, {found.high:+.2f}]"


def rows_of(lines: Sequence[BarLine]) -> dict[tuple[str, str], dict[int | None, BarLine]]:
    """Lines by (arm, line), and in each by seed (None: all seeds together), in the order given."""
    out: dict[tuple[str, str], dict[int | None, BarLine]] = {}
    for line in lines:
        out.setdefault((line.arm, line.line), {})[line.seed] = line
    return out
