"""What a dose sweep found: trait, answer mass, coherence and perplexity at each dose, and where coherence gives way.

Knows nothing of models and of how the doses were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steer_heal.evaluation import Metrics
from steer_heal.statistics import Estimate, bootstrap_mean, wilson
from steer_heal.texts.completion import Completion


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
        out = {"dose": self.dose}
        named = {"trait": self.trait, "log_odds": self.log_odds, "sentence_ok": self.sentence_ok, "kept": self.kept}
        for name, e in named.items():
            out |= {name: e and e.value, f"{name}_low": e and e.low, f"{name}_high": e and e.high}
        names = "answer_mass decided reply_ok nll perplexity loop_rate finished_rate words distinct4"
        return out | {name: getattr(self.metrics, name) for name in names.split()}


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

    def rows(self) -> list[dict[str, float | bool | None]]:
        """All figures, one row per dose, as in the CSV file."""
        return [point.row() | {"knee": point is self.knee} for point in self.points]
