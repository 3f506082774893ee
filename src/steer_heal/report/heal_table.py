"""The live table of a heal as lines of text: means over some steps each, and the two nll after every epoch.

Knows nothing of training and of printing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steer_heal.report.tables import number, share

ROWS = 12
"""Rows of steps that the table of one heal has, about."""
FIGURES = {"mean": 3, "agg": 3, "max": 2, "fired": 2, "ratio": 2, "lam": 2}
"""Figures of a barrier in a step's row (`NAME_mean` and so on), and their digits in the table."""
HARDLY = {"fired": 0.01, "ratio": 0.05}
"""A barrier with less of both (share of the rows, its gradient over that of the nll) is said to have hardly fired."""
LEGEND = (
    "step: steps taken; each row: means over those since the row before (max: the largest). nll: per token; D: "
    "divergence from the reference over a completion's tokens, as mean, aggregated (what the budget is about) and its "
    "largest, nats; fired: share of the rows over budget; ratio: gradient norm at the hidden states, barrier / nll; "
    "lam: weight of the barrier; grad: norm of the adapter's gradient; lr: learning rate."
)


def barriers(step: Mapping) -> list[str]:
    """The references whose barrier a step's row has figures of; none in a plain nll heal."""
    return [key.removesuffix("_agg") for key in step if key.endswith("_agg")]


def header(step: Mapping) -> str:
    """Names of the columns of `line`; a barrier's begin with its reference."""
    cells = [f"{'step':>5}", f"{'nll':>6}"]
    for name in barriers(step):
        cells.append(f"| D {name}:" + "".join(f"{label:>6}" for label in FIGURES))
    return " ".join([*cells, f"| {'grad':>6}", f"{'lr':>8}"])


def line(steps: Sequence[Mapping]) -> str:
    """One row of the table: how many steps were taken by then, and what these came to."""

    def mean(key: str) -> float:
        return sum(step[key] for step in steps) / len(steps)

    cells = [f"{steps[-1]['step'] + 1:>5}", f"{mean('nll'):>6.3f}"]
    for name in barriers(steps[-1]):
        found = {key: mean(f"{name}_{key}") for key in FIGURES} | {"max": max(step[f"{name}_max"] for step in steps)}
        # + 0.0: a divergence of -1e-9 is rounding, and no negative zero.
        figures = "".join(f"{round(value, FIGURES[key]) + 0.0:>6.{FIGURES[key]}f}" for key, value in found.items())
        cells.append("| " + " " * len(f"D {name}:") + figures)
    return " ".join([*cells, f"| {mean('grad_norm'):>6.2f}", f"{steps[-1]['lr']:>8.1e}"])


def epoch_line(row: Mapping) -> str:
    """Training and held-out nll of an epoch, each against its value before the training."""
    train = f"nll train {number(row['train_nll'])} (before training {number(row['train_nll_before'])})"
    if "heldout_nll" not in row:
        return f"epoch {row['epoch']}: {train}, nothing held out"
    held_out = f"held-out {number(row['heldout_nll'])} (before {number(row['heldout_nll_before'])})"
    return f"epoch {row['epoch']}: {train}, {held_out}"


def hardly_fired(heal: Mapping) -> list[str]:
    """A warning for each barrier that acted so rarely and weakly that the heal was close to one without it."""
    figures = heal["figures"]
    rare = [
        name for name in heal["tau"]
        if figures[f"{name}_fired"] > 0 and all(figures[f"{name}_{key}"] < limit for key, limit in HARDLY.items())
    ]  # fmt: skip
    return [
        f"the barrier against {name} hardly fired ({share(figures[f'{name}_fired'])} of rows): this was close to a "
        "plain nll heal; a lower tau makes it act"
        for name in rare
    ]
