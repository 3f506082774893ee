"""A finished run as the comparisons need it: what was trained in each round, and which state stands after it.

Knows nothing of arms' options and of how figures are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from steer_heal.evaluation import Metrics
from steer_heal.evaluation.shift import coherence
from steer_heal.evaluation.text import mean
from steer_heal.ledger import Ledger
from steer_heal.studies.material import read_round


@dataclass(frozen=True, eq=False)
class State:
    """A measured model: base, prompted, or a student. `anchors`: share it still gets right of those base got right."""

    metrics: Metrics
    anchors: float | None


@dataclass(frozen=True)
class TrainedRound:
    """One round of a run; `student` is None when it starved.

    Attributes:
        student, steered: the healed student; the student before it under the vector, unfiltered.
        stands: the gate let it through. outcome: keep, revert or inconclusive; None before there was a gate.
        kept: share of the sampled completions that survived the filter. kappa: last multiplier of the doses.
        trait_kept: free-text trait of the kept completions.
        kl_base, kl_prev: token-mean KL(student || original, previous student) on the training rows after the heal, in
            nats.
        cosine_vector, cosine_adapter: of this round's vector and adapter with the first's. cosine_shift: of the
            student's shift with the vector.
    """

    number: int
    student: State | None
    steered: Metrics | None
    stands: bool
    outcome: str | None
    verdict: str
    kept: float
    kappa: float
    trait_kept: float | None = None
    kl_base: float | None = None
    kl_prev: float | None = None
    cosine_vector: float | None = None
    cosine_adapter: float | None = None
    cosine_shift: float | None = None

    def steered_shift(self, base: State) -> float | None:
        """Forced choice of the steered model against base, nats; None for a round that starved."""
        return None if self.steered is None else self.steered.log_odds - base.metrics.log_odds


@dataclass(frozen=True)
class ArmRun:
    """One run of one arm.

    Attributes:
        config: the run's config.json. rounds: in order, reverted ones and a starved last one included.
        ended_by: why it ended before its last round; None when it did not.
    """

    arm: str
    seed: int
    folder: Path
    config: dict
    base: State
    prompted: State
    rounds: tuple[TrainedRound, ...]
    verdict: str
    best_round: int | None
    ended_by: str | None
    seconds: float

    @property
    def n_rounds(self) -> int:
        """Rounds that were asked for."""
        return self.config["n_rounds"]

    @property
    def is_control(self) -> bool:
        """Nothing of the trait's vector is in it: it is not to move toward the trait."""
        return self.config["vector"] != "real"

    def standing(self, number: int) -> State:
        """The state after round `number`: the last student that the gate let through, base before the first one."""
        kept = [r.student for r in self.rounds if r.stands and r.student is not None and r.number <= number]
        return kept[-1] if kept else self.base

    @property
    def last(self) -> State:
        """The state that stands at the end."""
        return self.standing(self.n_rounds)


def read_run(arm: str, seed: int, ledger: Ledger) -> ArmRun:
    """Read a finished run. In a run without gate events, as older versions made them, every round stands."""
    (end,) = ledger.events("end")
    config = ledger.config
    base, prompted = (Metrics.load(ledger.folder / f"{name}.json") for name in ("base", "prompted"))
    events: dict[int, dict[str, Mapping]] = {}
    for event in ledger.events():
        if event["round"] is not None:
            events.setdefault(event["round"], {})[event["stage"]] = event
    done = sorted(number for number, of_round in events.items() if "verdict" in of_round)
    rounds = tuple(_round(ledger, number, events[number], base) for number in done)
    early = end.get("ended_by")
    if early is None and len(rounds) < config["n_rounds"]:
        early = f"{rounds[-1].verdict} in round {rounds[-1].number}" if rounds else "no round was completed"
    before = (State(metrics, anchors_kept(metrics, base)) for metrics in (base, prompted))
    outcome = (end["verdict"], end["best_round"], early, end["seconds"])
    return ArmRun(arm, seed, ledger.folder, config, *before, rounds, *outcome)


def _round(ledger: Ledger, number: int, events: Mapping[str, Mapping], base: Metrics) -> TrainedRound:
    walk, heal, gate, bake = (events.get(stage, {}) for stage in ("walk", "heal", "gate", "bake"))
    student = steered = None
    if heal:
        steered, healed = read_round(ledger.folder / "rounds" / f"{number:02d}")
        student = State(healed, gate["figures"].get("anchors") if gate else anchors_kept(healed, base))
    figures = heal.get("figures", {})
    return TrainedRound(
        number=number,
        student=student,
        steered=steered,
        stands=student is not None and gate.get("stands", True),
        outcome=gate.get("outcome"),
        verdict=events["verdict"]["verdict"],
        kept=walk["kept"] / walk["sampled"],
        kappa=walk["kappa"],
        trait_kept=walk.get("trait_kept"),
        kl_base=figures.get("kl_base_after"),
        kl_prev=figures.get("kl_prev_after"),
        cosine_vector=events["extract"]["cosine_first"],
        cosine_adapter=bake.get("cosine_first"),
        cosine_shift=bake.get("cosine_vector"),
    )


def anchors_kept(metrics: Metrics, base: Metrics) -> float | None:
    """Share of the anchors that base got right and this state still does; None without any."""
    held = {row.id for row in base.anchors if row.right}
    return mean(float(row.right) for row in metrics.anchors if row.id in held)


FIGURES = {
    "trait": "trait",
    "shift": "log-odds shift",
    "sentence_ok": "sentence ok",
    "sentence_share": "of base",
    "distinct4_share": "4-grams",
    "words_share": "words",
    "entropy_share": "entropy",
    "off_target": "off-target",
    "off_ratio": "off / target",
    "anchors": "anchors",
}
"""Figures of a state by name, and what tables call them; what they are, `COMBINED_LEGEND` of `tables` says."""
MOVED = 0.1
"""Nats: off-target is no ratio of a target that moved up by less than this."""


@cache
def figures(state: State, base: State) -> dict[str, float | None]:
    """The figures of `FIGURES`: shares, and nats for shift and off_target; None for what was not measured.

    sentence_ok: sound sentences; without a checker: replies that neither loop nor surprise the original.
    """
    now, then = state.metrics, base.metrics
    sound, sound_base = coherence(now, then), coherence(then, then)
    off = [abs(now.off_categories[name].log_odds - found.log_odds) for name, found in then.off_categories.items()]
    shift = now.log_odds - then.log_odds
    return {
        "trait": now.free_trait,
        "shift": shift,
        "sentence_ok": sound,
        "sentence_share": share(sound, sound_base),
        "distinct4_share": share(now.distinct4, then.distinct4),
        "words_share": share(now.words, then.words),
        "entropy_share": share(now.token_entropy, then.token_entropy),
        "off_target": max(off, default=None),
        "off_ratio": ratio_to_target(max(off, default=None), shift),
        "anchors": state.anchors,
    }


def ratio_to_target(off_target: float | None, shift: float) -> float | None:
    """Off-target shift as a share of the target's; None where the target hardly moved up, or nothing was measured."""
    return None if off_target is None or shift < MOVED else off_target / shift


def share(value: float | None, base: float | None) -> float | None:
    """value / base. A state that says nothing has none of what base has; None where base has nothing either."""
    return (value or 0.0) / base if base else None
