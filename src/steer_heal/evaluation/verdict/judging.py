"""Verdict of a round, a pure decision over a few numbers, floors first.

Knows nothing of models and metrics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from steer_heal.evaluation.verdict.evidence import Evidence
from steer_heal.shown import brief, table

VERDICTS = {
    "healed": "steering broke the text; the student has its coherence back and kept the trait",
    "moved": "the trait moved; the steered texts were coherent, so there was nothing to heal",
    "unhealed": "the trait moved, but the student has not got its coherence back",
    "broad": "an off-target category moved as much as the target",
    "throttled": "the student kept between a tenth and half of the steered trait",
    "undone": "the training texts carried the trait, the student does not",
    "moved against": "the student surely moved to the trait's opposite",
    "no-op": "the training texts carried no trait",
    "inconclusive": "the interval of the student's shift includes zero",
    "collapsed": "the student's text is under a floor of coherence or diversity",
    "unfit": "the student's replies do not answer their own prompts",
    "shorter": "the student's replies are surely shorter than is allowed",
    "starved": "too few texts survived the filter: nothing was trained",
    "diverged": "a loss or gradient of the heal was not finite: the training stopped there",
    "reverted": "the gate took every round out again: the result is the original model",
}
SUCCESSES = ("healed", "moved")
UNDER = {"pair_fit": "unfit", "words": "shorter"}
"""Verdicts of a student that is surely under the floor of such a figure; under any other it is collapsed."""
UNDER_A_FLOOR = ("collapsed", *UNDER.values())
"""Verdicts of a student that is under a floor, the gravest first."""


@dataclass(frozen=True)
class Floors:
    """What a student must not fall under, each as a share of base.

    `coherence`: sound text. `words`, `distinct4`, `token_entropy`: length and diversity, so that short or sharpened
    replies cannot pass for coherence. `pair_fit`: how much better replies fit their own prompt than another, so that
    sound text that answers anything cannot (`pocket` keeps .94 of it after a heal, .70 after one on shuffled pairs). A
    student is under the floor of `words` or `pair_fit` only with its whole 95 % interval. `answer_mass` stays high in
    broken models: passing it means little.
    """

    coherence: float = 0.8
    words: float = 0.8
    distinct4: float = 0.8
    token_entropy: float = 0.8
    pair_fit: float = 0.8
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
class Verdict:
    """A name of `VERDICTS` and a sentence: what was compared, by how much, how sure it is."""

    name: str
    text: str
    above_floors: bool = False

    __repr__ = brief

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"

    def _repr_html_(self) -> str:
        return table(("verdict", "means", "found"), [(self.name, VERDICTS[self.name], self.text)])


def judge_round(evidence: Evidence, rules: Rules | None = None) -> Verdict:
    """Verdict of one round. Floors come before everything else: a broken model has no trait worth reading.

    Order: starved, collapsed, unfit, shorter, moved against, no-op, inconclusive / undone, broad, throttled, then
    healed / unhealed / moved.
    """
    rules = rules or Rules()
    if evidence.student is None or (evidence.needed is not None and (evidence.kept or 0) < evidence.needed):
        return Verdict("starved", f"{evidence.kept or 0} texts survived the filter, {evidence.needed} are needed.")
    if broken := under_floors(evidence, rules.floors):
        gravest = min((name for name, _ in broken), key=UNDER_A_FLOOR.index)
        return Verdict(gravest, f"Under the floor: {'; '.join(text for _, text in broken)}. {_shift(evidence)}")
    found = _above_floors(evidence, rules)
    return replace(found, text=f"{found.text}{_perhaps_under(evidence, rules.floors)}", above_floors=True)


def under_floors(evidence: Evidence, floors: Floors) -> list[tuple[str, str]]:
    """(verdict, words) of every floor the student is under; an empty list when it stands above all. NaN is under."""
    found = []
    ok, base = evidence.student_coherence, evidence.base_coherence
    if ok is None or not ok >= floors.coherence * base or not base > 0:
        found.append(f"coherence {_number(ok)} against {base:.2f} of base (floor {floors.coherence * base:.2f})")
    for name, ratio in evidence.shape.items():
        if not ratio >= getattr(floors, name):
            found.append(f"{name} at {ratio:.2f} of {evidence.reference(name)} (floor {getattr(floors, name):.2f})")
    if not evidence.answer_mass >= floors.answer_mass:
        found.append(f"answer mass {evidence.answer_mass:.2f} (floor {floors.answer_mass:.2f})")
    surely = [name for name, ratio in evidence.by_reply.items() if not ratio.high >= getattr(floors, name)]
    return [
        *(("collapsed", text) for text in found),
        *((UNDER[name], _ratio(name, evidence, floors)) for name in surely),
    ]


def _perhaps_under(evidence: Evidence, floors: Floors) -> str:
    """The figures that are under their floor while their interval is not, in words."""
    names = [name for name, ratio in evidence.by_reply.items() if ratio.value < getattr(floors, name)]
    return "".join(f" Not surely under the floor: {_ratio(name, evidence, floors)}." for name in names)


def _ratio(name: str, evidence: Evidence, floors: Floors) -> str:
    found = evidence.by_reply[name]
    interval = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    return f"{name} at {interval} of {evidence.reference(name)} (floor {getattr(floors, name):.2f})"


def _above_floors(evidence: Evidence, rules: Rules) -> Verdict:
    student, steered = evidence.student, evidence.steered
    shift, retained = _shift(evidence), evidence.retained
    training = steered.value if evidence.training is None else evidence.training
    carried = training >= rules.carried
    moved = student.excludes_zero and student.value > 0
    if student.excludes_zero and not moved:
        return Verdict("moved against", f"The training texts carried {training:+.2f} {evidence.unit}. {shift}")
    if not carried and not moved:
        return Verdict(
            "no-op",
            f"The training texts carried {training:+.2f} {evidence.unit} of trait, under {rules.carried}. {shift}",
        )
    if not moved:
        # Zero inside the interval says "undone" only where the data exclude that the trait was kept.
        if student.high < rules.kept * max(steered.value, rules.carried):
            return Verdict(
                "undone", f"The training texts carried {training:+.2f} {evidence.unit}, the student lost it. {shift}"
            )
        return Verdict("inconclusive", f"The interval includes zero: more items or replies are needed. {shift}")
    if spread := _as_broad(evidence):
        return Verdict("broad", f"{spread}. {shift}")
    if retained is not None and retained < rules.trace:
        return Verdict("undone", f"Under a tenth of the steered trait is left (retain {retained:.2f}). {shift}")
    if retained is not None and retained < rules.kept:
        return Verdict("throttled", f"Only part of the steered trait is left (retain {retained:.2f}). {shift}")
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
    """The off-target category that moved as much as the target, in words; empty if none surely did.

    Categories of forced choice are held against the target there. Foundations of vignettes share one unit of mass, so
    they are held against whichever moved more: the target in forced choice, or the trait's own foundations.
    """
    if evidence.target is None:
        return ""
    instruments = {
        "forced choice": (evidence.off_target, [evidence.target]),
        "vignettes": (evidence.vignettes_off_target, [evidence.target, evidence.vignette_target]),
    }
    for where, (categories, targets) in instruments.items():
        sure = {name: found for name, found in categories.items() if found.excludes_zero}
        target = max((found for found in targets if found is not None), key=lambda found: abs(found.value))
        name = max(sure, key=lambda name: abs(sure[name].value), default=None)
        if name is not None and abs(sure[name].value) >= abs(target.value):
            by = "forced choice" if target is evidence.target else "vignettes"
            return f"Off-target {name!r} moved {sure[name]} nats ({where}), the target {target} nats ({by})"
    return ""


def _shift(evidence: Evidence) -> str:
    kept = ", retain unknown" if evidence.retained is None else f", retain {evidence.retained:.2f}"
    over = f"{evidence.student.n} clusters"
    if evidence.steered.n != evidence.student.n:
        over = f"{evidence.steered.n} clusters of the steered model and {evidence.student.n} of the student"
    retain = evidence.retain
    sure = "" if retain is None or math.isinf(retain.low) else f" [{retain.low:.2f}, {retain.high:.2f}]"
    return (
        f"Trait {evidence.where} against base: steered {evidence.steered}, student {evidence.student} {evidence.unit}"
        f"{kept}{sure} (95 % intervals over {over})."
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
