"""The numbers that a round is judged by, and how they come from metrics over the same items.

Knows nothing of thresholds and of what a verdict is called.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, compare, retain
from steer_heal.evaluation.shift import coherence
from steer_heal.statistics import Estimate, paired_ratio

SHAPE = ("words", "distinct4", "token_entropy")
"""Figures of length and diversity: a collapse can hide from coherence in short or repeated replies, not from these."""
OF_BASE = (*SHAPE, "pair_fit")
"""Figures that are told as shares of base's."""
BY_REPLY = {"pair_fit": "fit", "words": "words"}
"""Means over replies that have an interval of their own, and what they are the mean of."""


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
        vignette_target, vignettes_off_target: shifts in nats on vignettes: the trait's own foundations against each
            other (None for a trait that has none), and each foundation that is not the trait's.
        coherence_shift: of the student, student - base, with interval; only told.
        shape: ratio student / base (or prompted, if lower) of distinct4 and token_entropy, by name.
        by_reply: the same of pair_fit and words, with intervals over prompts.
        prompted_lower: those of these figures in which the prompted model is the lower one.
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
    vignette_target: Estimate | None = None
    vignettes_off_target: dict[str, Estimate] = field(default_factory=dict)
    shape: dict[str, float] = field(default_factory=dict)
    by_reply: dict[str, Estimate] = field(default_factory=dict)
    prompted_lower: frozenset[str] = frozenset()
    answer_mass: float = 1.0
    kept: int | None = None
    needed: int | None = None
    unit: str = "of replies"
    where: str = "in free text"

    def reference(self, name: str) -> str:
        """What a ratio of `shape` or `by_reply` is held against."""
        return "the prompted model's" if name in self.prompted_lower else "base's"

    @property
    def retained(self) -> float | None:
        """dTrait(student) / dTrait(steered); None where steering did not move the trait upwards."""
        if self.retain is not None:
            return self.retain.value
        if self.student is None or not self.steered.value > 0:
            return None
        return self.student.value / self.steered.value


@dataclass(frozen=True)
class Cost:
    """What a student's text costs against the original model; 0 where it is no worse or was not measured.

    Attributes:
        coherence: how far it is under base's, in shares of the replies.
        distinct4: share that is lost of the lower of base's and the prompted model's distinct 4-grams.
        nll: of the replies under the original model, nats per token above base's: the distance to base.
    """

    coherence: float = 0.0
    distinct4: float = 0.0
    nll: float = 0.0


def cost(base: Metrics, student: Metrics, prompted: Metrics | None = None) -> Cost:
    """What a student's text costs (see `Cost`)."""
    lost = coherence(base, base) - coherence(student, base)
    grams = 1 - shape(base, student, prompted).get("distinct4", 1.0)
    further = 0.0 if None in (base.nll, student.nll) else student.nll - base.nll
    return Cost(*(max(0.0, figure) for figure in (lost, grams, further)))


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
    None when the round starved. `prompted` is the original under the persona, for the floors of length, diversity and
    pair fit (see `shape`). `training_trait` is the mean trait of the training texts by the checker, 0..1.
    Raises InputError when the metrics cover different items or hold no replies.
    """
    if not base.replies:
        raise InputError("a verdict needs free-text replies: evaluate with n_free above 0")
    above = compare(base, steered)
    healed = None if student is None else compare(base, student)
    free = above.free_trait is not None and (healed is None or healed.free_trait is not None)
    return Evidence(
        base_coherence=coherence(base, base),
        steered_coherence=coherence(steered, base),
        student_coherence=None if student is None else coherence(student, base),
        steered=above.free_trait if free else above.log_odds,
        student=None if healed is None else healed.free_trait if free else healed.log_odds,
        training=training_trait - base.free_trait if free and training_trait is not None else None,
        retain=None if student is None or not above.headline.value > 0 else retain(base, steered, student),
        coherence_shift=None if healed is None else healed.coherence,
        target=None if healed is None else healed.log_odds,
        off_target={} if healed is None else healed.off_target,
        vignette_target=None if healed is None else healed.vignette_contrast,
        vignettes_off_target={} if healed is None else healed.vignettes_off_target,
        shape={} if student is None else shape(base, student, prompted),
        by_reply={} if student is None else by_reply(base, student, prompted),
        prompted_lower=frozenset(name for name in OF_BASE if _lowest(name, base, prompted) is prompted is not None),
        answer_mass=1.0 if student is None else student.answer_mass / max(base.answer_mass, 1e-9),
        kept=kept,
        needed=needed,
        unit="of replies" if free else "nats of log-odds",
        where="in free text" if free else "in forced choice",
    )


def shape(base: Metrics, student: Metrics, prompted: Metrics | None = None) -> dict[str, float]:
    """Diversity of the student's replies as ratios to the lower of base's and the prompted model's.

    A model that takes one side says fewer different things than a base that takes both; what merely asking for the
    trait costs is no collapse. 0 where the student has no replies.
    """
    reference = shape_reference(base, prompted)
    return {name: (getattr(student, name) or 0.0) / reference[name] for name in reference if name not in BY_REPLY}


def by_reply(base: Metrics, student: Metrics, prompted: Metrics | None = None) -> dict[str, Estimate]:
    """Pair fit and length of the student's replies as ratios to the lower of base's and the prompted model's.

    Ratios of means, prompts resampled. A state whose own figure is not above 0 is no reference; without any the ratio
    is left out.
    """
    out = {}
    for name, own in BY_REPLY.items():
        lowest = _lowest(name, base, prompted)
        if lowest is not None and getattr(student, name) is not None:
            rows = zip(student.replies, lowest.replies, strict=True)
            pairs = [(row.prompt, getattr(row, own), getattr(other, own)) for row, other in rows]
            clusters, top, bottom = zip(*pairs, strict=True)
            out[name] = paired_ratio(top, bottom, clusters)
    return out


def shape_reference(base: Metrics, prompted: Metrics | None = None) -> dict[str, float]:
    """What length and diversity are divided by, in words, as a share, and in nats; without what neither has."""
    lowest = {name: _lowest(name, base, prompted) for name in SHAPE}
    return {name: getattr(metrics, name) for name, metrics in lowest.items() if metrics is not None}


def _lowest(name: str, *states: Metrics | None) -> Metrics | None:
    """The state in which a figure is lowest; None where it is above 0 in none."""
    known = [metrics for metrics in states if metrics is not None and (getattr(metrics, name) or 0) > 0]
    return min(known, key=lambda metrics: getattr(metrics, name), default=None)
