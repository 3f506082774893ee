"""The persona slot: where a prompt takes the persona, for models in which a system prompt would be unnatural.

Knows nothing of models and traits. A base model that tells stories has no system prompt, but "there was a {persona}
girl" is a text it knows how to go on from.
"""

from __future__ import annotations

PERSONA_SLOT = "{persona}"


def fill_persona(user: str, system: str | None) -> tuple[str, str | None]:
    """(prompt, system prompt): a prompt with slots takes the system text there, and no system prompt is left.

    Without a system text a slot vanishes together with the blank after it.
    """
    if PERSONA_SLOT not in user:
        return user, system
    if not system:
        return user.replace(PERSONA_SLOT + " ", "").replace(PERSONA_SLOT, ""), None
    return user.replace(PERSONA_SLOT, system), None
