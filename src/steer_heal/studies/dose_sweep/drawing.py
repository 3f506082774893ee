"""The picture of a dose sweep: dose against trait, coherence and perplexity, with the knee marked.

Knows nothing of how the doses were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steer_heal.statistics import Estimate
from steer_heal.studies.dose_sweep.found import Sweep
from steer_heal.studies.drawing import dress, new_figure, save


def plot_sweep(found: Sweep, path: Path) -> None:
    """Write the picture; the knee is a dotted line."""
    points = found.points
    x = [p.dose for p in points]
    figure = new_figure(13.5, 4.2)
    free, forced, coherence, surprise = figure.subplots(1, 4)

    def line(axis, values: Sequence[Estimate | None], label: str, colour: str, style: str = "o-") -> None:
        pairs = [(dose, v) for dose, v in zip(x, values, strict=True) if v is not None]
        if not pairs:
            return
        shown = [v.value for _, v in pairs]
        ends = [[max(0, v.value - v.low) for _, v in pairs], [max(0, v.high - v.value) for _, v in pairs]]
        axis.errorbar([d for d, _ in pairs], shown, yerr=ends, fmt=style, color=colour, capsize=3, label=label)

    if any(p.trait for p in points):
        line(free, [p.trait for p in points], "trait", "#d1495b")
        free.set_ylim(-0.03, 1.05)
    else:
        free.text(0.5, 0.5, "no checker for this trait", ha="center", transform=free.transAxes)
    line(forced, [p.log_odds for p in points], "log-odds", "#d1495b")
    line(coherence, [p.sentence_ok for p in points], "sound sentences (checker)", "#00798c")
    line(coherence, [p.kept for p in points], "kept by the filter", "#30638e", "s--")
    coherence.plot(x, [p.metrics.answer_mass for p in points], "^:", color="#8d8d8d", label="answer mass")
    coherence.set_ylim(-0.03, 1.42)  # room for the legend above the data
    coherence.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    coherence.legend(loc="upper right", fontsize=8)
    surprise.plot(x, [p.metrics.perplexity for p in points], "o-", color="#edae49")
    surprise.set_yscale("log")
    labels = {
        free: "trait: free text (share of replies)",
        forced: "trait: forced choice, log-odds (nats)",
        coherence: "coherence (share)",
        surprise: "perplexity under the unsteered model",
    }
    for axis, label in labels.items():
        axis.axvline(found.knee.dose, color="#555555", linestyle=":", linewidth=1.3)
        axis.set_xlim(-0.04 * x[-1], 1.04 * x[-1])
        dress(axis, "dose (multiples of the vector)", label)
    figure.suptitle(found.knee_text(), fontsize=10)
    save(figure, path, found.caption())
