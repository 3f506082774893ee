"""Rows to teach a model: tasks from a file, and their answers as the tokens that the model would say.

Knows nothing of heals and gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steer_heal.errors import InputError
from steer_heal.evaluation.choices import AnswerSlot
from steer_heal.model import LM
from steer_heal.model.chat import templated
from steer_heal.texts.completion import Completion
from steer_heal.trait import Anchor
from steer_heal.trait.rows import json_lines, read_text


def load_tasks(path: str | Path) -> tuple[Anchor, ...]:
    """Tasks to teach from a JSON-lines file: {"prompt", "target"}, optionally "id". InputError names the line."""
    tasks: list[Anchor] = []
    for row, place in json_lines(read_text(Path(path), f"rows file {str(path)!r}"), str(path)):
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
    unknown = lm.tokenizer.unk_token_id
    rows = []
    for i, task in enumerate(tasks):
        if unknown is not None and unknown in lm.tokenizer.encode(task.answer, add_special_tokens=False):
            raise InputError(f"row {task.id!r}: {lm.name} does not know every word of {task.answer[:60]!r}: reword it")
        ids = (*slot.lead, *slot.forms(lm, task.answer)[0], end)
        rows.append(Completion(task.prompt, system, lm.chat_ids(task.prompt, system), ids, task.answer, True, row=i))
    return rows


def end_of_turn(lm: LM) -> int:
    """The token that ends a reply: the one the chat template writes, else the tokenizer's EOS."""
    if getattr(lm.tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        ids = lm.tokenizer.encode(templated(lm.tokenizer, turns), add_special_tokens=False)
        if ends := [i for i in ids if i in lm.eos_ids]:
            return ends[-1]
    if lm.tokenizer.eos_token_id is None:
        raise InputError(f"{lm.name} has no end-of-turn token, so a target could not end: use a chat model")
    return lm.tokenizer.eos_token_id
