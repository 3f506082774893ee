"""`arms.md` and `arms.csv`: the combined table, paired against the first arm, at equal trait, and the bar.

Knows nothing of running; every figure comes from `comparing` and `bar`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from steer_heal.report import markdown_table
from steer_heal.report.tables import number
from steer_heal.studies.arms.bar import BarLine, bar_lines, rows_of
from steer_heal.studies.arms.comparing import COMPARED, Matched, Paired, Spread, by_arm, matched, paired, spread
from steer_heal.studies.arms.definitions import Arm
from steer_heal.studies.arms.reading import FIGURES, ArmRun, TrainedRound, figures

STATE_NAMES = {
    "trait": "trait", "shift": "log-odds shift", "sentence_ok": "sentence ok", "sentence_share": "of base",
    "distinct4_share": "4-grams", "words_share": "words", "entropy_share": "entropy", "off_target": "off-target",
    "off_ratio": "off / target", "anchors": "anchors",
}  # fmt: skip
COMBINED_COLUMNS = ["arm", "after round", "n", *STATE_NAMES.values(), "kept", "kappa", "KL to base", "gate"]
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


def cell(found: Spread | None, digits: int = 2, signed: bool = False) -> str:
    """`0.95 (0.94 to 0.97)`; the median alone where the range is nothing at this precision; a dash for none."""
    if found is None:
        return "-"
    middle, low, high = (number(v, digits, signed) for v in (found.middle, found.low, found.high))
    return middle if low == high else f"{middle} ({low} to {high})"


def state_cells(found: Sequence[dict[str, float | None]]) -> list[str]:
    """The figures of one state over seeds."""
    return [cell(spread([f[name] for f in found]), signed=name == "shift") for name in STATE_NAMES]


def combined_rows(runs: Sequence[ArmRun]) -> list[list[str]]:
    """Base and prompted, then every arm and round: see `COMBINED_LEGEND`."""
    arms = by_arm(runs)
    first, rest = next(iter(arms.values())), ["-"] * 4
    rows = [
        [name, "-", str(len(first)), *state_cells([figures(getattr(run, name), run.base) for run in first]), *rest]
        for name in ("base", "prompted")
    ]
    for name, group in arms.items():
        for r in range(max(len(run.rounds) for run in group)):
            reached = [run for run in group if r < len(run.rounds)]
            done = [run.rounds[r] for run in reached]
            states = [figures(run.standing(r), run.base) for run in reached]
            dose = [cell(spread([getattr(d, key) for d in done])) for key in ("kept", "kappa")]
            kl = cell(spread([d.kl_base for d in done]), 3)
            gate = gate_cell(done, len(group) - len(done))
            rows.append([name, str(r), str(len(reached)), *state_cells(states), *dose, kl, gate])
            if any(d.student is not None and not d.stands for d in done):
                trained = [(d.student, run.base) for d, run in zip(done, reached, strict=True) if d.student]
                shown = state_cells([figures(*pair) for pair in trained])
                rows.append([name, f"{r} as trained", str(len(trained)), *shown, *rest])
        rows.append([name, "end", str(len(group)), *state_cells([figures(r.last, r.base) for r in group]), *rest])
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


PAIRED_COLUMNS = ["arm", "round", "seeds", "trait, share", "log-odds, nats", "sentence ok, share"]


def paired_rows(found: Sequence[Paired]) -> list[list[str]]:
    """One row per arm and round."""
    rows = []
    for one in found:
        cells = []
        for name in COMPARED:
            shift, span = getattr(one.shift, name), one.ranges[name]
            cells.append("-" if shift is None else f"{shift} ({span[0]:+.2f} to {span[1]:+.2f})")
        number = "end" if one.round is None else str(one.round)
        rows.append([one.arm, number, " ".join(map(str, one.seeds)), *cells])
    return rows


MATCHED_NAMES = ("trait", "sentence_share", "distinct4_share", "words_share", "entropy_share", "off_ratio")
MATCHED_COLUMNS = [
    "shift, nats", "arm", "reached", "round", "trait", "sentence ok of base",
    *(STATE_NAMES[name] for name in MATCHED_NAMES[2:]),
]  # fmt: skip


def matched_rows(found: Sequence[Matched]) -> list[list[str]]:
    """One row per level and arm, over the seeds that reached it."""
    rows = []
    for level, arm in dict.fromkeys((one.level, one.arm) for one in found):
        group = [one for one in found if (one.level, one.arm) == (level, arm)]
        there = [one for one in group if one.round is not None]
        figures = [cell(spread([one.figures[name] for one in there])) for name in MATCHED_NAMES]
        rounds = cell(spread([one.round for one in there]), 0)
        rows.append([f"{level:g}", arm, f"{len(there)} of {len(group)}", rounds, *figures])
    return rows


MAKING_COLUMNS = [
    "arm", "round", "steered shift", "steered trait", "steered sentence ok", "trait of kept", "KL to previous",
    "vector", "adapter", "shift on vector", "verdicts",
]  # fmt: skip


def making_rows(runs: Sequence[ArmRun]) -> list[list[str]]:
    """What went into each round, and what it did."""
    rows = []
    for name, group in by_arm(runs).items():
        for r in range(max(len(run.rounds) for run in group)):
            pairs = [(run, run.rounds[r]) for run in group if r < len(run.rounds)]
            steered = [(d.steered, run.base.metrics) for run, d in pairs if d.steered is not None]
            done = [d for _, d in pairs]
            rows.append([
                name, str(r), cell(spread([s.log_odds - base.log_odds for s, base in steered]), signed=True),
                *(cell(spread([getattr(s, key) for s, _ in steered])) for key in ("free_trait", "sentence_ok")),
                cell(spread([d.trait_kept for d in done])), cell(spread([d.kl_prev for d in done]), 3),
                *(cell(spread([getattr(d, key) for d in done]))
                  for key in ("cosine_vector", "cosine_adapter", "cosine_shift")),
                ", ".join(d.verdict for d in done),
            ])  # fmt: skip
    return rows


def bar_rows(lines: Sequence[BarLine], seeds: Sequence[int]) -> list[list[str]]:
    """One row per arm and line, a column per seed, one for all seeds, and how many seeds meet it."""
    rows = []
    for (arm, name), found in rows_of(lines).items():
        some = next(iter(found.values()))
        judged = [line.met for seed, line in found.items() if seed is not None and line.met is not None]
        met = f"{sum(judged)} of {len(judged)}" if judged else "reported"
        cells = [bar_cell(found.get(seed)) for seed in (*seeds, None)]
        rows.append([arm, name, some.unit, *cells, met])
    return rows


def bar_summary(lines: Sequence[BarLine]) -> str:
    """One line per arm: how many lines of how many are met, and which are missed on how many seeds."""
    out = []
    for arm in dict.fromkeys(line.arm for line in lines):
        of_arm = [line for line in lines if line.arm == arm and not line.beside]
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


def arms_rows(arms: Sequence[Arm], runs: Sequence[ArmRun], common: Sequence[str]) -> list[list[str]]:
    """One row per arm: what to type, what its runs came to, and how long they took."""
    rows, groups = [], by_arm(runs)
    for arm in arms:
        group = groups.get(arm.name, [])
        typed = Arm(arm.name, (*common, *arm.options)).command
        verdicts = "; ".join(f"{run.seed}: {run.verdict}, best {run.best_round}" for run in group)
        early = "; ".join(f"{run.seed}: {run.ended_by}" for run in group if run.ended_by)
        seconds = ", ".join(f"{run.seconds:.0f}" for run in group)
        rows.append([arm.name, f"`{typed}`", verdicts or "no finished run", early or "-", seconds or "-"])
    return rows


def arms_text(
    arms: Sequence[Arm], runs: Sequence[ArmRun], levels: Sequence[float], common: Sequence[str], notes: Sequence[str]
) -> str:
    """All tables with their legends, as Markdown."""
    seeds = list(dict.fromkeys(run.seed for run in runs))
    base = runs[0].base.metrics
    head = (
        f"# Arms\n\n{len(runs)} runs, seeds {', '.join(map(str, seeds))}; within a seed all arms are measured on the "
        f"same {len(base.items)} forced-choice items and {len(base.replies)} replies."
    )
    parts = [head, *notes, markdown_table(["arm", "command", "verdicts", "ended early", "seconds"],
                                          arms_rows(arms, runs, common))]  # fmt: skip
    lines = bar_lines(runs)
    tables = [
        ("The bar", f"{bar_summary(lines)}\n\n{BAR_LEGEND}", ["arm", "line", "unit", *map(str, seeds), "all", "met"],
         bar_rows(lines, seeds)),
        ("Every arm, round by round", COMBINED_LEGEND, COMBINED_COLUMNS, combined_rows(runs)),
        (f"Against {runs[0].arm}, paired", PAIRED_LEGEND.format(first=runs[0].arm), PAIRED_COLUMNS,
         paired_rows(paired(runs))),
        ("At equal trait", MATCHED_LEGEND, MATCHED_COLUMNS, matched_rows(matched(runs, levels))),
        ("What each round was made of", MAKING_LEGEND, MAKING_COLUMNS, making_rows(runs)),
    ]  # fmt: skip
    for title, legend, columns, rows in tables:
        if rows:
            parts.append(f"## {title}\n\n{legend}\n\n{markdown_table(columns, rows)}")
    return "\n\n".join(parts) + "\n"


ROUND_FIGURES = (
    "stands", "outcome", "verdict", "kept", "kappa", "trait_kept", "kl_base", "kl_prev", "cosine_vector",
    "cosine_adapter", "cosine_shift",
)  # fmt: skip


def write_csv(path: Path, runs: Sequence[ArmRun]) -> None:
    """One line per run and state, unrounded: base, prompted, and per round steered, as trained, and what stands."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["arm", "seed", "round", "state", *FIGURES, *ROUND_FIGURES])
        for run in runs:
            for name in ("base", "prompted"):
                out.writerow([run.arm, run.seed, "", name, *figures(getattr(run, name), run.base).values()])
            for done in run.rounds:
                states = {"standing": run.standing(done.number)}
                if done.student is not None:
                    states = {"trained": done.student} | states
                for name, state in states.items():
                    values = [*figures(state, run.base).values(), *(getattr(done, key) for key in ROUND_FIGURES)]
                    out.writerow([run.arm, run.seed, done.number, name, *("" if v is None else v for v in values)])


def write_tables(
    out: Path, arms: Sequence[Arm], runs: Sequence[ArmRun], levels: Sequence[float], common: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:  # fmt: skip
    """Write `arms.md` and `arms.csv` into a folder; returns the text."""
    text = arms_text(arms, runs, levels, common, notes)
    (out / "arms.md").write_text(text, encoding="utf-8")
    write_csv(out / "arms.csv", runs)
    return text
