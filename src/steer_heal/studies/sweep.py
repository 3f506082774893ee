"""A dose sweep: trait, answer mass, coherence of free text and perplexity at each dose, and where coherence gives way.

Knows nothing of training and rounds. The same items, prompts and seed are measured at every dose.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, evaluate
from steer_heal.loop.calibration import calibrate
from steer_heal.model import LM
from steer_heal.statistics import Estimate, bootstrap_mean, wilson
from steer_heal.steering import SteeringVector
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.completion import Completion
from steer_heal.trait import Trait

STEPS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Automatic doses, in multiples of the dose that `calibrate` finds for the target divergence."""
FLOOR = 0.9
"""Share of the unsteered coherence that a dose has to keep to lie before the knee."""


@dataclass(frozen=True)
class DosePoint:
    """What one dose did.

    Attributes:
        dose: multiples of the vector.
        metrics: forced choice and free text under that dose; `nll` is under the model as it is without steering.
        judged: the sampled replies, judged by the filter.
    """

    dose: float
    metrics: Metrics
    judged: tuple[Completion, ...]

    @property
    def kept(self) -> Estimate:
        """Share of the replies that the filter keeps, with Wilson's interval."""
        return wilson(sum(c.kept for c in self.judged), len(self.judged))

    @property
    def trait(self) -> Estimate | None:
        """Free-text trait by the checker over the replies that take a stance; None without either."""
        return _mean([(row.trait, row.prompt) for row in self.metrics.replies])

    @property
    def log_odds(self) -> Estimate:
        """Forced-choice log-odds of the trait in nats."""
        return _mean([(row.log_odds, row.id) for row in self.metrics.items])

    @property
    def sentence_ok(self) -> Estimate | None:
        """Share of sound sentences by the checker; None without one."""
        return _mean([(row.sentence_ok, row.prompt) for row in self.metrics.replies])

    @property
    def coherence(self) -> Estimate:
        """What the knee is read from: `sentence_ok` where the trait has a checker, else the share the filter keeps."""
        return self.sentence_ok or self.kept

    def row(self) -> dict[str, float | None]:
        """All figures by name, as in the CSV file."""
        m, out = self.metrics, {"dose": self.dose}
        named = {"trait": self.trait, "log_odds": self.log_odds, "sentence_ok": self.sentence_ok, "kept": self.kept}
        for name, found in named.items():
            out |= {
                name: found and found.value,
                f"{name}_low": found and found.low,
                f"{name}_high": found and found.high,
            }
        names = ("answer_mass", "decided", "reply_ok", "nll", "perplexity", "loop_rate", "finished_rate", "words",
                 "distinct4")  # fmt: skip
        return out | {name: getattr(m, name) for name in names}


def _mean(pairs: Sequence[tuple[float | None, str]]) -> Estimate | None:
    found = [(value, cluster) for value, cluster in pairs if value is not None]
    return bootstrap_mean([v for v, _ in found], [c for _, c in found]) if found else None


