"""The walk itself: sample, judge, decide; everything sampled is kept and every survivor banked.

Knows nothing of models: sampling and judging are functions handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

from steer_heal.arguments import checked
from steer_heal.errors import InputError
from steer_heal.shown import brief, plot, table
from steer_heal.texts.dose.config import DoseConfig
from steer_heal.texts.dose.controllers import Plan, Step, controller


@runtime_checkable
class Judged(Protocol):
    """What the walk needs of a judged completion."""

    @property
    def kept(self) -> bool: ...


@dataclass(frozen=True)
class Walk:
    """What a walk sampled and decided.

    Attributes:
        completions: everything sampled, judged, in the order of sampling.
        steps: the decision curve.
        kappa: multiplier the walk ended at; a good start for the next round's walk.
        starved: fewer than `n_min` were banked; a verdict, not an error.
        config: the settings of the walk.
    """

    completions: tuple[Judged, ...]
    steps: tuple[Step, ...]
    kappa: float
    starved: bool
    config: DoseConfig

    __repr__ = brief

    def _repr_html_(self) -> str:
        rows = [(i, s.kappa, s.n, s.survived, s.survival, s.banked, s.decision) for i, s in enumerate(self.steps)]
        series = {"kappa": [step.kappa for step in self.steps], "survival": [step.survival for step in self.steps]}
        head = ("batch", "kappa", "n", "kept", "share", "banked", "decision")
        return table(head, rows) + plot(series, range(len(rows)), "walk, by batch")

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
        names = ("kappa", "n", "survived", "survival", "banked", "decision", "probe")
        return [{name: getattr(step, name) for name in names} for step in self.steps]

    def __str__(self) -> str:
        """One line per decision, for notebooks."""
        lines = ["  kappa     n  kept  share  banked  decision"]
        for step in self.steps:
            counts = f"{step.n:4d}  {step.survived:4d}  {step.survival:5.2f}  {step.banked:6d}"
            lines.append(f"  {step.kappa:5.3f}  {counts}  {step.decision}{' (probe)' if step.probe else ''}")
        verdict = "starved" if self.starved else "enough"
        lines.append(f"  {verdict}: {len(self.banked)} of {len(self.completions)} kept, {self.config.n_min} wanted")
        return "\n".join(lines)


@checked
def walk_c(
    sample: Callable[[float, int], Sequence] | None,
    survive: Callable[[Sequence], Sequence[Judged]],
    config: DoseConfig | None = None,
    sample_together: Callable[[Plan], Sequence[Sequence]] | None = None,
) -> Walk:
    """Sample and judge batches until enough completions survive or the batches are spent.

    Args:
        sample: (kappa, n) -> about n completions with every dose multiplied by kappa. It may return a few more or
            less (a full grid of prompts and doses); what it returned is what counts. None with `sample_together`.
        survive: completions -> the same completions judged, each with `.kept`.
        config: see `DoseConfig`.
        sample_together: [(kappa, n), ...] -> completions per entry, all sampled in one batch; without it `sample` is
            called entry by entry. Only `grid` plans more than one entry.

    Returns a `Walk` with everything sampled, `starved` included: running dry is a result. Raises ValueError if
    `survive` or `sample_together` returns another number of items than it was given. Deterministic if they are.
    """
    if sample is None and sample_together is None:
        raise InputError("walk_c needs sample or sample_together: give one of them")
    config = config or DoseConfig()
    state = controller(config)
    completions: list[Judged] = []
    while plan := state.plan():
        entries = sample_together(plan) if sample_together else [sample(kappa, n) for kappa, n in plan]
        entries = [list(entry) for entry in entries]
        if len(entries) != len(plan):
            raise ValueError(f"{len(plan)} kappas were to be sampled but {len(entries)} came back")
        drawn = [completion for entry in entries for completion in entry]
        judged = list(survive(drawn))
        if len(judged) != len(drawn):
            raise ValueError(f"{len(drawn)} completions were judged but {len(judged)} came back")
        completions += judged
        rest = iter(judged)
        for (kappa, _), entry in zip(plan, entries, strict=True):
            found = list(islice(rest, len(entry)))
            state.observe(kappa, len(found), sum(1 for c in found if c.kept))
    return Walk(tuple(completions), tuple(state.steps), state.last_kappa, state.starved, config)
