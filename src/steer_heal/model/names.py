"""What a model's name can be: an embedded model, a folder, a hub id; said without torch, before anything is loaded.

Knows nothing of how a model is read.
"""

from __future__ import annotations

import re
from pathlib import Path

from steer_heal.errors import InputError, is_name, nearest

EMBEDDED = ("pocket", "tiny-random")
HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))(\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)
"""`owner/name`, or the hub's oldest models such as `gpt2` without an owner, as the hub allows it."""


def check_name(name: str) -> None:
    """Raises InputError for a name under which no model can be found, and for a folder without a configuration."""
    if name in EMBEDDED:
        return
    if not is_name(name):
        raise InputError(f"model {name!r} has line breaks or control characters in its name: rename its folder")
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise InputError(f"model folder {name!r} has no config.json: point to a folder saved by transformers")
    elif not HUB_ID.fullmatch(name) or ("/" not in name and nearest(name, EMBEDDED)):
        raise InputError(
            f"model {name!r} is neither embedded ({', '.join(EMBEDDED)}), nor a folder, nor a hub id"
            f"{nearest(name, EMBEDDED)}: check the spelling"
        )
