"""The pictures of docs/steering.md, measured on `pocket` with seed 0: `uv run python scripts/steering_pictures.py`.

Writes `steering_vector.png`, `steering_dose.png`, `steering_walk.png` and `steering_filter.png` to docs/ (or --out).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

import steer_heal as sh
from steer_heal.commands.script import run_script
from steer_heal.errors import InputError
from steer_heal.studies.dose_sweep.drawing import plot_sweep
from steer_heal.studies.dose_sweep.measuring import sweep
from steer_heal.studies.filter_report import ALL, FREE, LABELS, TIGHT, Proof, pocket_proof
from steer_heal.texts.generation import Request, generate_requests

DOSES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
WALK_DOSES = (1.0, 2.0)
RED, TEAL, BLUE, SAND, GREY = "#d1495b", "#00798c", "#30638e", "#edae49", "#8d8d8d"


def vector_picture(lm: sh.LM, trait: sh.Trait, path: Path) -> None:
    """Quality of the direction at every block."""
    whole = sh.extract(lm, trait.pos, trait.neg, trait.contexts, (0.0, 1.0))
    band = sh.extract(lm, trait.pos, trait.neg, trait.contexts).layers
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axis = figure.subplots()
    names = (
        ("split_half_cosine", "split-half cosine (reliability)", TEAL, "o-"),
        ("auc", "AUC on held-out pairs (separation)", RED, "s--"),
        ("relative_norm", "norm / residual norm", SAND, "^-"),
    )
    for name, label, colour, style in names:
        values = [getattr(whole.quality[i], name) for i in whole.layers]
        axis.plot(whole.layers, values, style, color=colour, label=label)
    axis.axvspan(band[0] - 0.2, band[-1] + 0.2, color=BLUE, alpha=0.1, label="default band, depth .45 to .55")
    axis.set_xticks(whole.layers)
    axis.set_xlabel("decoder block")
    axis.set_ylabel("share of 1 (no unit)")
    axis.set_ylim(0, 1.05)
    axis.grid(alpha=0.25)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    figure.supxlabel(f"pocket, {trait.name}, {len(trait.contexts)} contexts, read at the assistant tag", fontsize=8)
    figure.savefig(path, dpi=110)


def walks(lm: sh.LM, trait: sh.Trait) -> dict[str, sh.Walk]:
    """A ladder and a bisection that start far above the knee."""
    vector = sh.extract(lm, trait.pos, trait.neg, trait.contexts)
    filt = sh.CoherenceFilter.calibrate(lm, trait.prompts, system=trait.neutral, n=192, max_new_tokens=72)
    out = {}
    for mode in ("ladder", "bisect"):
        asked = 0

        def sample(kappa: float, n: int) -> list[sh.Completion]:
            nonlocal asked
            rows = [
                Request(trait.prompts[i % len(trait.prompts)], WALK_DOSES[i % 2] * kappa, i)
                for i in range(asked, asked + n)
            ]
            asked += n
            return generate_requests(lm, rows, vector, trait.neutral, 72, seed=asked)

        config = sh.DoseConfig(mode=mode, n_min=60)
        out[mode] = sh.walk_c(sample, lambda rows: filt(lm, rows), config)
    return out


def walk_picture(found: dict[str, sh.Walk], path: Path) -> None:
    """Survival and kappa of every step, what was decided, and how many are banked."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axis, (mode, walk) in zip(figure.subplots(1, 2, sharey=True), found.items(), strict=True):
        x = range(1, len(walk.steps) + 1)
        colours = [SAND if step.probe else TEAL for step in walk.steps]
        axis.bar(x, [step.survival for step in walk.steps], 0.55, color=colours, alpha=0.75)
        axis.plot(x, [step.kappa for step in walk.steps], "o-", color=RED, label="kappa")
        axis.axhline(walk.config.target, color="#555555", linestyle=":", label=f"target {walk.config.target:g}")
        for i, step in zip(x, walk.steps, strict=True):
            axis.text(
                i, 1.06, f"{step.decision}\n{step.survived} of {step.n}\nbank {step.banked}", ha="center", fontsize=8
            )
        axis.bar([0], [0], color=TEAL, alpha=0.75, label="survival of a batch")
        axis.bar([0], [0], color=SAND, alpha=0.75, label="survival of a probe")
        axis.set_title(f"{mode}: {'starved' if walk.starved else 'enough'}, {len(walk.banked)} kept", fontsize=10)
        axis.set_xticks(list(x))
        axis.set_xlim(0.4, len(walk.steps) + 0.6)
        axis.set_ylim(0, 1.35)
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axis.set_xlabel("step of the walk")
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    figure.axes[0].set_ylabel("survival (share); kappa (factor on the doses)")
    doses = " and ".join(f"{dose:g}" for dose in WALK_DOSES)
    figure.supxlabel(f"pocket, pocket-care, doses {doses} times kappa, at least 60 wanted, seed 0", fontsize=9)
    figure.savefig(path, dpi=110)


