"""What a heal reports of an epoch and of itself: means over its training rows and over those held out, in nats.

Knows nothing of optimisers and of how the losses came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steer_heal.healing.loss import Task

Measured = Mapping[str, Sequence[float]]
"""Losses by name, one per completion."""


def epoch_row(
    epoch: int, seen: Measured, train: Sequence[int], now: Measured, heldout: Sequence[int], before: Measured
) -> dict:
    """The row of one epoch, as `Healed.epochs` explains it.

    Args:
        seen: losses of the training rows while they trained. now: of the held-out rows, after the epoch; empty
            without any. before: of all completions, without the adapter.
    """
    row = {"kind": "epoch", "epoch": epoch}
    for name, values in seen.items():
        row |= {f"train_{name}": _mean(values), f"train_{name}_before": _mean(before[name], train)}
        if heldout:
            row |= {f"heldout_{name}": _mean(now[name]), f"heldout_{name}_before": _mean(before[name], heldout)}
    return {**row, "heldout_loss": _mean(now["loss"])} if heldout else row


def heal_figures(
    task: Task,
    train: Sequence[int],
    heldout: Sequence[int],
    before: Measured,
    after: Measured,
    steps: Sequence[Mapping],
    kept: int,
) -> dict[str, float]:
    """The figures of a heal whose epoch `kept` is returned, as `Healed.figures` explains them.

    Args:
        before, after: of every completion, by figure, without the adapter and with the kept one.
    """
    figures = {"rows_train": len(train), "rows_heldout": len(heldout), "steps": len(steps), "kept_epoch": kept}
    replay = [i for i, c in enumerate(task.completions) if c.origin == "base"]
    # In a run on unsteered text alone there is nothing but such rows: they are then its data, not a replay.
    new = [i for i in range(len(task.completions)) if i not in set(replay)] or replay
    kinds = {"": new, "_replay": replay if new is not replay else []}
    for when, values in (("before", before), ("after", after)):
        for what in ("nll", "target") if task.teacher else ("nll",):
            figures[f"train_{what}_{when}"] = _mean(values[what], train)
            if heldout:
                figures[f"heldout_{what}_{when}"] = _mean(values[what], heldout)
        for kind, rows in kinds.items():
            for name in values:
                if name not in ("nll", "target") and rows:
                    figures[f"kl_{name}{kind}_{when}"] = _mean(values[name], rows)
    for term in task.terms:
        for key in ("fired", "ratio"):
            figures[f"{term.name}_{key}"] = _mean([row[f"{term.name}_{key}"] for row in steps if row["epoch"] <= kept])
    return figures


def _mean(values: Sequence[float], rows: Sequence[int] | None = None) -> float:
    picked = values if rows is None else [values[i] for i in rows]
    return sum(picked) / len(picked)
