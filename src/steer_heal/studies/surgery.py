"""Teach a model rows while it must not lose what it can: heal, bake, gate, keep or revert, archive; one setting a time.

Knows nothing of where the rows came from and of how settings are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from steer_heal.errors import InputError
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
from steer_heal.evaluation.choices import AnswerSlot
from steer_heal.healing import HealConfig, heal, reference_states
from steer_heal.healing.bake import AdapterStack
from steer_heal.healing.loss import measure
from steer_heal.healing.references import fingerprint
from steer_heal.ledger import write_json
from steer_heal.model import LM
from steer_heal.texts.completion import Completion
from steer_heal.trait import Anchor
from steer_heal.trait.rows import json_lines

CHECKS = tuple(one for one in DEFAULT_CHECKS if one.figure == "anchors")
"""The gate asks about the anchors alone: rows to learn have no trait and no coherence to watch."""


# ------------------------------------------------------------------------------------------------------ rows to learn
def load_tasks(path: str | Path) -> tuple[Anchor, ...]:
    """Tasks to teach from a JSON-lines file: {"prompt", "target"}, optionally "id". InputError names the line."""
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"rows file {str(path)!r} cannot be read ({problem}): give a UTF-8 .jsonl file") from problem
    tasks: list[Anchor] = []
    for row, place in json_lines(text, str(path)):
        keys = set(row) if isinstance(row, dict) else set()
        texts = all(isinstance(value, str) and value.strip() for value in row.values()) if keys else False
        if not {"prompt", "target"} <= keys <= {"id", "prompt", "target"} or not texts:
            raise InputError(f"{place}: expected an object with the texts prompt and target, and an id if you like")
        tasks.append(Anchor(row.get("id", f"row-{len(tasks):03d}"), row["prompt"], row["target"]))
    if not tasks:
        raise InputError(f"{path}: is empty: give at least one row")
    if len({task.id for task in tasks}) < len(tasks):
        raise InputError(f"{path}: two rows have one id: make ids unique")
    return tuple(tasks)


def task_rows(lm: LM, tasks: Sequence[Anchor], system: str | None = None) -> list[Completion]:
    """Completions whose tokens are the tasks' answers, spelt as the model would say them, end of turn included.

    Raises InputError for an answer with a word that the tokenizer does not know.
    """
    slot, end = AnswerSlot.of(lm), end_of_turn(lm)
    rows = []
    for i, task in enumerate(tasks):
        unknown = lm.tokenizer.unk_token_id
        if unknown is not None and unknown in lm.tokenizer.encode(task.answer, add_special_tokens=False):
            raise InputError(f"row {task.id!r}: {lm.name} does not know every word of {task.answer[:60]!r}: reword it")
        ids = (*slot.lead, *slot.forms(lm, task.answer)[0], end)
        rows.append(Completion(task.prompt, system, lm.chat_ids(task.prompt, system), ids, task.answer, True, row=i))
    return rows


def end_of_turn(lm: LM) -> int:
    """The token that ends a reply: the one the chat template writes, else the tokenizer's EOS."""
    if getattr(lm.tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        ids = lm.tokenizer.encode(lm.tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)
        if ends := [i for i in ids if i in lm.eos_ids]:
            return ends[-1]
    if lm.tokenizer.eos_token_id is None:
        raise InputError(f"{lm.name} has no end-of-turn token, so a target could not end: use a chat model")
    return lm.tokenizer.eos_token_id


# ---------------------------------------------------------------------------------------------------------- operation
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
        batch = round(config.batch_size / (1 - self.share)) if equal_steps else config.batch_size
        return replace(
            config, reg=config.reg if self.lam else "nll", lam=self.lam, row_weights=self.row_weights,
            barrier_rows=self.barrier_rows, heldout=0.0, seed=seed,
            batch_size=batch,
        )  # fmt: skip


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
    reference = reference_states(lm, [*op.rows, *anchors])
    known = {"prev": reference}
    was = measure(lm, op.rows, {})["nll"]
    healed = heal(lm, rows, setting.heal_config(op.config, seed, op.equal_steps), known, barrier_weights=weights)
    op.stack.push(healed.adapter)
    try:
        new, old = measure(lm, op.rows, known), measure(lm, anchors, known)
        said = answer(lm, op.tasks, op.system, op.max_new_tokens) if op.tasks else []
        checked = check(lm, op.captured, system=op.system, max_new_tokens=op.max_new_tokens)
    finally:
        op.stack.pop()
    if fingerprint(lm.base) != before:
        raise RuntimeError("the weights after the revert are not those before the heal")
    right = {"anchors": dict.fromkeys((task.id for task in op.captured.tasks), 1.0)}
    decision = decide(Before(right, right), {"anchors": checked.right}, CHECKS)
    replayable, passed = {row.prompt for row in op.pool}, set(checked.passed)
    in_pool = [task.id for task in op.captured.tasks if task.prompt in replayable]
    found = Attempt(
        setting, seed, len(op.rows), len(rows) - len(op.rows), int(healed.figures["steps"]), fmean(was),
        fmean(new["nll"]), fmean(new["prev"]), fmean(old["prev"]),
        sum(t.passes(c.text) for t, c in zip(op.tasks, said, strict=True)) if op.tasks else None,
        len(passed), len(op.captured.tasks), len(passed & set(in_pool)), len(in_pool), decision,
        tuple((c.prompt, c.text) for c in (*said, *_lost(op.captured, checked))),
    )  # fmt: skip
    folder = out / ("kept" if found.kept else "archive") / f"{setting.name}_s{seed}"
    healed.adapter.save(folder)
    decision.save(folder / "decision.json")
    write_json(folder / "attempt.json", asdict(found))
    return found


def _lost(captured: Captured, checked) -> list[Completion]:
    """The replies to anchors that are wrong now."""
    gone = set(checked.regressed)
    return [reply for task, reply in zip(captured.tasks, checked.replies, strict=True) if task.id in gone]


def best(attempts: Sequence[Attempt]) -> Attempt | None:
    """The kept attempt that learnt most (tasks, else nll), then lost least; None when nothing was kept."""
    kept = [one for one in attempts if one.kept]
    return max(
        kept, key=lambda one: (math.inf if one.learned is None else one.learned, -one.nll_after, one.passed),
        default=None,
    )  # fmt: skip