@dataclass(frozen=True)
class Sweep:
    """Result of `sweep`.

    Attributes:
        points: one per dose, ascending; the first is dose 0.
        floor: share of the unsteered coherence that the knee is defined by.
        model, trait, layers, seed: what was swept.
        notes: what a reader has to know, such as a divergence target that could not be reached.
    """

    points: tuple[DosePoint, ...]
    floor: float
    model: str
    trait: str
    layers: tuple[int, ...]
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def knee(self) -> DosePoint:
        """The largest dose such that neither it nor any smaller one falls under `floor` times the coherence at dose 0.

        It is the last point of the sweep where coherence never gives way, and dose 0 where it does so at once.
        """
        least = self.floor * self.points[0].coherence.value
        last = self.points[0]
        for point in self.points[1:]:
            if point.coherence.value < least:
                break
            last = point
        return last

    def knee_text(self) -> str:
        """The knee and its definition in one line."""
        kind = "sound sentences" if self.points[0].sentence_ok else "share kept by the filter"
        rule = f"{kind} at least {self.floor:g} of those at dose 0"
        knee = self.knee
        if knee is self.points[-1]:
            return f"knee: not reached up to dose {knee.dose:.3g} ({rule})"
        moved = knee.log_odds.value - self.points[0].log_odds.value
        return f"knee: dose {knee.dose:.3g} ({rule} there and at all smaller doses); log-odds {moved:+.2f} nats there"

    def caption(self) -> str:
        """What was measured, for tables and pictures."""
        first = self.points[0].metrics
        return (
            f"{self.model}, trait {self.trait}, blocks {', '.join(map(str, self.layers))}, seed {self.seed}; "
            f"{len(first.items)} items in both orders, {len(first.replies)} replies per dose, 95 % intervals"
        )

    def table(self) -> str:
        """The figures by dose as lines of text."""
        columns = ("trait", "log_odds", "answer_mass", "sentence_ok", "kept", "nll", "perplexity", "loop_rate", "words")
        lines = [self.caption(), "", "   dose " + " ".join(f"{name:>11s}" for name in columns)]
        for point in self.points:
            row = point.row()
            cells = [f"{'-':>11s}" if row[name] is None else f"{row[name]:11.3g}" for name in columns]
            lines.append(f"{point.dose:7.3g} {' '.join(cells)}{'  <- knee' if point is self.knee else ''}")
        return "\n".join([*lines, "", self.knee_text(), *self.notes])

    def texts(self) -> str:
        """One whole reply per dose, to the same prompt."""
        lines = [f"prompt: {self.points[0].judged[0].prompt}"]
        for point in self.points:
            c = point.judged[0]
            verdict = "kept" if c.kept else f"dropped: {c.dropped_by}"
            lines.append(f"\n[dose {point.dose:.3g}, {verdict}]\n{c.text or '(empty)'}")
        return "\n".join(lines)

    def save_csv(self, path: Path) -> None:
        """One line per dose."""
        rows = [point.row() | {"knee": point is self.knee} for point in self.points]
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def automatic_doses(
    lm: LM, vector: SteeringVector, trait: Trait, target_kl: float = 1.0, n: int = 16, seed: int = 0
) -> tuple[tuple[float, ...], str]:
    """Doses around the one whose divergence (rmse over positions) is `target_kl` nats, and a line that says so."""
    prompts = trait.prompts[:: max(1, len(trait.prompts) // n)][:n]
    found = calibrate(lm, vector, prompts, target_kl, system=trait.neutral, max_new_tokens=48, seed=seed)
    said = f"dose {found.dose:.3g} diverges by {found.divergence:.2f} nats (rmse, target {target_kl:g}"
    said += ")" if found.reached else "; NOT reached up to 1000 times unit norm)"
    return (0.0, *(found.dose * step for step in STEPS)), said


def sweep(
    lm: LM,
    trait: Trait,
    vector: SteeringVector,
    doses: Sequence[float],
    *,
    floor: float = FLOOR,
    n_items: int | None = None,
    n_free: int = 48,
    max_new_tokens: int = 72,
    seed: int = 0,
    filt: CoherenceFilter | None = None,
    notes: Sequence[str] = (),
    progress: Callable[[DosePoint], None] | None = None,
) -> Sweep:
    """Measure every dose; dose 0 is added where it is missing.

    Args:
        doses: multiples of the vector, 0 or larger.
        floor: share (0..1) of the unsteered coherence that defines the knee.
        n_items, n_free: forced-choice items (None: all) and sampled replies per dose.
        filt: the filter that judges the replies; None calibrates one on the model as it is.
        progress: called after each dose.

    Raises InputError for no dose, a negative or infinite one, a floor outside 0..1, fewer than 2 replies.
    """
    if not doses or not all(isinstance(d, (int, float)) and 0 <= d < math.inf for d in doses):
        raise InputError(f"doses {tuple(doses)}: give finite numbers of at least 0")
    if not 0 < floor <= 1:
        raise InputError(f"floor {floor}: give a share above 0 and up to 1, such as 0.9")
    if n_free < 2:
        raise InputError(f"n_free {n_free}: a dose needs at least 2 replies, 48 is a good number")
    filt = filt or CoherenceFilter.calibrate(
        lm, trait.prompts, system=trait.neutral, seed=seed, max_new_tokens=max_new_tokens
    )
    points = []
    for dose in sorted({0.0, *map(float, doses)}):
        judged: list[Completion] = []

        def scorer(completions: list[Completion], judged: list[Completion] = judged) -> list[float]:
            judged += filt(lm, completions)  # not steered here: this is the model's own surprise
            return [c.scores.get("nll", math.nan) for c in judged]

        metrics = evaluate(
            lm, trait, vector=vector, dose=dose, n_items=n_items, n_free=n_free, max_new_tokens=max_new_tokens,
            seed=seed, scorer=scorer,
        )  # fmt: skip
        points.append(DosePoint(dose, metrics, tuple(judged)))
        if progress:
            progress(points[-1])
    return Sweep(tuple(points), floor, lm.name, trait.name, vector.layers, seed, tuple(notes))


def plot_sweep(found: Sweep, path: Path) -> None:
    """Dose against trait, coherence and perplexity; the knee as a dotted line."""
    from matplotlib.figure import Figure

    points = found.points
    x = [p.dose for p in points]
    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    axes = figure.subplots(1, 4)

    def line(axis, values: Sequence[Estimate | None], label: str, colour: str, style: str = "o-") -> None:
        pairs = [(dose, v) for dose, v in zip(x, values, strict=True) if v is not None]
        if not pairs:
            return
        shown = [v.value for _, v in pairs]
        ends = [[max(0, v.value - v.low) for _, v in pairs], [max(0, v.high - v.value) for _, v in pairs]]
        axis.errorbar([d for d, _ in pairs], shown, yerr=ends, fmt=style, color=colour, capsize=3, label=label)

    has_trait = any(p.trait for p in points)
    if has_trait:
        line(axes[0], [p.trait for p in points], "trait", "#d1495b")
        axes[0].set_ylim(-0.03, 1.05)
    else:
        axes[0].text(0.5, 0.5, "no checker for this trait", ha="center", transform=axes[0].transAxes)
    axes[0].set_ylabel("trait: free text (share of replies)")
    line(axes[1], [p.log_odds for p in points], "log-odds", "#d1495b")
    axes[1].set_ylabel("trait: forced choice, log-odds (nats)")
    line(axes[2], [p.sentence_ok for p in points], "sound sentences (checker)", "#00798c")
    line(axes[2], [p.kept for p in points], "kept by the filter", "#30638e", "s--")
    axes[2].plot(x, [p.metrics.answer_mass for p in points], "^:", color="#8d8d8d", label="answer mass")
    axes[2].set_ylabel("coherence (share)")
    axes[2].set_ylim(-0.03, 1.42)  # room for the legend above the data
    axes[2].set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes[2].legend(loc="upper right", fontsize=8)
    axes[3].plot(x, [p.metrics.perplexity for p in points], "o-", color="#edae49")
    axes[3].set_yscale("log")
    axes[3].set_ylabel("perplexity under the unsteered model")
    for axis in axes:
        axis.axvline(found.knee.dose, color="#555555", linestyle=":", linewidth=1.3)
        axis.set_xlim(-0.04 * x[-1], 1.04 * x[-1])
        axis.set_xlabel("dose (multiples of the vector)")
        axis.grid(alpha=0.25)
    figure.suptitle(found.knee_text(), fontsize=10)
    figure.supxlabel(found.caption(), fontsize=9)
    figure.savefig(path, dpi=110)
