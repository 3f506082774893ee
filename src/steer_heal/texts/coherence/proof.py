"""What the perplexity gates add to the model-free ones, on completions with known labels, at one false-drop budget.

Knows nothing of how completions were sampled and who labelled them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from steer_heal.statistics import Estimate, paired_difference, wilson
from steer_heal.texts.coherence.calibration import joint_limits, slack
from steer_heal.texts.coherence.filter import CoherenceFilter
from steer_heal.texts.coherence.rules import RULES, default_limits
from steer_heal.texts.completion import Completion

LABELS = ("good", "flawed", "broken")
ALL, FREE, TIGHT, SURPRISE = "all gates", "model-free", "model-free, tightened", "perplexity alone"


def label_of(sentence_ok: float, reply_ok: bool) -> str:
    """`good`: sound as a whole; `broken`: at most half of its sentences are sound; `flawed`: in between."""
    return "good" if reply_ok else "broken" if sentence_ok <= 0.5 else "flawed"


def filters(own: Sequence[Completion], false_drop: float = 0.05) -> dict[str, CoherenceFilter]:
    """Filters fitted to the same scored completions of a model under the same joint budget, by name.

    `model-free` is what calibration makes of the gates on text alone: their fixed limits, widened where the model's own
    text breaks them, which may leave most of the budget unused. `model-free, tightened` spends all of it: every limit
    on text and length is set by the data. That is the fair opponent of `all gates`, which spend it too.
    `perplexity alone` has the whole budget for the perplexity gates.
    """
    text = [replace(c, scores={k: v for k, v in c.scores.items() if not k.startswith("nll")}) for c in own]
    model = [replace(c, scores={k: v for k, v in c.scores.items() if k.startswith("nll")}) for c in own]
    rules = [rule for rule in RULES if rule.kind in ("text", "length")]
    data = [c.scores for c in text]
    tight = joint_limits(data, rules, int(false_drop * len(data)), {rule.key: slack(rule) for rule in rules})
    free = frozenset(CoherenceFilter().gates) - {"perplexity"}
    return {
        FREE: replace(CoherenceFilter.fit(text, false_drop=false_drop), gates=free),
        TIGHT: CoherenceFilter(default_limits() | tight, free),
        SURPRISE: CoherenceFilter.fit(model, false_drop=false_drop).only("perplexity"),
        ALL: CoherenceFilter.fit(own, false_drop=false_drop),
    }


@dataclass(frozen=True)
class Outcome:
    """What one filter did to labelled completions: (dose, label) -> (dropped, of)."""

    counts: Mapping[tuple[float, str], tuple[int, int]]

    def dropped(self, label: str, dose: float | None = None) -> Estimate:
        """Share of a label's completions that was dropped, at one dose or at all, with Wilson's interval."""
        cells = [n for (d, lab), n in self.counts.items() if lab == label and dose in (None, d)]
        return wilson(sum(a for a, _ in cells), sum(b for _, b in cells))


@dataclass(frozen=True)
class Proof:
    """Outcomes of all filters on the same completions.

    Attributes:
        doses: doses of the completions.
        outcomes: by filter name; `held_out`: share of the unsteered completions among them that each filter drops.
        gain: by opponent, all gates less the opponent in the share dropped, by label, intervals over prompts.
        judged: by filter name, the completions in their order with the verdict.
        labels: the completions' labels. filters: the filters, by name.
    """

    doses: tuple[float, ...]
    outcomes: Mapping[str, Outcome]
    held_out: Mapping[str, Estimate]
    gain: Mapping[str, Mapping[str, Estimate]]
    judged: Mapping[str, Sequence[Completion]]
    labels: Sequence[str]
    filters: Mapping[str, CoherenceFilter]

    def texts(self, name: str, label: str, kept: bool) -> list[Completion]:
        """Completions of a label that a filter kept, or dropped."""
        pairs = zip(self.judged[name], self.labels, strict=True)
        return [c for c, found in pairs if found == label and c.kept == kept]

    def table(self) -> str:
        """Share of the broken and flawed dropped and of the good kept, by filter and dose, 95 % intervals."""
        lines = []
        for name, outcome in self.outcomes.items():
            lines += [f"\n{name}: drops {_percent(self.held_out[name])} of fresh unsteered completions"]
            lines += ["  dose   broken dropped             flawed dropped             good kept"]
            for dose in (*self.doses, None):
                cells = [_cell(outcome.dropped(label, dose), label == "good") for label in ("broken", "flawed", "good")]
                lines.append(f"  {'all' if dose is None else format(dose, '.3g'):>4s}   " + " ".join(cells))
        for name, gains in self.gain.items():
            shown = ", ".join(f"{label} {gain}" for label, gain in gains.items())
            lines.append(f"\nshare dropped, all gates less {name!r}: {shown}")
        return "\n".join(lines)


def prove(fitted: Mapping[str, CoherenceFilter], scored: Sequence[Completion], labels: Sequence[str]) -> Proof:
    """Judge the same scored and labelled completions with every filter."""
    judged = {name: filt.judge(scored) for name, filt in fitted.items()}
    doses = tuple(sorted({c.dose for c in scored}))
    outcomes, held_out, gain = {}, {}, {}
    for name, rows in judged.items():
        counts = {(dose, label): (0, 0) for dose in doses for label in LABELS}
        for c, label in zip(rows, labels, strict=True):
            dropped, n = counts[c.dose, label]
            counts[c.dose, label] = (dropped + (not c.kept), n + 1)
        outcomes[name] = Outcome(counts)
        plain = [c for c in rows if c.dose == 0]
        held_out[name] = wilson(sum(not c.kept for c in plain), len(plain))
    for name in fitted:
        if name != ALL:
            gain[name] = {label: found for label in LABELS if (found := _gain(judged, name, labels, label))}
    return Proof(doses, outcomes, held_out, gain, judged, labels, fitted)


def _gain(judged, name: str, labels: Sequence[str], label: str) -> Estimate | None:
    picked = [i for i, found in enumerate(labels) if found == label]
    if not picked:
        return None
    before, after = ([float(not judged[which][i].kept) for i in picked] for which in (name, ALL))
    return paired_difference(before, after, [judged[ALL][i].prompt for i in picked])


def _percent(share: Estimate) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}] of {share.n}"


def _cell(dropped: Estimate, kept: bool) -> str:
    if dropped.n == 0:
        return f"{'-':26s}"
    low, high = (1 - dropped.high, 1 - dropped.low) if kept else (dropped.low, dropped.high)
    value = 1 - dropped.value if kept else dropped.value
    return f"{f'{value:4.0%} [{low:3.0%}, {high:4.0%}] of {dropped.n}':26s}"
