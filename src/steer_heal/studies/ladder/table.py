"""What came of each setting: one line with its seeds together, the anchors that were lost, and a CSV file.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from statistics import fmean

from steer_heal.studies.ladder.operation import Attempt, Setting, best
from steer_heal.studies.writing import grouped, markdown, write_csv, write_page

DECODED = """rows: new + anchor rows. nll: token mean over the new rows before -> after, nats. learned: tasks answered
right greedily. KL: token-mean KL(student||before) on the new rows and on the model's own replies to ALL anchors, nats.
anchors right: greedily, of those right before; replayable and never replayed are its two parts. decision: of the gate
on paired 95 % intervals; only keep is kept. Means over seeds, (lowest to highest). SHOULD: without anchor rows anchors
are lost and the gate reverts; if nothing is ever lost, the surgery is too gentle to tell settings apart."""


def table(attempts: Sequence[Attempt]) -> str:
    """One line per setting, seeds together, in the order of first appearance."""
    return markdown([_row(setting, some) for setting, some in grouped(attempts, lambda one: one.setting).items()])


def _row(setting: Setting, some: Sequence[Attempt]) -> dict[str, str]:
    def over_seeds(values: Sequence[int], of: int) -> str:
        ends = f" ({min(values)} to {max(values)})" if min(values) < max(values) else ""
        return f"{fmean(values):.{1 if ends else 0}f}{ends} / {of}"

    def mean(name: str, digits: int = 2) -> str:
        return f"{fmean(getattr(one, name) for one in some):.{digits}f}"

    first = some[0]
    outcomes = [one.decision.outcome for one in some]
    counted = [f"{outcomes.count(word)} {word}" for word in dict.fromkeys(outcomes)]
    return {
        "anchor share": f"{setting.share:.2f}",
        "lam": f"{setting.lam:g}",
        "KL on": setting.barrier_rows if setting.lam else "-",
        "row weights": setting.row_weights,
        "rows": f"{first.n_new} + {first.n_anchor}",
        "steps": str(first.steps),
        "nll of new rows": f"{mean('nll_before')} -> {mean('nll_after', 3)}",
        "learned": "-" if first.learned is None else over_seeds([one.learned for one in some], first.n_new),
        "KL new": mean("kl_new"),
        "KL anchors": mean("kl_anchors", 3),
        "anchors right": over_seeds([one.passed for one in some], first.n),
        "replayable": over_seeds([one.passed_pool for one in some], first.n_pool),
        "never replayed": over_seeds([one.passed - one.passed_pool for one in some], first.n - first.n_pool),
        "decision": outcomes[0] if len(some) == 1 else ", ".join(counted),
    }


def regressions(attempts: Sequence[Attempt]) -> str:
    """Per setting and seed the ids of the anchors that were lost."""
    return "\n".join(
        f"- {one.setting.name}, seed {one.seed} ({one.decision.outcome}): {', '.join(one.lost) or 'none lost'}"
        for one in attempts
    )


def as_written(one: Attempt) -> dict[str, object]:
    """An attempt as a line of the CSV file, unrounded."""
    knobs = {name: getattr(one.setting, name) for name in ("share", "lam", "barrier_rows", "row_weights")}
    figures = {f.name: getattr(one, f.name) for f in fields(one) if f.name not in ("setting", "decision", "replies")}
    return knobs | figures | {"decision": one.decision.outcome, "regressed": " ".join(one.lost)}


def write(out: Path, about: str, attempts: Sequence[Attempt], notes: Sequence[str]) -> str:
    """Write ladder.md and ladder.csv; returns the table with its words."""
    last = "Nothing was kept: every setting was reverted, the model stays as it was."
    if (top := best(attempts)) is not None:
        last = f"Best kept: {top.setting.name}, seed {top.seed}."
    parts = [f"{about}.", table(attempts), DECODED, last, *notes]
    write_page(out / "ladder.md", *parts, "Lost anchors:", regressions(attempts))
    write_csv(out / "ladder.csv", [as_written(one) for one in attempts])
    return "\n\n".join(parts)
