"""What the steps of one run share, and what a round leaves.

Knows nothing of how a round is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from steer_heal.adapter import Adapter
from steer_heal.anchors import Captured, Decision, Figures
from steer_heal.bake import AdapterStack
from steer_heal.coherence import CoherenceFilter
from steer_heal.completion import Completion
from steer_heal.config import RunConfig
from steer_heal.console import Reporter
from steer_heal.evaluation import Metrics
from steer_heal.generation import derive_seed
from steer_heal.ledger import Ledger
from steer_heal.lm import LM
from steer_heal.steering import SteeringVector
from steer_heal.trait import Trait
from steer_heal.units import Units
from steer_heal.verdict import Verdict


@dataclass
class Run:
    """What the steps of one run share.

    `stack` holds the rounds that stand; `lm` is the student, their sum folded in. `captured` is what the original model
    gets right; `kappa` the multiplier at which the next walk starts.
    """

    config: RunConfig
    lm: LM
    trait: Trait
    ledger: Ledger
    reporter: Reporter
    stack: AdapterStack
    filter: CoherenceFilter
    base: Metrics
    prompted: Metrics
    captured: Captured
    kappa: float
    rounds: list[Round] = field(default_factory=list)

    @property
    def standing(self) -> list[Round]:
        """The rounds that the gate let through, in order: those whose adapters are in the stack."""
        return [done for done in self.rounds if done.stands]

    @property
    def previous(self) -> Metrics:
        """The student before this round; base as long as no round stands."""
        return self.standing[-1].healed if self.standing else self.base

    def seed(self, *labels: object) -> int:
        """A seed of its own for every use of randomness."""
        return derive_seed(self.config.seed, *labels)

    def keep(self, *labels: object) -> Units:
        """Committed results under a name of their own, such as round and stage."""
        return self.ledger.units.part(*labels)

    def on_batch(self, stage: str):
        """A progress callback for `generate`."""
        return self.reporter.batches(stage)


@dataclass(frozen=True)
class Round:
    """What one round left: its vector, adapter and measurements, the gate's decision, and whether the round stands."""

    number: int
    vector: SteeringVector
    adapter: Adapter
    kept: tuple[Completion, ...]
    steered: Metrics
    healed: Metrics
    lam: dict[str, float]
    verdict: Verdict
    figures: Figures
    decision: Decision
    stands: bool
