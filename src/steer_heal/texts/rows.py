"""Completions as rows of a data set and back: prompt and completion, as TRL trains on and `datasets` keeps them.

Knows nothing of files and of what a completion is used for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from steer_heal.arguments import checked
from steer_heal.errors import InputError
from steer_heal.model import GivenLM, as_lm
from steer_heal.model.chat import fill_persona
from steer_heal.texts.completion import Completion


@checked
def completion_rows(completions: Iterable[Completion], chat: bool = True) -> list[dict]:
    """Rows of prompt and completion for TRL; `datasets.Dataset.from_list` takes them.

    Args:
        chat: lists of messages; False: plain texts, for a model without a chat template.
    """
    rows = []
    for completion in completions:
        asked, system = fill_persona(completion.prompt, completion.system)
        if chat:
            before = [{"role": "system", "content": system}] if system else []
            after = [{"role": "assistant", "content": completion.text}]
            rows.append({"prompt": [*before, {"role": "user", "content": asked}], "completion": after})
        else:
            rows.append({"prompt": f"{system}\n{asked}" if system else asked, "completion": completion.text})
    return rows


@checked
def completions_from_rows(lm: GivenLM, rows: Iterable[Mapping], origin: str = "given") -> list[Completion]:
    """Completions from a `datasets.Dataset` or a list of rows, with `prompt` and `completion` or with `messages`.

    A text is a user turn, as anywhere here. Raises InputError for a row that is not one reply to one user turn, with or
    without a system prompt.
    """
    lm, found = as_lm(lm), []
    for number, row in enumerate(rows):
        match _turns(row):
            case [("user", str(prompt)), ("assistant", str(text))]:
                system = None
            case [("system", str(system)), ("user", str(prompt)), ("assistant", str(text))]:
                pass
            case _:
                raise InputError(
                    f"row {number}: give prompt and completion, or messages, with one user turn and one reply"
                )
        found.append(Completion.from_text(lm, prompt, text, system, row=number, origin=origin))
    return found


def _turns(row: Mapping) -> list[tuple[object, object]]:
    """(role, content) of each turn of a row."""
    prompt, reply = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str):
        return [("user", prompt), ("assistant", reply)]
    turns = row.get("messages") or [*(prompt or ()), *(reply or ())]
    return [(turn.get("role"), turn.get("content")) for turn in turns if isinstance(turn, Mapping)]
