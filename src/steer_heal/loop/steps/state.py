"""What the steps of one run share, and what a round leaves.

Knows nothing of how a round is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from steer_heal.config import RunConfig
from steer_heal.evaluation import Metrics
from steer_heal.evaluation.anchors import Captured, Decision, Figures
from steer_heal.evaluation.verdict import Verdict
from steer_heal.healing import Healed
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.ledger import Ledger
from steer_heal.ledger.units import Units
from steer_heal.model import LM
from steer_heal.report.console import Reporter
from steer_heal.shown import brief
from steer_heal.steering import SteeringVector
from steer_heal.steering.direction import MeanStates
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.completion import Completion
from steer_heal.texts.dose import Walk
from steer_heal.texts.engines import engine
from steer_heal.texts.generation import derive_seed
from steer_heal.texts.selection import held_temperature
from steer_heal.trait import Trait


@dataclass
class Setting:
    """What a run has before anything is measured; `lm` is the student, with the adapters of `stack` folded in."""

    config: RunConfig
    lm: LM
    trait: Trait
    ledger: Ledger
    reporter: Reporter
    stack: AdapterStack

    def seed(self, *labels: object) -> int:
        """A seed of its own for every use of randomness."""
        return derive_seed(self.config.seed, *labels)

    def keep(self, *labels: object) -> Units:
        """Committed results under a name of their own, such as round and stage."""
        return self.ledger.units.part(*labels)

    def sampled(self, stage: str, *labels: object) -> dict[str, object]:
        """What every sampling is given: neutral prompt, longest reply, where batches are kept, who hears of
        them, and the engine.

        The reporter hears that the stage begins.
        """
        self.reporter.progress(stage, 0, 1)
        asked = {"system": self.trait.neutral, "max_new_tokens": self.config.max_new_tokens}
        asked |= {"keep": self.keep(*labels), "on_batch": self.reporter.batches(stage)}
        return asked | {"engine": engine(self.config.engine)}


@dataclass
class Run(Setting):
    """What the rounds of one run share, and what they left; `stack` holds the rounds that stand.

    `captured` is what the original model gets right and the gate counts, `replayable` its right answers to other
    anchors; `kappa` the multiplier at which the next walk starts; `states` the mean states of students by the
    fingerprint of their weights.
    """

    filter: CoherenceFilter
    base: Metrics
    prompted: Metrics
    captured: Captured
    replayable: tuple[Completion, ...]
    kappa: float
    rounds: list[Round] = field(default_factory=list)
    states: dict[str, MeanStates] = field(default_factory=dict)

    __repr__ = brief

    @property
    def standing(self) -> list[Round]:
        """The rounds that the gate let through, in order: those whose adapters are in the stack."""
        return [done for done in self.rounds if done.stands]

    def heat(self, start: float) -> float:
        """A temperature raised by the diversity that the newest student has lost, a reverted one's too.

        See `held_temperature`; the gain is `diversity_gain`.
        """
        newest = self.rounds[-1].healed if self.rounds else self.base
        left, reference = newest.distinct4 or 0.0, self.base.distinct4 or 0.0
        return held_temperature(start, self.config.diversity_gain, left, reference)

    @property
    def previous(self) -> Metrics:
        """The student before this round; base as long as no round stands."""
        return self.standing[-1].healed if self.standing else self.base


@dataclass(frozen=True)
class Round:
    """What one round left: vector, texts, heal and measurements, the gate's decision, and whether the round stands.

    `rows` are what the heal was trained on: the walk's kept texts, then what was mixed in.
    """

    number: int
    vector: SteeringVector
    walk: Walk
    steered: Metrics
    training: Healed
    healed: Metrics
    verdict: Verdict
    figures: Figures
    decision: Decision
    stands: bool
    rows: tuple[Completion, ...] = ()

    __repr__ = brief

    @property
    def adapter(self) -> Adapter:
        """What the heal trained."""
        return self.training.adapter


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        verdict: name and the sentence that says what was compared and how sure it is.
        best_round: number of the best round that the gate let through; None when there is none.
        rounds: the rounds in order, reverted ones included.
        folder: where everything is written.
        run: model, stack and trait as they are now: exactly the standing rounds up to the best one are folded in, the
            original weights without one.
        controls: by name, what each control came to; empty unless they were asked for.
    """

    verdict: Verdict
    best_round: int | None
    rounds: tuple[Round, ...]
    folder: Path
    run: Run
    controls: Mapping[str, RunResult] = field(default_factory=dict)

    __repr__ = brief


def contexts(run: Setting) -> tuple[str, ...]:
    """Prompts on which hidden states are read; fewer in a fast run."""
    return run.trait.contexts[: 32 if run.config.fast_dev_run else None]
