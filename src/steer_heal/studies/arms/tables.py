"""The tables of `arms.md` and the lines of `arms.csv`: combined, paired against the first arm, at equal trait, the bar.

Knows nothing of running; every figure comes from `comparing` and `bar`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from steer_heal.report.tables import number
from steer_heal.studies.arms.bar import BarLine, rows_of
from steer_heal.studies.arms.comparing import COMPARED, Matched, Paired, by_arm, spread
from steer_heal.studies.arms.definitions import Arm
from steer_heal.studies.arms.reading import FIGURES, ArmRun, State, TrainedRound, figures
from steer_heal.studies.writing import grouped

Row = dict[str, str]
Figures = dict[str, float | None]
COMBINED_LEGEND = (
    "Median (range) over n seeds of the state that STANDS after the round: the last student that the gate let "
    "through. `as trained` stands under a round that was reverted on some seed: the students before the gate took them "
    "out. end: what stands at the end of every run, also of those that ended early. trait: share of held-out free-text "
    "replies on the trait's side; log-odds shift: of the trait's answer in forced choice against base, nats; sentence "
    "ok: share of sound sentences; of base: sentence ok as a share of base's, and so are 4-grams (distinct), words "
    "(per reply) and entropy (of the tokens); off-target: the category that moved most, nats, either way, and as a "
    "share of the target's shift where that is .1 nats or more; anchors: share still right of those base gets right; "
    "kept: share of completions that survived the filter; kappa: multiplier of the doses; KL to base: of the "
    "healed student on its training rows, nats per token; gate: what became of the round, by seeds."
)
PAIRED_LEGEND = (
    "Arm minus {first}, states that stand after the same round, on the same items and seeds, with 95 % intervals that "
    "resample items and prompts over all seeds together (an item is one cluster in all of them); in parentheses the "
    "range of the difference over seeds. end: when both runs are over. The intervals do not cover other seeds: where "
    "the range holds both signs, the difference is not one of the arms."
)
MATCHED_LEGEND = (
    "Every arm where its log-odds shift first reaches a level: arms that move slower get more rounds. The figures are "
    "interpolated linearly between the standing states before and after the first round at or above the level (base "
    "counts as a state), so that an arm of large steps does not pay for its overshoot; what lies between two states "
    "was not measured. round: the first at or above the level; reached: seeds that got there."
)
MAKING_LEGEND = (
    "steered: the student before the heal under the vector at the highest dose its training texts were kept from, "
    "unfiltered; trait of kept: free-text trait of the training texts; KL to previous: of the healed student, nats per "
    "token; cosines: vector and adapter with round 0's, and of the student's shift with the vector."
)
BAR_LEGEND = (
    "Per seed what was found and, in parentheses, by how much the line is met (+) or MISSED (-), in the unit given. "
    "States that stand count; lines on reverted ones show what the gate took out, and are no part of the bar. all: "
    "items and prompts of all seeds as one, 95 %. Free text is not below prompted when the interval's upper end is not "
    "below 0; a control passes when the upper end of its shift's interval is below a quarter of the steered run's "
    "shift."
)


def cell(values: Sequence[float | None], digits: int = 2, signed: bool = False) -> str:
    """`0.95 (0.94 to 0.97)`, over seeds; the median alone where the range is nothing at this precision, or a dash."""
    if (found := spread(values)) is None:
        return "-"
    middle, low, high = (number(v, digits, signed) for v in (found.middle, found.low, found.high))
    return middle if low == high else f"{middle} ({low} to {high})"


def column(rows: Sequence[object], name: str, digits: int = 2, signed: bool = False) -> str:
    """`cell` of one attribute of all rows."""
    return cell([getattr(row, name) for row in rows], digits, signed)


def rounds_of(group: Sequence[ArmRun]) -> Iterator[tuple[int, list[ArmRun]]]:
    """Every round of an arm, and those of its runs that reached it."""
    for r in range(max(len(run.rounds) for run in group)):
        yield r, [run for run in group if r < len(run.rounds)]


def state_row(arm: str, after: str, found: Sequence[Figures]) -> Row:
    """One state over seeds; what only a round has is left open."""
    shown = {label: cell([f[name] for f in found], signed=name == "shift") for name, label in FIGURES.items()}
    rest = dict.fromkeys(("kept", "kappa", "KL to base", "gate"), "-")
    return {"arm": arm, "after round": after, "n": str(len(found)), **shown, **rest}


def combined_rows(runs: Sequence[ArmRun]) -> list[Row]:
    """Base and prompted, then every arm and round: see `COMBINED_LEGEND`."""
    arms = by_arm(runs)
    first = next(iter(arms.values()))
    names = ("base", "prompted")
    rows = [state_row(name, "-", [figures(getattr(run, name), run.base) for run in first]) for name in names]
    for arm, group in arms.items():
        for r, reached in rounds_of(group):
            done = [run.rounds[r] for run in reached]
            row = state_row(arm, str(r), [figures(run.standing(r), run.base) for run in reached])
            row |= {"kept": column(done, "kept"), "kappa": column(done, "kappa")}
            row |= {"KL to base": column(done, "kl_base", 3), "gate": gate_cell(done, len(group) - len(done))}
            rows.append(row)
            if any(d.student is not None and not d.stands for d in done):
                trained = [figures(d.student, run.base) for d, run in zip(done, reached, strict=True) if d.student]
                rows.append(state_row(arm, f"{r} as trained", trained))
        rows.append(state_row(arm, "end", [figures(run.last, run.base) for run in group]))
    return rows


def gate_cell(rounds: Sequence[TrainedRound], over: int) -> str:
    """`2 kept, 1 reverted`; rounds that starved and runs that were over before are counted too."""
    counts = {
        "kept": sum(r.stands for r in rounds),
        "reverted": sum(r.student is not None and not r.stands for r in rounds),
        "starved": sum(r.student is None for r in rounds),
        "over": over,
    }
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n)


def paired_rows(found: Sequence[Paired]) -> list[Row]:
    """One row per arm and round."""

    def difference(one: Paired, name: str) -> str:
        shift, ends = getattr(one.shift, name), one.ranges[name]
        return "-" if shift is None else f"{shift} ({ends[0]:+.2f} to {ends[1]:+.2f})"

    rows = []
    for one in found:
        row = {"arm": one.arm, "round": "end" if one.round is None else str(one.round)}
        row["seeds"] = " ".join(map(str, one.seeds))
        rows.append(row | {head: difference(one, name) for name, head in COMPARED.items()})
    return rows


MATCHED = ("trait", "sentence_share", "distinct4_share", "words_share", "entropy_share", "off_ratio")


def matched_rows(found: Sequence[Matched]) -> list[Row]:
    """One row per level and arm, over the seeds that reached it."""
    rows = []
    for (level, arm), group in grouped(found, lambda one: (one.level, one.arm)).items():
        there = [one for one in group if one.round is not None]
        row = {"shift, nats": f"{level:g}", "arm": arm, "reached": f"{len(there)} of {len(group)}"}
        row["round"] = column(there, "round", 0)
        for name in MATCHED:
            head = "sentence ok of base" if name == "sentence_share" else FIGURES[name]
            row[head] = cell([one.figures[name] for one in there])
        rows.append(row)
    return rows


def making_rows(runs: Sequence[ArmRun]) -> list[Row]:
    """What went into each round, and what it did."""
    rows = []
    for arm, group in by_arm(runs).items():
        for r, reached in rounds_of(group):
            done = [run.rounds[r] for run in reached]
            steered = [
                figures(State(run.rounds[r].steered, None), run.base) for run in reached if run.rounds[r].steered
            ]
            shifts = [run.rounds[r].steered_shift(run.base) for run in reached]
            row = {"arm": arm, "round": str(r), "steered shift": cell(shifts, signed=True)}
            row |= {f"steered {FIGURES[key]}": cell([one[key] for one in steered]) for key in ("trait", "sentence_ok")}
            row |= {"trait of kept": column(done, "trait_kept"), "KL to previous": column(done, "kl_prev", 3)}
            row |= {"vector": column(done, "cosine_vector"), "adapter": column(done, "cosine_adapter")}
            row |= {"shift on vector": column(done, "cosine_shift"), "verdicts": ", ".join(d.verdict for d in done)}
            rows.append(row)
    return rows


def bar_rows(lines: Sequence[BarLine], seeds: Sequence[int]) -> list[Row]:
    """One row per arm and line, a column per seed, one for all seeds, and how many seeds meet it."""
    rows = []
    for (arm, name), found in rows_of(lines).items():
        judged = [line.met for seed, line in found.items() if seed is not None and line.met is not None]
        row = {"arm": arm, "line": name, "unit": next(iter(found.values())).unit}
        row |= {"all" if seed is None else str(seed): bar_cell(found.get(seed)) for seed in (*seeds, None)}
        rows.append(row | {"met": f"{sum(judged)} of {len(judged)}" if judged else "reported"})
    return rows


def bar_summary(lines: Sequence[BarLine]) -> str:
    """One line per arm: how many lines of how many are met, and which are missed on how many seeds."""
    out = []
    for arm, of_arm in grouped((line for line in lines if not line.beside), lambda line: line.arm).items():
        judged = [line for line in of_arm if line.seed is not None and line.met is not None]
        names = dict.fromkeys(line.line for line in judged if not line.met)
        seeds = len({line.seed for line in judged})
        missed = [f"{name} ({sum(x.line == name and not x.met for x in judged)} of {seeds} seeds)" for name in names]
        out.append(
            f"- {arm}: {sum(line.met for line in judged)} of {len(judged)} met"
            + (f"; missed: {'; '.join(missed)}" if missed else "")
        )
    return "\n".join(out)


def bar_cell(line: BarLine | None) -> str:
    """`0.97 (+0.00), round 4`, or `0.91 (MISSED -0.06), round 4`."""
    if line is None:
        return "-"
    digits = 3 if line.unit == "share" else 2
    shown = number(line.value, digits)
    if line.margin is not None:
        by = f"{line.margin:+.{digits}f}" if math.isfinite(line.margin) else ""
        shown += f" ({by})" if line.met else f" (MISSED {by})".replace(" )", ")")
    return f"{shown}, {line.note}" if line.note else shown


def arms_rows(arms: Sequence[Arm], runs: Sequence[ArmRun], common: Sequence[str]) -> list[Row]:
    """One row per arm: what to type, what its runs came to, and how long they took."""
    rows, groups = [], by_arm(runs)
    for arm in arms:
        group = groups.get(arm.name, [])
        verdicts = "; ".join(f"{run.seed}: {run.verdict}, best {run.best_round}" for run in group)
        row = {"arm": arm.name, "command": f"`{Arm(arm.name, (*common, *arm.options)).command}`"}
        row["verdicts"] = verdicts or "no finished run"
        row["ended early"] = "; ".join(f"{run.seed}: {run.ended_by}" for run in group if run.ended_by) or "-"
        rows.append(row | {"seconds": ", ".join(f"{run.seconds:.0f}" for run in group) or "-"})
    return rows


OF_ROUND = "stands outcome verdict kept kappa trait_kept kl_base kl_prev cosine_vector cosine_adapter cosine_shift"


def as_written(runs: Sequence[ArmRun]) -> Iterator[dict[str, object]]:
    """Every state of every run as a line of the CSV file, unrounded; of a round, as it was trained and what stands."""
    for run in runs:
        places = [(None, "base", run.base), (None, "prompted", run.prompted)]
        for done in run.rounds:
            trained = [(done, "trained", done.student)] if done.student is not None else []
            places += [*trained, (done, "standing", run.standing(done.number))]
        for done, name, state in places:
            row = {"arm": run.arm, "seed": run.seed, "round": done and done.number, "state": name}
            row |= figures(state, run.base)
            yield row | {key: done and getattr(done, key) for key in OF_ROUND.split()}
