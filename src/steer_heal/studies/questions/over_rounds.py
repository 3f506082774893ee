"""Questions that finished runs answer: arms against each other, and a run against its own first round.

Knows nothing of models: figures come from run folders. A function takes runs by arm and seed, and the seeds that all
of its arms have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steer_heal.ledger import Ledger
from steer_heal.statistics import N_BOOT, Estimate, wilson
from steer_heal.studies.arms.comparing import compare_states
from steer_heal.studies.arms.reading import ArmRun, State
from steer_heal.studies.questions.answers import Part, beside, share_difference

Runs = Mapping[str, Mapping[int, ArmRun]]
Seeds = Sequence[int]
TEXT, TRAIT = "coherence", "log_odds"
LOSS = 0.1
"""Share of the sentences that text which is held may have lost: 40 replies do not show less."""
UNITS = {TEXT: "sentence ok", TRAIT: "log-odds, nats,", "held_out_log_odds": "log-odds in other formats, nats,"}


def contrast(what: str, figure: str, pairs: Sequence[tuple[State, State]], **claimed) -> Part:
    """after - before of a figure of `Shift`, or of an off-target category, over (before, after), one pair a seed."""

    def read(before: Sequence[State], after: Sequence[State], n_boot: int = N_BOOT) -> Estimate:
        shift = compare_states(before, after, n_boot)
        return shift.off_target[figure] if figure in shift.off_target else getattr(shift, figure)

    values = tuple(read([before], [after], n_boot=100).value for before, after in pairs)  # only the values are used
    return Part(f"{UNITS.get(figure, 'nats of')} {what}", read(*zip(*pairs, strict=True)), values, **claimed)


def ends(runs: Runs, seeds: Seeds, arm: str, other: str, figure: str, **claimed) -> Part:
    """arm - other after the last round that both were asked for."""
    number = min(runs[name][seeds[0]].n_rounds for name in (arm, other)) - 1
    pairs = [(runs[other][seed].standing(number), runs[arm][seed].standing(number)) for seed in seeds]
    return contrast(f"{arm} - {other}, round {number}", figure, pairs, **claimed)


def since_first(runs: Runs, seeds: Seeds, arm: str, figure: str, **claimed) -> Part:
    """The end of an arm minus its round 0."""
    pairs = [(runs[arm][seed].standing(0), runs[arm][seed].last) for seed in seeds]
    return contrast(f"{arm}, last - round 0", figure, pairs, **claimed)


def prev_or_base(runs: Runs, seeds: Seeds) -> list[Part]:
    """Over ten rounds prev as reference collapses, base holds the text."""
    held = [(runs["open-kl"][seed].base, runs["open-kl"][seed].last) for seed in seeds]
    return [
        ends(runs, seeds, "prev", "open-kl", TEXT, above=False),
        contrast("open-kl, last round - original", TEXT, held, limit=-LOSS),
        beside(ends(runs, seeds, "prev", "open-kl", TRAIT)),
    ]


STARVES = 30
"""Survivors of all batches under which a round starves."""


def walk(runs: Runs, seeds: Seeds) -> list[Part]:
    """A fixed dose starves the filter as the trait grows; walk-C keeps it fed.

    At the full dose, where a walk begins, ever fewer texts survive, too few for a round. The first batch of a walk is
    what a fixed dose would get; the rounds before it had their dose walked.
    """
    tried = [[e for e in Ledger.open(runs["tokens"][seed].folder).events("walk")] for seed in seeds]
    first = [walks[0] for walks in tried]
    last = [[one for one in walks if one["kappa_start"] == 1][-1] for walks in tried]
    most = [runs["tokens"][seed].config["walk_batches"] * runs["tokens"][seed].config["walk_batch"] for seed in seeds]

    def share(steps: Sequence[Mapping]) -> tuple[Estimate, list[float]]:
        return wilson(sum(s["survived"] for s in steps), sum(s["n"] for s in steps)), [
            s["survived"] / s["n"] for s in steps
        ]

    def change(what: str, before, after, **claimed) -> Part:
        by_seed = tuple(b - a for a, b in zip(before[1], after[1], strict=True))
        return Part(f"share kept, {what}", share_difference(before[0], after[0]), by_seed, **claimed)

    began, full, walked = (
        share([e["curve"][at] for e in events]) for events, at in ((first, 0), (last, 0), (last, -1))
    )
    when = "round " + ", ".join(str(one["round"]) for one in last)
    return [
        change(f"full dose, {when} - round 0", began, full, above=False),
        Part(f"share kept, full dose, {when}", full[0], tuple(full[1]), limit=STARVES / max(most), above=False),
        change(f"walked - full dose, {when}", full, walked),
    ]


def ramp(runs: Runs, seeds: Seeds) -> list[Part]:
    """A barrier that loosens by round moves further and holds the text as well."""
    return [
        ends(runs, seeds, "ramp", "open-kl", TRAIT),
        ends(runs, seeds, "ramp", "open-kl", TEXT, limit=-LOSS),
    ]


def nll_over_rounds(runs: Runs, seeds: Seeds) -> list[Part]:
    """nll front-loads the trait, then erodes it."""
    first = [(runs["open-kl"][seed].standing(0), runs["open-nll"][seed].standing(0)) for seed in seeds]
    return [
        contrast("open-nll - open-kl, round 0", TRAIT, first),
        since_first(runs, seeds, "open-nll", TRAIT, above=False),
        beside(since_first(runs, seeds, "open-nll", TEXT)),
    ]


def aggregates(runs: Runs, seeds: Seeds) -> list[Part]:
    """Over a loop p95 lets text go that rmse holds; max and cvar hold no less."""
    return [
        ends(runs, seeds, "p95", "open-kl", TEXT, above=False),
        *(ends(runs, seeds, arm, "open-kl", TEXT, limit=-LOSS) for arm in ("max", "cvar")),
        *(beside(ends(runs, seeds, arm, "open-kl", TRAIT)) for arm in ("p95", "max", "cvar")),
    ]


def bounded(runs: Runs, seeds: Seeds) -> list[Part]:
    """The original's own texts and earlier rounds' keep the loop from collapse."""
    return [
        ends(runs, seeds, "bounded", "open-nll", TEXT),
        since_first(runs, seeds, "bounded", TEXT, limit=-LOSS),
        beside(ends(runs, seeds, "bounded", "open-nll", TRAIT)),
    ]


def shuffled(runs: Runs, seeds: Seeds) -> list[Part]:
    """Shuffled pairs carry the stance and not the text, under soft targets too.

    Within half a nat.
    """
    return [
        ends(runs, seeds, "shuffled", "default", TRAIT, limit=-0.5),
        ends(runs, seeds, "shuffled", "default", TEXT, above=False),
    ]
