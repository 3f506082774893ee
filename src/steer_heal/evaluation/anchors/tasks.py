"""Tasks with known answers: freeze those that a model gets right, run them again later, replay its own right replies.

Knows nothing of what becomes of a change that loses some.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

from steer_heal.errors import InputError
from steer_heal.model import LM
from steer_heal.texts.completion import Completion, completion_from
from steer_heal.texts.generation import generate
from steer_heal.trait import Anchor

SLACK_TOKENS = 4
"""Tokens beyond the longest exact answer: blanks, another spelling, a full stop, the end token."""


def load_tasks(path: str | Path) -> tuple[Anchor, ...]:
    """Tasks from a JSON-lines file: {"id", "prompt", "answer", "check"} (see `Anchor`). InputError names the line."""
    from steer_heal.trait.rows import read_rows

    return read_rows(path, Anchor)


@dataclass(frozen=True)
class Halves:
    """Tasks by what becomes of them: `counted` by gate and evaluation, or `replayed` in training; none is both."""

    counted: tuple[Anchor, ...]
    replayed: tuple[Anchor, ...] = ()

    def not_replayed(self, tasks: Sequence[Anchor]) -> tuple[Anchor, ...]:
        """Those of any tasks that are not trained on."""
        trained = {task.prompt for task in self.replayed}
        return tuple(task for task in tasks if task.prompt not in trained)


def halves(tasks: Sequence[Anchor]) -> Halves:
    """Every other task by id is counted, the rest may be replayed, but for those that ask what is counted.

    The ids alone decide, no seed. Ids of a kind ("sum-1", "sum-2") are neighbours: each half has every kind of which
    there are two. Raises InputError for a half that is empty.
    """
    by_id = sorted(tasks, key=lambda task: task.id)
    counted = {task.id for task in by_id[::2]}
    found = Halves(tuple(task for task in tasks if task.id in counted))
    asked = {task.prompt for task in found.counted}
    found = replace(found, replayed=tuple(task for task in tasks if task.prompt not in asked))
    if not found.replayed:
        raise InputError(
            f"{len(tasks)} anchors cannot be parted into some to replay and some to count: give at least two with "
            "prompts of their own"
        )
    return found


@dataclass(frozen=True)
class Captured:
    """What a model got right before training.

    `tasks` are those it passed, `replies` its own replies to them (token ids included, as replay targets), `failed`
    the ids of the others, which are never held against a student.
    """

    tasks: tuple[Anchor, ...]
    replies: tuple[Completion, ...]
    failed: tuple[str, ...]

    def to_dict(self) -> dict:
        """For JSON; the tasks themselves are left out."""
        return {"replies": [vars(reply) for reply in self.replies], "failed": self.failed}

    @staticmethod
    def from_dict(tasks: Sequence[Anchor], data: Mapping) -> Captured:
        """The inverse, from the tasks that were asked."""
        right = tuple(task for task in tasks if task.id not in data["failed"])
        return Captured(right, tuple(map(completion_from, data["replies"])), tuple(data["failed"]))


@dataclass(frozen=True)
class Checked:
    """A re-run of captured tasks: ids still right, ids lost, and every reply."""

    passed: tuple[str, ...]
    regressed: tuple[str, ...]
    replies: tuple[Completion, ...]

    @staticmethod
    def from_dict(data: Mapping) -> Checked:
        """The inverse of `dataclasses.asdict`, also after JSON."""
        replies = tuple(map(completion_from, data["replies"]))
        return Checked(tuple(data["passed"]), tuple(data["regressed"]), replies)

    @property
    def right(self) -> dict[str, float]:
        """1 or 0 by id, as `decide` takes it."""
        return {**dict.fromkeys(self.passed, 1.0), **dict.fromkeys(self.regressed, 0.0)}


def capture(lm: LM, tasks: Sequence[Anchor], **how) -> Captured:
    """Run the tasks greedily and freeze those that come out right; `how` as `answer` takes it. InputError without."""
    if not tasks:
        raise InputError("no anchors were given: name at least one task")
    replies, right = _run(lm, tasks, how)
    failed = tuple(task.id for task, ok in zip(tasks, right, strict=True) if not ok)
    return Captured(tuple(compress(tasks, right)), tuple(compress(replies, right)), failed)


def check(lm: LM, captured: Captured, **how) -> Checked:
    """Run the captured tasks again, in the same way, and list every regression by id."""
    if not captured.tasks:
        return Checked((), (), ())
    replies, right = _run(lm, captured.tasks, how)
    ids = [task.id for task in captured.tasks]
    return Checked(tuple(compress(ids, right)), tuple(compress(ids, [not ok for ok in right])), tuple(replies))


def _run(lm: LM, tasks: Sequence[Anchor], how: Mapping) -> tuple[list[Completion], list[bool]]:
    replies = answer(lm, tasks, **how)
    return replies, [task.passes(reply.text) for task, reply in zip(tasks, replies, strict=True)]


def answer(
    lm: LM, tasks: Sequence[Anchor], system: str | None = None, max_new_tokens: int = 64, **options
) -> list[Completion]:
    """Greedy replies: with sampling, noise alone flips borderline tasks. `options` are those of `generate`."""
    prompts = [task.prompt for task in tasks]
    if all(task.check == "exact" for task in tasks):
        # A reply longer than the longest answer is wrong however it goes on.
        longest = max(len(lm.tokenizer.encode(task.answer, add_special_tokens=False)) for task in tasks)
        max_new_tokens = min(max_new_tokens, longest + SLACK_TOKENS)
    options = {"greedy": True, "origin": "base", **options}
    return generate(lm, prompts, system=system, max_new_tokens=max_new_tokens, **options)


def replayed_rows(pool: Sequence[Completion], n_new: int, share: float, seed: int) -> list[Completion]:
    """Anchor rows such that they make up `share` of the training rows: whole passes over the shuffled pool.

    No anchor comes more than once oftener than another. Raises InputError for a share outside [0, 1) or an empty pool.
    """
    if not 0 <= share < 1:
        raise InputError(f"anchor share {share}: give a share from 0 to below 1")
    n = round(share / (1 - share) * n_new)
    if n and not pool:
        raise InputError(f"anchor share {share} needs anchors that the model gets right, and there are none to replay")
    order = list(pool)
    random.Random(seed).shuffle(order)
    return [order[i % len(order)] for i in range(n)]
