"""`Probe`: the figures of an adapter's shift, and what each of them says: content, or one constant shift.

Knows nothing of how they were measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from steer_heal.shown import brief
from steer_heal.statistics import Estimate

SAME_SHIFT = 0.98
"""Cosine from which two adapters count as one shift: under 4 % of either's energy is its own (1 - .98^2)."""
OTHER_SHIFT = 0.90
"""Cosine up to which they count as two: at least 19 % of the energy is not shared."""
CONSTANT_SHARE = 0.90
"""Share of the shift (of its energy, of its peakedness) from which its mean over positions is nearly all of it."""
VARIED_SHARE = 0.50
"""Share up to which at least half of the shift depends on the text."""
SAME_GAIN = 0.05
"""Part of the real pairs' gain in nll that shuffled pairs may miss and still count as equal to them."""


@dataclass(frozen=True)
class Sign:
    """One figure's word on the question: `constant`, `content` or `open`, and the figure in plain words."""

    says: str
    text: str


@dataclass(frozen=True)
class Probe:
    """Figures of a real adapter beside one trained on shuffled pairs, on held-out completions of real pairs.

    Attributes:
        positions, vocab: completion positions measured, size of the vocabulary.
        cosine: between the two adapters' logit shifts, all positions together.
        rest_cosine: the same without the shifts' means; None where a shift is all mean.
        mean_share: share of the real adapter's shift (energy) that its mean over positions explains.
        entropy: of softmax(mean shift) in nats, to be read against log(vocab).
        peak_share: how much of the single positions' peakedness the mean shift keeps.
        size: root mean square of the real adapter's shift per token, in logits.
        nll: token-mean nll of the held-out completions by state (`base`, `real`, `shuffled`, `unsteered`), nats.
        gain: nll base - real, `lead`: nll shuffled - real; nats, paired, clustered by prompt.
        unsteered_cosine: between the shifts of the real adapter and of one trained on unsteered text; None without.
        weight_cosines: cosine of the adapters' deltas with the real one's, by name; empty for states without adapters.
    """

    positions: int
    vocab: int
    cosine: float
    rest_cosine: float | None
    mean_share: float
    entropy: float
    peak_share: float
    size: float
    nll: Mapping[str, float]
    gain: Estimate
    lead: Estimate
    unsteered_cosine: float | None
    weight_cosines: Mapping[str, float]

    __repr__ = brief

    @property
    def log_vocab(self) -> float:
        """log V, nats: the entropy of a mean shift that favours no token."""
        return math.log(self.vocab)

    @property
    def signs(self) -> tuple[Sign, ...]:
        """What each figure says."""
        found = [
            Sign(_high(self.cosine, SAME_SHIFT, OTHER_SHIFT), f"cosine to the shuffled-pairs shift {self.cosine:+.3f}"),
            Sign(
                _high(self.mean_share, CONSTANT_SHARE, VARIED_SHARE),
                f"the mean over positions explains {self.mean_share:.0%} of the shift",
            ),
            Sign(
                _high(self.peak_share, CONSTANT_SHARE, VARIED_SHARE),
                f"entropy of softmax(mean shift) {self.entropy:.3f} of {self.log_vocab:.3f} nats: the mean keeps "
                f"{self.peak_share:.0%} of the single positions' peakedness",
            ),
            Sign(self._nll_says(), f"held-out nll: real better than base by {self.gain}, than shuffled by {self.lead}"),
        ]
        if self.unsteered_cosine is not None:
            says = _high(self.unsteered_cosine, SAME_SHIFT, OTHER_SHIFT)
            found.append(Sign(says, f"cosine to the unsteered run's shift {self.unsteered_cosine:+.3f}"))
        return tuple(found)

    def _nll_says(self) -> str:
        if not self.gain.low > 0:
            return "open"  # nothing was learnt that held-out text could show
        allowed = SAME_GAIN * self.gain.value
        if self.lead.high <= allowed:
            return "constant"
        return "content" if self.lead.low > 0 and self.lead.value > allowed else "open"

    @property
    def verdict(self) -> str:
        """`content-free` when every figure says constant; `content` when nll says content and none constant."""
        says = [sign.says for sign in self.signs]
        if all(word == "constant" for word in says):
            return "content-free"
        return "content" if self._nll_says() == "content" and "constant" not in says else "mixed"

    @property
    def text(self) -> str:
        """The verdict in one paragraph, every figure with what it says."""
        meaning = {
            "content-free": "one constant shift of the logits: shuffled pairs give the same",
            "content": "the effect depends on the text, and real pairs teach what shuffled ones cannot",
            "mixed": "the figures do not agree",
        }[self.verdict]
        parts = "; ".join(f"{sign.text} ({sign.says})" for sign in self.signs)
        missing = "" if self.unsteered_cosine is not None else " No unsteered run was compared."
        return f"{self.verdict}: {meaning}. {parts}.{missing}"


def _high(value: float, constant: float, content: float) -> str:
    return "constant" if value >= constant else "content" if value <= content else "open"
