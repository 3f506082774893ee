"""The decisions of the walk: state machines over counts that say what to sample next and what a result means.

Knows nothing of completions; it sees how many were sampled and how many survived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from steer_heal.texts.dose.config import DoseConfig

Plan = list[tuple[float, int]]
"""What to sample next, all of it together: (kappa, completions) pairs; empty when the walk is over."""


@dataclass(frozen=True)
class Step:
    """One entry of the decision curve: what was sampled at which kappa, how many survived, what followed.

    `decision` is one of `shrink` (kappa falls), `floor` (under target, kappa cannot fall further), `stay` (target
    reached, top up), `up` / `down` (a probe moves the bracket), `reached` / `missed` (a kappa of the grid against the
    target), `enough` (n_min banked) and `starved` (no batch left).
    """

    kappa: float
    n: int
    survived: int
    banked: int
    decision: str
    probe: bool = False

    @property
    def survival(self) -> float:
        """Share of this batch that survived; 0 for an empty one."""
        return self.survived / self.n if self.n else 0.0


class Ladder:
    """State of a walk down the ladder: ask `plan()`, sample that, `observe()` each entry in order, until it is empty.

    kappa is multiplied by `shrink` while a batch's survival is under `target`, never below `kappa_floor`. Once a
    batch reaches the target kappa stays where it is and batches are added until `n_min` are banked. Survivors of all
    batches count. The walk ends as soon as `n_min` are banked, or after `max_batches`.
    """

    def __init__(self, config: DoseConfig) -> None:
        self.config = config
        self.kappa = config.kappa_start
        self.steps: list[Step] = []
        self.banked = 0
        self.batches = 0
        self.settled = False

    @property
    def starved(self) -> bool:
        """Fewer than `n_min` banked (so far)."""
        return self.banked < self.config.n_min

    @property
    def last_kappa(self) -> float:
        """Multiplier to go on from: that of the last step."""
        return self.steps[-1].kappa

    def plan(self) -> Plan:
        """(kappa, completions) to sample next; empty when the walk is over."""
        if not self.starved or self.batches >= self.config.max_batches:
            return []
        return [(self.kappa, self.config.batch)]

    def observe(self, kappa: float, n: int, survived: int) -> Step:
        """Record one sampled and judged entry; returns the decision. Raises ValueError for impossible counts."""
        if not 0 <= survived <= n:
            raise ValueError(f"{survived} of {n} survived: impossible counts")
        self.banked += survived
        decision, probe = self._decide(kappa, n > 0 and survived >= self.config.target * n)
        self.steps.append(Step(kappa, n, survived, self.banked, decision, probe))
        return self.steps[-1]

    def _decide(self, kappa: float, reached: bool) -> tuple[str, bool]:
        """What follows from an entry that reached the target or did not, and whether it was a probe."""
        self.batches += 1
        self.settled = self.settled or reached
        if not self.starved:
            return "enough", False
        if self.batches >= self.config.max_batches:
            return "starved", False
        if self.settled:
            return "stay", False
        self.kappa = max(self.config.kappa_floor, kappa * self.config.shrink)
        return "shrink" if self.kappa < kappa else "floor", False


class Bisection(Ladder):
    """Small probes first: the largest kappa whose survival reaches the target, by bisection of log kappa.

    The first probe is at `kappa_start`; if it fails, the bracket is (floor, start) and its geometric mean is probed
    until the ends' ratio is at most `resolution` or `max_probes` are spent. Then the ladder goes on from the lower
    end with full batches, so that a lucky probe costs one batch and no more. Survivors of probes are banked too.
    """

    def __init__(self, config: DoseConfig) -> None:
        super().__init__(config)
        self.probes = 0
        self.low, self.high = config.kappa_floor, config.kappa_start
        self.searching = True

    def plan(self) -> Plan:
        if not self.starved:
            return []
        return [(self.kappa, self.config.probe)] if self.searching else super().plan()

    def _decide(self, kappa: float, reached: bool) -> tuple[str, bool]:
        if not self.searching:
            return super()._decide(kappa, reached)
        self.probes += 1
        if reached:
            self.low = kappa
        else:
            self.high = kappa
        narrow = self.high / self.low <= self.config.resolution
        self.searching = not narrow and self.probes < self.config.max_probes
        self.kappa = math.sqrt(self.low * self.high) if self.searching else self.low
        return "enough" if not self.starved else "up" if reached else "down", True


class Grid(Ladder):
    """Several kappas in one batch first, a share of the batch each: how survival falls with kappa, for one batch.

    The ladder goes on with full batches from the largest kappa that reached the target (from the floor if none did),
    so that a share that was lucky costs one batch and no more. Survivors of the grid are banked too.
    """

    def __init__(self, config: DoseConfig) -> None:
        super().__init__(config)
        size = 1 if config.kappa_floor == config.kappa_start else min(config.grid, config.batch)
        ratio = config.kappa_floor / config.kappa_start
        inner = [config.kappa_start * ratio ** (i / (size - 1)) for i in range(1, size - 1)]
        ends = [config.kappa_start, config.kappa_floor][:size]
        self.grid = [*ends[:1], *inner, *ends[1:]]
        self.open = len(self.grid)
        self.reached: list[float] = []

    @property
    def last_kappa(self) -> float:
        return self.kappa if self.batches == 1 else super().last_kappa

    def plan(self) -> Plan:
        if not self.open:
            return super().plan()
        share, more = divmod(self.config.batch, len(self.grid))
        return [(kappa, share + (i < more)) for i, kappa in enumerate(self.grid)]

    def _decide(self, kappa: float, reached: bool) -> tuple[str, bool]:
        if not self.open:
            return super()._decide(kappa, reached)
        self.open -= 1
        self.reached += [kappa] if reached else []
        if not self.open:
            self.batches += 1
            self.kappa = max(self.reached, default=self.config.kappa_floor)
            if not self.starved or self.batches >= self.config.max_batches:
                return "starved" if self.starved else "enough", True
        return "reached" if reached else "missed", True


def controller(config: DoseConfig) -> Ladder:
    """The state machine of `config.mode`."""
    return {"ladder": Ladder, "bisect": Bisection, "grid": Grid}[config.mode](config)
