"""Settings of the walk, with one clear error per impossible value.

Knows nothing of sampling and judging.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from steer_heal.arguments import check_fields
from steer_heal.errors import InputError
from steer_heal.shown import brief

MODES = ("ladder", "bisect", "grid")


@dataclass(frozen=True)
class DoseConfig:
    """Settings of the walk.

    Attributes:
        kappa_start: First and largest multiplier of the doses (no unit; 1: the doses as configured).
        kappa_floor: Smallest multiplier of the doses; below it text is base-like and teaches nothing.
        shrink: Factor on kappa when too few survive.
        target: Share of a batch (0..1) that has to survive, else kappa falls.
        n_min: Completions to bank per round before the walk is content.
        batch: Completions per batch of the walk.
        max_batches: Batches at most, whatever their kappa; a round with fewer than 30 survivors (or n_min, if that is
            less) by then is starved.
        mode: ladder: batches down from kappa_start; bisect: small probes in log kappa first, then batches; grid: the
            first batch shared out among several kappas, then batches at the best of them.
        probe: Completions per probe; `bisect` only.
        max_probes: Probes at most; `bisect` only.
        resolution: Ratio of the bracket's ends at which the search stops; `bisect` only.
        grid: Kappas in the first batch, spaced evenly in log kappa from start to floor; `grid` only.

    Raises InputError on an impossible value.
    """

    kappa_start: float = 1.0
    kappa_floor: float = 0.2
    shrink: float = 0.7
    target: float = 0.25
    n_min: int = 30
    batch: int = 48
    max_batches: int = 6
    mode: str = "ladder"
    probe: int = 8
    max_probes: int = 6
    resolution: float = 1.25
    grid: int = 6

    __repr__ = brief

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.kappa_floor <= self.kappa_start < math.inf:
            raise InputError(
                f"kappa runs from {self.kappa_start} down to {self.kappa_floor}: give 0 < kappa_floor <= kappa_start"
            )
        if not 0 < self.shrink < 1:
            raise InputError(f"shrink {self.shrink}: kappa only falls with a factor between 0 and 1, such as 0.7")
        if not 0 < self.target <= 1:
            raise InputError(f"target {self.target}: the share that has to survive lies between 0 and 1, such as 0.25")
        for name in ("n_min", "batch", "max_batches", "probe", "max_probes", "grid"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} {value}: give a whole number of at least 1")
        if self.grid < 2:
            raise InputError(f"grid {self.grid}: give at least 2 kappas")
        if self.mode not in MODES:
            raise InputError(f"dose mode {self.mode!r} is unknown: use {', '.join(MODES)}")
        if not 1 < self.resolution < math.inf:
            raise InputError(f"resolution {self.resolution}: the bracket's ratio has to be above 1, such as 1.25")
