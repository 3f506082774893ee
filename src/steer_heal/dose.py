"""Walk-C: find the dose multiplier kappa at which enough completions survive the filter, and bank every survivor.

Knows nothing of models, vectors and torch: it decides over counts; sampling and judging are functions handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from steer_heal.errors import InputError

MODES = ("ladder", "bisect")


@runtime_checkable
class Judged(Protocol):
    """What the walk needs of a judged completion."""

    @property
    def kept(self) -> bool: ...


@dataclass(frozen=True)
class DoseConfig:
    """Settings of the walk.

    Attributes:
        kappa_start: first and largest multiplier of the doses (no unit; 1 = the doses as configured).
        kappa_floor: smallest multiplier; below it text is base-like and teaches nothing.
        shrink: factor on kappa after a batch whose survival was under target.
        target: share of a batch (0..1) that has to survive.
        n_min: completions to bank before the walk is content.
        batch: completions per batch.
        max_batches: full batches at most, whatever their kappa.
        mode: `ladder` (batches down from kappa_start) or `bisect` (small probes in log kappa first, then batches).
        probe: completions per probe; `bisect` only.
        max_probes: probes at most; `bisect` only.
        resolution: ratio of the bracket's ends at which the search stops; `bisect` only.

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

    def __post_init__(self) -> None:
        if not 0 < self.kappa_floor <= self.kappa_start < math.inf:
            raise InputError(
                f"kappa runs from {self.kappa_start} down to {self.kappa_floor}: give 0 < kappa_floor <= kappa_start"
            )
        if not 0 < self.shrink < 1:
            raise InputError(f"shrink {self.shrink}: kappa only falls with a factor between 0 and 1, such as 0.7")
        if not 0 < self.target <= 1:
            raise InputError(f"target {self.target}: the share that has to survive lies between 0 and 1, such as 0.25")
        for name in ("n_min", "batch", "max_batches", "probe", "max_probes"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} {value}: give a whole number of at least 1")
        if self.mode not in MODES:
            raise InputError(f"dose mode {self.mode!r} is unknown: use {' or '.join(MODES)}")
        if not 1 < self.resolution < math.inf:
            raise InputError(f"resolution {self.resolution}: the bracket's ratio has to be above 1, such as 1.25")


@dataclass(frozen=True)
class Step:
    """One entry of the decision curve: what was sampled at which kappa, how many survived, what followed.

    `decision` is one of `shrink` (kappa falls), `floor` (under target, kappa cannot fall further), `stay` (target
    reached, top up), `up` / `down` (a probe moves the bracket), `enough` (n_min banked) and `starved` (no batch left).
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
    """State of a walk down the ladder: ask `next()`, sample that, tell `observe()`, until `next()` is None.

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

    def next(self) -> tuple[float, int] | None:
        """(kappa, completions to sample), or None when the walk is over."""
        if not self.starved or self.batches >= self.config.max_batches:
            return None
        return self.kappa, self.config.batch

    def observe(self, kappa: float, n: int, survived: int) -> Step:
        """Record one sampled and judged batch; returns the decision. Raises ValueError for impossible counts."""
        _check_counts(n, survived)
        self.batches += 1
        self.banked += survived
        reached = n > 0 and survived >= self.config.target * n
        self.settled = self.settled or reached
        return self._record(kappa, n, survived, self._after_batch(kappa))

    def _after_batch(self, kappa: float) -> str:
        if not self.starved:
            return "enough"
        if self.batches >= self.config.max_batches:
            return "starved"
        if self.settled:
            return "stay"
        lower = max(self.config.kappa_floor, kappa * self.config.shrink)
        self.kappa = lower
        return "shrink" if lower < kappa else "floor"

    def _record(self, kappa: float, n: int, survived: int, decision: str, probe: bool = False) -> Step:
        step = Step(kappa, n, survived, self.banked, decision, probe)
        self.steps.append(step)
        return step


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

    def next(self) -> tuple[float, int] | None:
        if not self.starved:
            return None
        return (self.kappa, self.config.probe) if self.searching else super().next()

    def observe(self, kappa: float, n: int, survived: int) -> Step:
        if not self.searching:
            return super().observe(kappa, n, survived)
        _check_counts(n, survived)
        self.probes += 1
        self.banked += survived
        reached = n > 0 and survived >= self.config.target * n
        if reached:
            self.low = kappa
        else:
            self.high = kappa
        narrow = self.high / self.low <= self.config.resolution
        self.searching = not (narrow or self.probes >= self.config.max_probes)
        self.kappa = math.sqrt(self.low * self.high) if self.searching else self.low
        decision = "enough" if not self.starved else "up" if reached else "down"
        return self._record(kappa, n, survived, decision, probe=True)


