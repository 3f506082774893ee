"""What a model's name can be: an embedded model, a folder, a hub id; said without torch, before anything is loaded.

Knows nothing of how a model is read.
"""

from __future__ import annotations

import re
from pathlib import Path

from steer_heal.errors import InputError, is_name, nearest
from steer_heal.pocket import WEIGHTS
from steer_heal.reading import reachable

EMBEDDED = ("pocket", "tiny-random")
HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))(\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)
"""`owner/name`, or the hub's oldest models such as `gpt2` without an owner, as the hub allows it."""


def check_name(name: str) -> None:
    """Raises InputError for a name under which no model can be found, and for a folder without a configuration."""
    if name in EMBEDDED:
        return
    if not is_name(name):
        raise InputError(f"model {name!r} has line breaks or control characters in its name: rename its folder")
    if reachable(name).is_dir():
        if (reachable(name) / "adapter_config.json").is_file() and not (reachable(name) / "config.json").is_file():
            raise InputError(
                f"model folder {name!r} is an adapter: sh.load(folder) puts it on its base, or export a merged model"
            )
        if not (reachable(name) / "config.json").is_file():
            raise InputError(f"model folder {name!r} has no config.json: point to a folder saved by transformers")
    elif not HUB_ID.fullmatch(name) or ("/" not in name and nearest(name, EMBEDDED)):
        raise InputError(
            f"model {name!r} is neither embedded ({', '.join(EMBEDDED)}), nor a folder, nor a hub id"
            f"{nearest(name, EMBEDDED)}: check the spelling"
        )


def reference(name: str) -> str:
    """What other programs load a model by from any working directory: a hub id, a folder's absolute path.

    `pocket` is the folder inside this installation; `tiny-random` has none and stays a name.
    """
    if name == "pocket":
        return str(WEIGHTS)
    return str(reachable(name).absolute()) if reachable(name).is_dir() else name


def named_by(reference: str) -> str:
    """The inverse of `reference`; `pocket`, too, where it was recorded by another installation."""
    return "pocket" if Path(reference).parts[-3:] == WEIGHTS.parts[-3:] else reference
