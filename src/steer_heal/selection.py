"""What the filter's selection does to the length of the texts, and weights that undo it.

Knows nothing of models. Long texts have more chances to break, so survivors are shorter than what was sampled; trained
on as they are, they make the student shorter with every round.
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
