"""One plot per question: trait against coherence, the trajectory by round, and what the dose did.

Knows nothing of running; light background, colours that the colour-blind can tell apart, a marker of its own per arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from steer_heal.studies.arms.bar import SHARES, least_share
from steer_heal.studies.arms.comparing import Spread, by_arm, spread
from steer_heal.studies.arms.reading import ArmRun, figures
from steer_heal.studies.drawing import dress, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
"""Okabe and Ito's colours for all kinds of colour vision, without the yellow, which is too faint on white."""
MARKERS = "os^Dv<>PX*"
LINES = ("-", "--", ":")

STATE_PANELS = (
    ("shift", "log-odds shift (nats)"),
    ("trait", "free-text trait (share of replies)"),
    ("sentence_share", "sentence ok (share of base)"),
    ("distinct4_share", "distinct 4-grams (share of base)"),
    ("words_share", "words per reply (share of base)"),
    ("entropy_share", "token entropy (share of base)"),
)
DOSE_PANELS = (("kept", "kept by the filter (share)"), ("kappa", "kappa (multiplier of the doses)"))


def write_plots(out: Path, runs: Sequence[ArmRun]) -> list[Path]:
    """Write the three plots into a folder; returns their paths."""
    plots = {"trait_coherence": plot_trait_coherence, "trajectory": plot_trajectory, "dose": plot_dose}
    paths = [out / f"arms_{name}.png" for name in plots]
    for path, plot in zip(paths, plots.values(), strict=True):
        plot(path, runs)
    return paths


def styles(runs: Sequence[ArmRun]) -> dict[str, dict]:
    """Colour, marker and line of every arm, by its place."""
    out = {}
    for i, arm in enumerate(by_arm(runs)):
        out[arm] = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
        out[arm]["linestyle"] = LINES[i // len(PALETTE) % len(LINES)]
    return out


def plot_trait_coherence(path: Path, runs: Sequence[ArmRun]) -> None:
    """What does the trait cost? Base to last round, medians over seeds as a line, every seed's rounds as points."""
    from matplotlib.patheffects import withStroke

    figure = new_figure(13, 6)
    panels = [panel for panel in STATE_PANELS if panel[0] in ("sentence_share", "distinct4_share")]
    axes = figure.subplots(1, 2, sharex=True)
    for axis, (key, label) in zip(axes, panels, strict=True):
        for arm, group in by_arm(runs).items():
            style = styles(runs)[arm]
            both = [state_series(group, name) for name in ("shift", key)]
            for run_x, run_y in zip(*both, strict=True):
                axis.plot(run_x, run_y, alpha=0.3, markersize=4, **style | {"linestyle": ""})
            x, y = ([float("nan") if s is None else s.middle for s in spreads(series)] for series in both)
            axis.plot(x, y, markersize=7, linewidth=1.8, label=arm, **style)
            halo = [withStroke(linewidth=2.5, foreground="white")]
            letters = {"fontsize": 9, "fontweight": "bold", "color": style["color"], "path_effects": halo}
            place = {"xytext": (7, 5), "textcoords": "offset points", "annotation_clip": True, "zorder": 9}
            axis.annotate(str(len(x) - 2), (x[-1], y[-1]), **letters, **place)
            reverted = [figures(r.student, run.base) for run in group for r in run.rounds if r.student and not r.stands]
            shown = [(f["shift"], f[key]) for f in reverted if f[key] is not None]
            if shown:
                hollow = style | {"linestyle": "", "markerfacecolor": "none"}
                axis.plot(*zip(*shown, strict=True), markersize=6, alpha=0.7, **hollow)
        floor_line(axis, runs, key)
        without_shuffled(axis, runs, key)
        axis.axvline(0, color="#999999", linewidth=0.8)
        dress(axis, "log-odds shift of forced choice against base (nats)", label)
    points = "line: median of the seeds, small points: each seed, number: last round; hollow: reverted rounds"
    finish(figure, path, runs, f"states that stand; {points}; dotted: the bar")


def plot_trajectory(path: Path, runs: Sequence[ArmRun]) -> None:
    """How does each figure go, round by round? Median over seeds with the range as a band; base at -1."""
    measured = [figures(run.base, run.base) for run in runs]
    panels = [panel for panel in STATE_PANELS if any(base[panel[0]] is not None for base in measured)]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.6 * columns, 4.0 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (key, label) in zip(axes, panels, strict=False):
        for arm, group in by_arm(runs).items():
            band(axis, arm, styles(runs)[arm], state_series(group, key), -1)
        if key in ("shift", "trait"):
            prompted = median(f for run in runs if (f := figures(run.prompted, run.base)[key]) is not None)
            if key == "trait":
                axis.axhline(prompted, color="#777777", linestyle="-.", linewidth=1)
            else:  # far above: a line there would flatten every arm
                axis.set_title(f"prompted: {prompted:+.2f} nats", fontsize=9, loc="right", color="#777777")
        floor_line(axis, runs, key)
        without_shuffled(axis, runs, key)
        dress(axis, "round (-1: base)", label)
    finish(figure, path, runs, "states that stand; band: range over seeds; dash-dotted: prompted; dotted: the bar")


def plot_dose(path: Path, runs: Sequence[ArmRun]) -> None:
    """Does the walk keep the filter fed, and at which dose? Median over seeds with the range as a band."""
    figure = new_figure(11, 4.6)
    for axis, (key, label) in zip(figure.subplots(1, 2), DOSE_PANELS, strict=True):
        for arm, group in by_arm(runs).items():
            band(axis, arm, styles(runs)[arm], [[getattr(r, key) for r in run.rounds] for run in group], 0)
        axis.set_ylim(0, max(axis.get_ylim()[1], 1.05))
        dress(axis, "round", label)
    finish(figure, path, runs, "all rounds, reverted and starved ones included; band: range over seeds")


Series = list[list[float | None]]
"""One row per seed; rows end where their run did."""


def state_series(group: Sequence[ArmRun], key: str) -> Series:
    """Base, then the state that stands after every round that a run reached."""
    rows = []
    for run in group:
        states = [run.base, *(run.standing(done.number) for done in run.rounds)]
        rows.append([figures(state, run.base)[key] for state in states])
    return rows


def spreads(series: Series) -> list[Spread | None]:
    """Over the seeds that got there, place by place."""
    return [spread(values) for values in zip_longest(*series)]


def band(axis: Axes, arm: str, style: dict, series: Series, first: int) -> None:
    """Median as a line, range as a band; x counts from `first`."""
    points = [(first + i, s) for i, s in enumerate(spreads(series)) if s is not None]
    if not points:
        return
    x = [i for i, _ in points]
    low, middle, high = ([getattr(s, name) for _, s in points] for name in ("low", "middle", "high"))
    axis.plot(x, middle, label=arm, linewidth=1.8, markersize=5, **style)
    axis.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)