def filter_picture(proof: Proof, path: Path) -> None:
    """Surprise by label with the calibrated limits, and what each set of gates drops of the broken texts."""
    figure = Figure(figsize=(11, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows, limits = proof.judged[ALL], proof.filters[ALL].limits
    edges = [0.15 * 1.12**i for i in range(45)]
    for label, colour in zip(LABELS, (TEAL, SAND, RED), strict=True):
        values = [c.scores["nll"] for c, found in zip(rows, proof.labels, strict=True) if found == label]
        left.hist(values, edges, color=colour, alpha=0.6, label=f"{label} ({len(values)})")
    for key in ("nll.low", "nll.high"):
        left.axvline(limits[key], color="#333333", linestyle=":", linewidth=1.5)
        side, shift = ("right", 0.97) if key.endswith("low") else ("left", 1.03)
        left.text(limits[key] * shift, 62, f"limit {limits[key]:.2f}", ha=side, fontsize=8)
    left.set_xscale("log")
    left.set_xticks([0.2, 0.5, 1, 2, 5, 10, 20], ["0.2", "0.5", "1", "2", "5", "10", "20"])
    left.set_xlabel("nll under the original model (nats per token, log scale)")
    left.set_ylabel("replies")
    left.legend(title="by the checker", fontsize=8, title_fontsize=8)
    styles = {FREE: (GREY, "^:"), TIGHT: (SAND, "s--"), ALL: (TEAL, "o-")}
    for name, (colour, style) in styles.items():
        found = [(dose, proof.outcomes[name].dropped("broken", dose)) for dose in proof.doses]
        found = [(dose, share) for dose, share in found if share.n >= 10]
        ends = [[s.value - s.low for _, s in found], [s.high - s.value for _, s in found]]
        x, y = [dose for dose, _ in found], [s.value for _, s in found]
        right.errorbar(x, y, yerr=ends, fmt=style, color=colour, capsize=3, label=name)
    right.set_xlabel("dose (multiples of the vector)")
    right.set_ylabel("broken replies dropped (share)")
    right.set_ylim(-0.03, 1.05)
    right.legend(loc="lower right", fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.supxlabel(
        "pocket, pocket-care, 96 held-out prompts at each of 7 doses, limits fitted to 192 unsteered replies (joint "
        "false-drop budget 5 %), 95 % intervals, seed 0",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)


@dataclass(frozen=True)
class Arguments:
    """Where to draw."""

    out: Path = Path(__file__).resolve().parents[1] / "docs"
    """Folder of the four pictures."""


def draw(arguments: Arguments) -> None:
    """Draw all four. Raises InputError without their folder."""
    if not arguments.out.is_dir():
        raise InputError(f"--out {str(arguments.out)!r} is no folder: make it first")
    torch.set_num_threads(1)
    lm, trait = sh.load("pocket"), sh.Trait.load("pocket-care")
    vector_picture(lm, trait, arguments.out / "steering_vector.png")
    vector = sh.extract(lm, trait.pos, trait.neg, trait.contexts)
    plot_sweep(sweep(lm, trait, vector, DOSES, n_free=96), arguments.out / "steering_dose.png")
    walk_picture(walks(lm, trait), arguments.out / "steering_walk.png")
    filter_picture(pocket_proof(), arguments.out / "steering_filter.png")


main = partial(run_script, Arguments, draw, about=__doc__, name="steering_pictures")


if __name__ == "__main__":
    sys.exit(main())