def _check_counts(n: int, survived: int) -> None:
    if not 0 <= survived <= n:
        raise ValueError(f"{survived} of {n} survived: impossible counts")


def controller(config: DoseConfig) -> Ladder:
    """The state machine of `config.mode`."""
    return Bisection(config) if config.mode == "bisect" else Ladder(config)


@dataclass(frozen=True)
class Walk:
    """What a walk sampled and decided.

    Attributes:
        completions: everything sampled, judged, in the order of sampling.
        steps: the decision curve.
        kappa: multiplier of the last step; a good start for the next round's walk.
        starved: fewer than `n_min` were banked; a verdict, not an error.
        config: the settings of the walk.
    """

    completions: tuple[Judged, ...]
    steps: tuple[Step, ...]
    kappa: float
    starved: bool
    config: DoseConfig

    @property
    def banked(self) -> list[Judged]:
        """The survivors of all steps."""
        return [c for c in self.completions if c.kept]

    @property
    def survival(self) -> float:
        """Share of everything sampled that survived."""
        return len(self.banked) / len(self.completions) if self.completions else 0.0

    def curve(self) -> list[dict[str, float | int | str | bool]]:
        """The decision curve as rows for a log or a plot."""
        return [
            {
                "kappa": step.kappa,
                "n": step.n,
                "survived": step.survived,
                "survival": step.survival,
                "banked": step.banked,
                "decision": step.decision,
                "probe": step.probe,
            }
            for step in self.steps
        ]

    def __str__(self) -> str:
        lines = ["  kappa     n  kept  share  banked  decision"]
        for step in self.steps:
            mark = " (probe)" if step.probe else ""
            lines.append(
                f"  {step.kappa:5.3f}  {step.n:4d}  {step.survived:4d}  {step.survival:5.2f}  {step.banked:6d}  "
                f"{step.decision}{mark}"
            )
        verdict = "starved" if self.starved else "enough"
        lines.append(f"  {verdict}: {len(self.banked)} of {len(self.completions)} kept, {self.config.n_min} wanted")
        return "\n".join(lines)


def walk_c(
    sample: Callable[[float, int], Sequence],
    survive: Callable[[Sequence], Sequence[Judged]],
    config: DoseConfig | None = None,
) -> Walk:
    """Sample and judge batches until enough completions survive or the batches are spent.

    Args:
        sample: (kappa, n) -> about n completions with every dose multiplied by kappa. It may return a few more or
            less (a full grid of prompts and doses); what it returned is what counts.
        survive: completions -> the same completions judged, each with `.kept`.
        config: see `DoseConfig`.

    Returns a `Walk` with everything sampled, `starved` included: running dry is a result. Raises ValueError if
    `survive` returns another number of completions than it was given. Deterministic if `sample` and `survive` are.
    """
    config = config or DoseConfig()
    state = controller(config)
    completions: list[Judged] = []
    while (plan := state.next()) is not None:
        kappa, n = plan
        drawn = list(sample(kappa, n))
        judged = list(survive(drawn))
        if len(judged) != len(drawn):
            raise ValueError(f"{len(drawn)} completions were judged but {len(judged)} came back")
        completions += judged
        state.observe(kappa, len(judged), sum(1 for c in judged if c.kept))
    return Walk(tuple(completions), tuple(state.steps), state.steps[-1].kappa, state.starved, config)
