"""Teach a model rows while it must not lose what it can: heal, bake, gate, keep or revert, archive; one setting a time.

Knows nothing of where the rows came from and of how settings are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from steer_heal.evaluation.anchors import (
    DEFAULT_CHECKS,
    Before,
    Captured,
    Decision,
    answer,
    check,
    decide,
    replayed_rows,
)
from steer_heal.healing import HealConfig, reference_states
from steer_heal.healing.bake import AdapterStack
from steer_heal.healing.loss import measure
from steer_heal.ledger import write_json
from steer_heal.model import LM
from steer_heal.model.structure import fingerprint
from steer_heal.studies.material import healed
from steer_heal.texts.completion import Completion
from steer_heal.trait import Anchor

CHECKS = tuple(one for one in DEFAULT_CHECKS if one.figure == "anchors")
"""The gate asks about the anchors alone: rows to learn have no trait and no coherence to watch."""


@dataclass(frozen=True)
class Setting:
    """One rung: what is varied between heals.

    Attributes:
        share: anchor rows as a share of all training rows, 0 to below 1.
        lam: weight of the barrier; 0: none.
        row_weights, barrier_rows: as in `HealConfig`. Without anchor rows the barrier can only act on all rows.
    """

    share: float
    lam: float
    row_weights: str = "none"
    barrier_rows: str = "replay"

    def __post_init__(self) -> None:
        if self.share == 0 or self.lam == 0:
            object.__setattr__(self, "barrier_rows", "all")

    @property
    def name(self) -> str:
        """For files and tables."""
        extra = "" if self.row_weights == "none" else f"_{self.row_weights}"
        return f"share{self.share:g}_lam{self.lam:g}_{self.barrier_rows}{extra}"

    def heal_config(self, config: HealConfig, seed: int, equal_steps: bool = False) -> HealConfig:
        """`config` with this setting's values; no rows are held out, for there is one row per task."""
        values = {"lam": self.lam, "row_weights": self.row_weights, "barrier_rows": self.barrier_rows}
        if not self.lam:
            values["reg"] = "nll"
        if equal_steps:
            values["batch_size"] = round(config.batch_size / (1 - self.share))
        return replace(config, heldout=0.0, seed=seed, **values)


@dataclass(frozen=True)
class Operation:
    """What all settings of a ladder share.

    Attributes:
        stack: folds into `lm`; every attempt starts and ends with the stack as it is.
        rows: what is to be learnt. tasks: the same as questions, to count what was; empty for rows without an answer.
        captured: anchors that the model gets right, with its own replies; the gate checks all of them.
        pool: those of the captured replies that may be replayed; the others show whether rehearsing reaches further.
        barrier_weights: a factor on an anchor row's barrier by prompt (1 where not named).
        config: the heal's options that no setting changes.
        equal_steps: widen the batch with the share, so that anchor rows dilute a step instead of adding steps.
    """

    lm: LM
    stack: AdapterStack
    rows: Sequence[Completion]
    tasks: Sequence[Anchor]
    captured: Captured
    pool: Sequence[Completion]
    barrier_weights: dict[str, float]
    config: HealConfig
    system: str | None = None
    max_new_tokens: int = 64
    equal_steps: bool = False


@dataclass(frozen=True)
class Attempt:
    """What came of one setting at one seed.

    Attributes:
        n_new, n_anchor, steps: training rows of either kind, optimiser steps.
        nll_before, nll_after: mean over the new rows of their token-mean nll, nats.
        kl_new, kl_anchors: token-mean KL(student || model before) on the new rows and on ALL captured replies, nats.
        learned: tasks answered right afterwards, None for rows without an answer.
        passed: anchors still right. n: of how many. passed_pool, n_pool: those among them that could be replayed.
        decision: of the gate; anything but `keep` is reverted.
        replies: the greedy replies to the tasks and to the lost anchors, for reading.
    """

    setting: Setting
    seed: int
    n_new: int
    n_anchor: int
    steps: int
    nll_before: float
    nll_after: float
    kl_new: float
    kl_anchors: float
    learned: int | None
    passed: int
    n: int
    passed_pool: int
    n_pool: int
    decision: Decision
    replies: tuple[tuple[str, str], ...]

    @property
    def kept(self) -> bool:
        return self.decision.outcome == "keep"

    @property
    def lost(self) -> tuple[str, ...]:
        """Ids of the anchors that were right before and are wrong now."""
        return self.decision.regressed.get("anchors", ())


def attempt(op: Operation, setting: Setting, seed: int, out: Path) -> Attempt:
    """Heal, bake, gate, and take the adapter out again, so that every setting starts from the same weights.

    The adapter goes to `out/kept` or `out/archive` with its `decision.json` and the replies. Raises what `heal` raises,
    and RuntimeError when the weights are not, bit for bit by fingerprint, what they were.
    """
    lm, anchors = op.lm, op.captured.replies
    rows = [*op.rows, *replayed_rows(op.pool, len(op.rows), setting.share, seed)]
    weights = [op.barrier_weights.get(row.prompt, 1.0) if row.origin == "base" else 1.0 for row in rows]
    before = fingerprint(lm.base)
    known = {"prev": reference_states(lm, [*op.rows, *anchors])}
    was = measure(lm, op.rows, {})["nll"]
    config = setting.heal_config(op.config, seed, op.equal_steps)
    with healed(lm, op.stack, rows, config, known, barrier_weights=weights) as done:
        new, old = measure(lm, op.rows, known), measure(lm, anchors, known)
        said = answer(lm, op.tasks, op.system, op.max_new_tokens) if op.tasks else []
        checked = check(lm, op.captured, system=op.system, max_new_tokens=op.max_new_tokens)
    if fingerprint(lm.base) != before:
        raise RuntimeError("the weights after the revert are not those before the heal")
    right = {"anchors": dict.fromkeys((task.id for task in op.captured.tasks), 1.0)}
    decision = decide(Before(right, right), {"anchors": checked.right}, CHECKS)
    replayable, passed = {row.prompt for row in op.pool}, set(checked.passed)
    in_pool = [task.id for task in op.captured.tasks if task.prompt in replayable]
    pairs = zip(op.captured.tasks, checked.replies, strict=True)
    lost = [reply for task, reply in pairs if task.id in checked.regressed]
    found = Attempt(
        setting=setting,
        seed=seed,
        n_new=len(op.rows),
        n_anchor=len(rows) - len(op.rows),
        steps=int(done.figures["steps"]),
        nll_before=fmean(was),
        nll_after=fmean(new["nll"]),
        kl_new=fmean(new["prev"]),
        kl_anchors=fmean(old["prev"]),
        learned=sum(t.passes(c.text) for t, c in zip(op.tasks, said, strict=True)) if op.tasks else None,
        passed=len(passed),
        n=len(op.captured.tasks),
        passed_pool=len(passed & set(in_pool)),
        n_pool=len(in_pool),
        decision=decision,
        replies=tuple((c.prompt, c.text) for c in (*said, *lost)),
    )
    folder = out / ("kept" if found.kept else "archive") / f"{setting.name}_s{seed}"
    done.adapter.save(folder)
    decision.save(folder / "decision.json")
    write_json(folder / "attempt.json", asdict(found))
    return found


def best(attempts: Sequence[Attempt]) -> Attempt | None:
    """The kept attempt that learnt most (tasks, else nll), then lost least; None when nothing was kept."""

    def rank(one: Attempt) -> tuple[float, float, int]:
        return math.inf if one.learned is None else one.learned, -one.nll_after, one.passed

    return max((one for one in attempts if one.kept), key=rank, default=None)