def floor_of(runs: Sequence[ArmRun], key: str) -> float | None:
    """Where the bar's dotted line goes: the least share, or the median of the prompted models'; None without one."""
    return median([least for run in runs if (least := least_share(key, run)) is not None] or [None])


def floor_line(axis: Axes, runs: Sequence[ArmRun], key: str) -> None:
    if (floor := floor_of(runs, key)) is not None:
        axis.axhline(floor, color="#333333", linestyle=":", linewidth=1.2)


def without_shuffled(axis: Axes, runs: Sequence[ArmRun], key: str) -> None:
    """The vertical scale is that of the other arms: shuffled pairs break the text, and would flatten all that differs.

    Where such an arm leaves the panel, a note says how far down it goes.
    """
    lowest = {True: [], False: []}
    for run in runs:
        found = [v for row in state_series([run], key) for v in row if v is not None]
        lowest[run.config["pairs"] == "shuffled"] += [(min(found), run.arm)] if found else []
    if key not in SHARES or not all(lowest.values()):
        return
    low, top = min(min(lowest[False])[0], floor_of(runs, key) or 1.0), axis.get_ylim()[1]
    if min(lowest[True])[0] < low - 0.1 * (top - low):
        axis.set_ylim(low - 0.08 * (top - low), top)
        value, arm = min(lowest[True])
        note = f"{arm} leaves the panel, down to {value:.2f}"
        axis.text(0.98, 0.02, note, transform=axis.transAxes, fontsize=8, ha="right", color="#555555")


def finish(figure: Figure, path: Path, runs: Sequence[ArmRun], caption: str) -> None:
    """One legend for all panels, a caption, and the file."""
    config, base = runs[0].config, runs[0].base.metrics
    model = config.get("model") or ("tiny-random" if config.get("fast_dev_run") else "pocket")
    seeds = ", ".join(map(str, dict.fromkeys(run.seed for run in runs)))
    what = f"{len(base.items)} held-out items in both orders, {len(base.replies)} replies"
    save(figure, path, f"{model}, seeds {seeds}; {what}; {caption}", legend="outside upper center", columns=8)
