"""Verdict of a round and of a run: pure decisions over a few numbers, floors first, said in one sentence.

Knows nothing of models. `gather` fills in the numbers from metrics; everything else takes them plain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, compare, retain
from steer_heal.evaluation.shift import coherent
from steer_heal.evaluation.text import mean
from steer_heal.statistics import Estimate

VERDICTS = {
    "healed": "steering broke the text; the student has its coherence back and kept the trait",
    "moved": "the trait moved; the steered texts were coherent, so there was nothing to heal",
    "unhealed": "the trait moved, but the student has not got its coherence back",
    "broad": "an off-target category moved as much as the target",
    "throttled": "the student kept between a tenth and half of the steered trait",
    "undone": "the training texts carried the trait, the student does not",
    "no-op": "the training texts carried no trait",
    "inconclusive": "the interval of the student's shift includes zero",
    "collapsed": "the student's text is under a coherence floor",
    "starved": "too few texts survived the filter: nothing was trained",
    "diverged": "a loss or gradient of the heal was not finite: the training stopped there",
    "reverted": "the gate took every round out again: the result is the original model",
}
SUCCESSES = ("healed", "moved")
SHAPE = ("words", "distinct4", "token_entropy")
"""Figures of length and diversity: a collapse can hide from coherence in short or repeated replies, not from these."""


@dataclass(frozen=True)
class Floors:
    """What a student must not fall under, each as a share of base.

    `coherence`: sound text. `words`, `distinct4`, `token_entropy`: length and diversity, so that short or sharpened
    replies cannot pass for coherence. `answer_mass` stays high in broken models: passing it means little.
    """

    coherence: float = 0.8
    words: float = 0.8
    distinct4: float = 0.8
    token_entropy: float = 0.8
    answer_mass: float = 0.5


@dataclass(frozen=True)
class Rules:
    """Thresholds of the verdicts: shares of replies for coherence, fractions of the steered shift for retain.

    `lost`: how far the steered texts must be under base for there to be something to heal. `back`: how near base the
    student must be. `carried`: the least trait shift of the training set, in the unit of the trait.
    """

    lost: float = 0.05
    back: float = 0.03
    kept: float = 0.5
    trace: float = 0.1
    carried: float = 0.05
    floors: Floors = field(default_factory=Floors)


@dataclass(frozen=True)
class Evidence:
    """The numbers a round is judged by; all shifts are against base on the same items.

    Attributes:
        coherence: of base, of the unfiltered steered texts, of the student; 0..1, of replies. NaN counts as 0.
        steered, student: trait shift with interval, in `unit`. Free-text trait rate where a checker measures it, else
            forced-choice log-odds in nats. None for the student of a starved round.
        training: trait shift of the training set in the same unit; None where it cannot be measured, and then the
            steered shift stands for it.
        retain: student / steered with its interval; None is computed from the two values.
        target, off_target: forced-choice shifts in nats: the trait's items, and each off-target category.
        coherence_shift: of the student, student - base, with interval; only told.
        shape: ratio student / base (or prompted, if lower) of words, distinct4 and token_entropy, by name.
        answer_mass: ratio student / base.
        kept, needed: texts that survived the filter, and the least number to train on.
    """

    base_coherence: float
    steered_coherence: float
    student_coherence: float | None
    steered: Estimate
    student: Estimate | None
    training: float | None = None
    retain: Estimate | None = None
    coherence_shift: Estimate | None = None
    target: Estimate | None = None
    off_target: dict[str, Estimate] = field(default_factory=dict)
    shape: dict[str, float] = field(default_factory=dict)
    answer_mass: float = 1.0
    kept: int | None = None
    needed: int | None = None
    unit: str = "of replies"
    where: str = "in free text"

    @property
    def retained(self) -> float | None:
        """dTrait(student) / dTrait(steered); None where steering did not move the trait upwards."""
        if self.retain is not None:
            return self.retain.value
        if self.student is None or not self.steered.value > 0:
            return None
        return self.student.value / self.steered.value


@dataclass(frozen=True)
class Verdict:
    """A name of `VERDICTS` and a sentence: what was compared, by how much, how sure it is."""

    name: str
    text: str
    above_floors: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def judge_round(evidence: Evidence, rules: Rules | None = None) -> Verdict:
    """Verdict of one round. Floors come before everything else: a broken model has no trait worth reading.

    Order: starved, collapsed, no-op, inconclusive / undone, broad, throttled, then healed / unhealed / moved.
    """
    rules = rules or Rules()
    if evidence.student is None or (evidence.needed is not None and (evidence.kept or 0) < evidence.needed):
        return Verdict("starved", f"{evidence.kept or 0} texts survived the filter, {evidence.needed} are needed.")
    if broken := under_floors(evidence, rules.floors):
        return Verdict("collapsed", f"under the floor: {'; '.join(broken)}. {_shift(evidence)}")
    return replace(_above_floors(evidence, rules), above_floors=True)


def under_floors(evidence: Evidence, floors: Floors) -> list[str]:
    """Every floor the student is under, in words; an empty list when it stands above all. NaN is under."""
    found = []
    ok, base = evidence.student_coherence, evidence.base_coherence
    if ok is None or not ok >= floors.coherence * base or not base > 0:
        found.append(f"coherence {_number(ok)} against {base:.2f} of base (floor {floors.coherence * base:.2f})")
    for name in SHAPE:
        if name in evidence.shape and not evidence.shape[name] >= getattr(floors, name):
            found.append(
                f"{name} at {evidence.shape[name]:.2f} of base or prompted (floor {getattr(floors, name):.2f})"
            )
    if not evidence.answer_mass >= floors.answer_mass:
        found.append(f"answer mass {evidence.answer_mass:.2f} (floor {floors.answer_mass:.2f})")
    return found


def _above_floors(evidence: Evidence, rules: Rules) -> Verdict:
    student, steered = evidence.student, evidence.steered
    shift, retained = _shift(evidence), evidence.retained
    training = steered.value if evidence.training is None else evidence.training
    carried = training >= rules.carried
    moved = student.excludes_zero and student.value > 0
    if not carried and not moved:
        return Verdict(
            "no-op",
            f"the training texts carried {training:+.2f} {evidence.unit} of trait, under {rules.carried}. {shift}",
        )
    if not moved:
        # Zero inside the interval says "undone" only where the data exclude that the trait was kept.
        if student.high < rules.kept * max(steered.value, rules.carried):
            return Verdict(
                "undone", f"the training texts carried {training:+.2f} {evidence.unit}, the student lost it. {shift}"
            )
        return Verdict("inconclusive", f"the interval includes zero: more items or replies are needed. {shift}")
    if spread := _as_broad(evidence):
        return Verdict("broad", f"{spread}. {shift}")
    if retained is not None and retained < rules.trace:
        return Verdict("undone", f"under a tenth of the steered trait is left (retain {retained:.2f}). {shift}")
    if retained is not None and retained < rules.kept:
        return Verdict("throttled", f"only part of the steered trait is left (retain {retained:.2f}). {shift}")
    return _price(evidence, rules, shift)


def _price(evidence: Evidence, rules: Rules, shift: str) -> Verdict:
    """healed, unhealed or moved: what happened to coherence while the trait moved."""
    base, steered, student = evidence.base_coherence, evidence.steered_coherence, evidence.student_coherence
    # 1e-9: .95 - .03 must count as reached by .92.
    back = student >= base - rules.back - 1e-9
    lost = not steered > base - rules.lost + 1e-9
    coherence = f"Coherence: base {base:.2f}, steered unfiltered {_number(steered)}, student {student:.2f}"
    if evidence.coherence_shift is not None:
        coherence += f" (against base {evidence.coherence_shift})"
    if not back:
        return Verdict("unhealed", f"{coherence}: more than {rules.back} under base. {shift}")
    if not lost:
        return Verdict("moved", f"{coherence}: the steered texts had lost less than {rules.lost}. {shift}")
    return Verdict("healed", f"{coherence}: lost and regained. {shift}")


def _as_broad(evidence: Evidence) -> str:
    """The off-target category that moved as much as the target, in words; empty if none surely did."""
    if evidence.target is None or not evidence.off_target:
        return ""
    name, most = max(evidence.off_target.items(), key=lambda pair: abs(pair[1].value) * pair[1].excludes_zero)
    if not most.excludes_zero or abs(most.value) < abs(evidence.target.value):
        return ""
    return f"off-target {name!r} moved {most} nats, the target {evidence.target} nats (forced choice)"


def _shift(evidence: Evidence) -> str:
    kept = "" if evidence.retained is None else f", retain {evidence.retained:.2f}"
    sure = "" if evidence.retain is None or math.isinf(evidence.retain.low) else (
        f" [{evidence.retain.low:.2f}, {evidence.retain.high:.2f}]"
    )  # fmt: skip
    return (
        f"Trait {evidence.where} against base: steered {evidence.steered}, student {evidence.student} {evidence.unit}"
        f"{kept}{sure} (95 % intervals over {evidence.student.n} clusters)."
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def gather(
    base: Metrics,
    steered: Metrics,
    student: Metrics | None,
    *,
    prompted: Metrics | None = None,
    training_trait: float | None = None,
    kept: int | None = None,
    needed: int | None = None,
) -> Evidence:
    """Evidence of a round from metrics over the same items.

    `base` is the original model, `steered` the model under the vector (unfiltered texts), `student` the healed model,
    None when the round starved. `prompted` is the original under the persona, for the floors of length and diversity
    (see `shape`). `training_trait` is the mean trait of the training texts by the checker, 0..1.
    Raises InputError when the metrics cover different items or hold no replies.
    """
    if not base.replies:
        raise InputError("a verdict needs free-text replies: evaluate with n_free above 0")
    above = compare(base, steered)
    healed = None if student is None else compare(base, student)
    free = above.free_trait is not None and (healed is None or healed.free_trait is not None)
    return Evidence(
        base_coherence=mean(coherent(base, base)),
        steered_coherence=mean(coherent(steered, base)),
        student_coherence=None if student is None else mean(coherent(student, base)),
        steered=above.free_trait if free else above.log_odds,
        student=None if healed is None else healed.free_trait if free else healed.log_odds,
        training=training_trait - base.free_trait if free and training_trait is not None else None,
        retain=None if student is None or not above.headline.value > 0 else retain(base, steered, student),
        coherence_shift=None if healed is None else healed.coherence,
        target=None if healed is None else healed.log_odds,
        off_target={} if healed is None else healed.off_target,
        shape={} if student is None else shape(base, student, prompted),
        answer_mass=1.0 if student is None else student.answer_mass / max(base.answer_mass, 1e-9),
        kept=kept,
        needed=needed,
        unit="of replies" if free else "nats of log-odds",
        where="in free text" if free else "in forced choice",
    )


def shape(base: Metrics, student: Metrics, prompted: Metrics | None = None) -> dict[str, float]:
    """Length and diversity of the student's replies as ratios to the lower of base's and the prompted model's.

    A model that takes one side says fewer different things than a base that takes both; what merely asking for the
    trait costs is no collapse. 0 where the student has no replies.
    """
    return {name: (getattr(student, name) or 0.0) / least for name, least in shape_reference(base, prompted).items()}


def shape_reference(base: Metrics, prompted: Metrics | None = None) -> dict[str, float]:
    """What `shape` divides by, in words, as a share, and in nats; figures that neither has are left out."""
    out = {}
    for name in SHAPE:
        known = [getattr(m, name) for m in (base, prompted) if m is not None and getattr(m, name)]
        if known:
            out[name] = min(known)
    return out


@dataclass(frozen=True)
class Round:
    """What a run's verdict needs of a round: number, verdict, the student's trait (None: no student), does it stand."""

    number: int
    verdict: Verdict
    trait: float | None
    stands: bool = True


def best_round(rounds: Sequence[Round]) -> Round | None:
    """The round with the highest trait among the successes, or else among those above the floors; None without any.

    Only rounds that stand: what the gate took out is in no result.
    Never a ratio of trait to coherence loss: its denominator makes a collapsed model look excellent.
    """
    fit = [r for r in rounds if r.stands and r.verdict.above_floors and r.trait is not None and math.isfinite(r.trait)]
    good = [r for r in fit if r.verdict.name in SUCCESSES]
    return max(good or fit, key=lambda r: (r.trait, -r.number), default=None)


def judge_run(rounds: Sequence[Round]) -> Verdict:
    """Verdict of a run: that of its best round, with what became of the rounds around it.

    The adapters of a best round include those of the rounds before it, so a best round that had nothing to heal is
    `healed` when an earlier round on the way was. `reverted`: rounds were trained and the gate let none through.
    """
    if not rounds:
        return Verdict("starved", "no round was completed.")
    best = best_round(rounds)
    course = ", ".join(f"{r.number} {r.verdict.name}{'' if r.stands else ' (reverted)'}" for r in rounds)
    if best is None:
        last = rounds[-1]
        if not any(r.stands and r.trait is not None for r in rounds) and not all(r.stands for r in rounds):
            return Verdict("reverted", f"{VERDICTS['reverted']} ({course}). Last: {last.verdict.text}")
        return Verdict(last.verdict.name, f"no round stands above the coherence floors ({course}). {last.verdict.text}")
    earlier = [r for r in rounds if r.stands and r.number < best.number and r.verdict.name == "healed"]
    healed = best.verdict.name == "moved" and earlier
    name = "healed" if healed else best.verdict.name
    why = f" (healed in round {earlier[-1].number}, nothing left to heal since)" if healed else ""
    text = f"best round {best.number}{why} of: {course}. {best.verdict.text}"
    return Verdict(name, text, above_floors=True)
