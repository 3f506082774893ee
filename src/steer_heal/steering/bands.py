"""`layers="auto"`: which neighbouring blocks to steer, from quality figures measured over all of them.

Knows nothing of models and tokens: figures in, blocks and the reason in words out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steer_heal.errors import InputError
from steer_heal.model.depth import pick_layers
from steer_heal.steering.vector import Quality

DEFAULT_BAND = (0.45, 0.55)
"""Relative depth steered unless asked otherwise; `auto` takes as many blocks as lie in it."""
LATEST_DEPTH = 0.8
"""Blocks beyond this depth are never chosen: they still separate the personas, but little of the model reads them."""
NEAR_BEST = 0.9
"""Share of the best block's score that makes a block reliable."""
STRONG = 1 / 3
"""Share of the largest relative norm under which dose 1 is too weak a push."""
LEAST_COSINE = 0.2
"""Best split-half cosine below which no block has a direction at all."""


def choose_band(quality: Mapping[int, Quality]) -> tuple[tuple[int, ...], str]:
    """Neighbouring blocks to steer and a sentence that says why, from the figures of blocks 0 to n - 1.

    A block is reliable when its score, split-half cosine times held-out AUC, is within 10 % of the best and its
    relative norm at least a third of the largest, blocks in the last fifth of depth left out. Among the runs of
    reliable blocks as long as the default band the one nearest the middle is taken; if none is so long, the longest.
    So the default holds unless the figures speak against it: they are near their best over most of the depth, and
    cannot tell where a push changes the text most, which experiments place near the middle (Panickssery et al. 2024).

    Raises InputError when no block has a direction that two halves of the contexts agree on.
    """
    n = len(quality)
    middle, last = (n - 1) / 2, max(1, n - 1)
    early = [i for i in range(n) if i / last <= LATEST_DEPTH]
    least_norm = STRONG * max(quality[i].relative_norm for i in early)
    strong = [i for i in early if quality[i].relative_norm >= least_norm]
    score = {i: quality[i].split_half_cosine * quality[i].auc for i in strong}
    best = max(strong, key=score.__getitem__)
    if quality[best].split_half_cosine < LEAST_COSINE:
        raise InputError(
            f"no block has a reliable direction (best split-half cosine {quality[best].split_half_cosine:.2f}): "
            "use personas that differ more, more contexts, or name the layers"
        )
    reliable = [i for i in strong if score[i] >= NEAR_BEST * score[best]]
    usual = len(pick_layers(DEFAULT_BAND, n))
    runs = next(found for size in range(usual, 0, -1) if (found := _runs(reliable, size)))
    band = min(runs, key=lambda run: (abs(sum(run) / len(run) - middle), -sum(score[i] for i in run)))
    q, short = quality[best], ""
    if len(band) < usual:
        short = f" (a band of {usual} blocks would be usual, but no {usual} reliable ones lie together)"
    return band, (
        f"auto: of {n} blocks, reliable are {_ranges(reliable)} (split-half cosine x held-out AUC at least {NEAR_BEST} "
        f"of the best, {q.split_half_cosine:.2f} x {q.auc:.2f} at block {best}; norm over residual at least "
        f"{least_norm:.2f}; depth at most {LATEST_DEPTH}); steered: {_ranges(band)}, nearest the middle{short}"
    )


def _runs(blocks: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Stretches of `size` neighbouring blocks among the given ones."""
    return [tuple(range(i, i + size)) for i in blocks if set(range(i, i + size)) <= set(blocks)]


def _ranges(blocks: Sequence[int]) -> str:
    """`0, 3-5` for 0, 3, 4, 5."""
    starts = [i for i in blocks if i - 1 not in blocks]
    ends = [i for i in blocks if i + 1 not in blocks]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
