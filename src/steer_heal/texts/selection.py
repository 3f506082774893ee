"""What a round's selection does to length and diversity of the texts, and what undoes it.

Knows nothing of models. Long texts have more chances to break and rare wordings look improbable, so what survives the
filter is shorter and more alike than what was sampled; trained on as it is, it makes the student so with every round.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

STRATA = 5
"""Length strata, of equal share in the reference."""
LARGEST = 3.0
"""A weight may be this many times larger or smaller than 1, so that a few texts do not become the data."""


def length_weights(lengths: Sequence[int], reference: Sequence[int], strata: int = STRATA) -> list[float]:
    """Post-stratification weights: with them the texts' lengths are spread over the strata as the reference's are.

    The strata are cut at the reference's quantiles; a text's weight is the share of its stratum in the reference over
    its share among the texts (Holt and Smith 1979), within [1/3, 3], scaled to a mean of 1.

    Args:
        lengths: of the texts, in tokens.
        reference: lengths as they should be, those of the original model's own unsteered texts, in tokens.
        strata: number of strata; ties can leave fewer.
    """
    ordered = sorted(reference)
    cuts = sorted({ordered[len(ordered) * k // strata] for k in range(1, strata)})
    ours, theirs = ([bisect_right(cuts, n) for n in some] for some in (lengths, ordered))
    weights = []
    for stratum in ours:
        wanted = theirs.count(stratum) / len(theirs)
        weights.append(min(max(wanted * len(ours) / ours.count(stratum), 1 / LARGEST), LARGEST))
    return [w * len(weights) / sum(weights) for w in weights]


def held_temperature(start: float, gain: float, diversity: float, reference: float) -> float:
    """Sampling temperature of a round's texts: start * (1 + gain * share of the reference's diversity that is lost).

    Proportional feedback: as the student's replies sharpen, its training texts are sampled hotter. Never under `start`.

    Args:
        start: temperature while nothing is lost.
        gain: relative rise of the temperature per share of diversity lost; 0: none.
        diversity: of the student's held-out replies (distinct 4-grams); reference: as it should be.
    """
    return start * (1 + gain * max(0.0, 1 - diversity / reference)) if reference > 0 else start
