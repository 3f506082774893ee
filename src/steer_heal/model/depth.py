"""Which blocks of a model a band of relative depth means.

Knows nothing of models but their number of blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from steer_heal.arguments import fits, shortened
from steer_heal.errors import InputError


def pick_layers(layers: int | Sequence[float], n_layers: int) -> tuple[int, ...]:
    """Block indices of a band.

    An integer or several are indices (negative from the end). Two floats in 0..1 are a band of relative depth, block
    i of n lying at i / (n - 1); the band is rounded outwards, so it is never empty. Raises InputError for an index out
    of range, an empty selection or a band that is not 0 <= low <= high <= 1.
    """
    if isinstance(layers, (str, bytes)):
        raise InputError(f"layers {layers!r}: give block indices or a band of two fractions; `auto` is for extract")
    layers = (layers,) if fits(layers, int) else layers
    if not isinstance(layers, Sequence) or not all(fits(x, float) for x in layers):
        raise InputError(f"layers {shortened(layers)}: give a block, several in a list, or a band of two fractions")
    if len(layers) == 2 and any(isinstance(x, float) for x in layers):
        low, high = layers
        if not 0 <= low <= high <= 1:
            raise InputError(f"layer band {shortened(tuple(layers))}: give fractions with 0 <= low <= high <= 1")
        last = n_layers - 1
        first, final = math.floor(low * last + 1e-9), math.ceil(high * last - 1e-9)
        return tuple(range(first, final + 1))
    if not layers:
        raise InputError("no layers were given: name block indices or a band of two fractions")
    if not all(fits(x, int) and -n_layers <= x < n_layers for x in layers):
        raise InputError(f"layers {shortened(tuple(layers))}: give some of the model's blocks 0 to {n_layers - 1}")
    return tuple(sorted({int(x) % n_layers for x in layers}))
