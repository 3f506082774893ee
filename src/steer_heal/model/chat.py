"""Chat prompts as token ids: the persona slot, the template, what to do without one, prompts a tokenizer cannot spell.

Knows nothing of models and traits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from functools import partial
from unittest.mock import patch

from steer_heal.errors import InputError
from steer_heal.user_function import called

PERSONA_SLOT = "{persona}"
"""Where a prompt takes the persona when a system prompt would be unnatural: a base model that tells stories has none,
but "there was a {persona} girl" is a text it knows how to go on from."""
UNKNOWN_LIMIT = 0.5
"""Share of unknown tokens in a user turn from which on a prompt is refused."""


class Day(datetime):
    """The day for a chat template that asks: what Llama 3's own writes where it has no clock."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime(2024, 7, 26, tzinfo=tz)


def fill_persona(user: str, system: str | None) -> tuple[str, str | None]:
    """(prompt, system prompt): a prompt with slots takes the system text there, and no system prompt is left.

    Without a system text a slot vanishes together with the blank after it.
    """
    if PERSONA_SLOT not in user:
        return user, system
    if not system:
        return user.replace(PERSONA_SLOT + " ", "").replace(PERSONA_SLOT, ""), None
    return user.replace(PERSONA_SLOT, system), None


def render(tokenizer, user: str, system: str | None) -> tuple[int, ...]:
    """Token ids of one rendered prompt, up to and including the assistant tag (see `LM.chat_ids`)."""
    if not getattr(tokenizer, "chat_template", None):
        text = f"{system}\n{user}" if system else user
        ids = tokenizer.encode(text, add_special_tokens=False)
        return (tokenizer.bos_token_id, *ids) if tokenizer.bos_token_id is not None else tuple(ids)
    turns = [{"role": "user", "content": user}]
    if system:
        turns = (
            [{"role": "system", "content": system}, *turns]
            if takes_system(tokenizer)
            else [{"role": "user", "content": f"{system}\n\n{user}"}]
        )
    # The template writes the BOS itself, so tokenising must not add a second one.
    return tuple(tokenizer.encode(shown_turns(tokenizer, turns), add_special_tokens=False))


def templated(tokenizer, turns: Sequence[Mapping[str, str]], assistant: bool = False) -> str:
    """Turns as the chat template writes them, up to the assistant tag with `assistant`; a template's today is `Day`.

    A prompt with the day in it would make the same seed another run tomorrow.
    """
    options = {"tokenize": False} | ({"add_generation_prompt": True} if assistant else {})
    if "strftime_now" not in str(tokenizer.chat_template):
        return tokenizer.apply_chat_template(turns, **options)
    from transformers.utils import chat_template_utils  # who reads a trait file needs no transformers

    with patch.object(chat_template_utils, "datetime", Day):  # what is given beside the turns becomes text there
        return tokenizer.apply_chat_template(turns, **options)


def shown_turns(tokenizer, turns: Sequence[Mapping[str, str]]) -> str:
    """Turns with the assistant tag. Raises InputError where the template fails."""
    return called(partial(templated, tokenizer, assistant=True), "the model's chat template", turns)


def takes_system(tokenizer) -> bool:
    """Whether the chat template accepts a system role and shows its text."""
    from jinja2.exceptions import TemplateError

    turns = [{"role": "system", "content": "qzx"}, {"role": "user", "content": "a"}]

    def shows() -> bool:
        try:
            return "qzx" in templated(tokenizer, turns)
        except TemplateError:
            return False

    return called(shows, "the model's chat template")


def check_known(tokenizer, user: str, name: str) -> None:
    """Raises InputError for a user turn of which the tokenizer knows almost nothing."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return
    ids = tokenizer.encode(user, add_special_tokens=False)
    share = sum(i == unknown for i in ids) / max(1, len(ids))
    if not ids or share > UNKNOWN_LIMIT:
        raise InputError(
            f"{name} knows almost nothing of the prompt {user[:60]!r} ({share:.0%} unknown tokens): "
            "write prompts in the model's own vocabulary or use another model"
        )
