"""A model by name, or an exported adapter on its base, at the strength that is asked for.

Knows nothing of how adapters came to be.
"""

from __future__ import annotations

from pathlib import Path

from steer_heal import model as models
from steer_heal.arguments import checked_scale
from steer_heal.errors import InputError
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake.stack import AdapterStack
from steer_heal.model import LM
from steer_heal.model.memory import LoadIn
from steer_heal.model.names import named_by
from steer_heal.reading import reachable


def load(
    name: str | Path,
    *,
    c: float | None = None,
    base: str | None = None,
    dtype: str = "auto",
    load_in: LoadIn | None = None,
    device: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    temperature: float | None = None,
    top_p: float | None = None,
) -> LM:
    """Load a causal model by name, or the folder of an exported adapter, folded into the base that it names.

    Args:
        name: `pocket` (embedded), `tiny-random` (built in memory), a folder, a hub id, or a folder with a LoRA adapter.
        c: factor on an adapter's delta, from -1 to 1.5: 1 (default) is as trained, 0 the base.
        base: of an adapter, instead of the one that it names.
        dtype, load_in, device, attn_implementation, trust_remote_code, temperature, top_p: see `steer_heal.model.load`.

    Raises:
        InputError: see `steer_heal.model.load`; an adapter whose base is not on this machine or another model, and a c
            or a base for a whole model.
    """
    options = {"dtype": dtype, "load_in": load_in, "device": device, "attn_implementation": attn_implementation}
    options |= {"trust_remote_code": trust_remote_code, "temperature": temperature, "top_p": top_p}
    folder = reachable(name) if isinstance(name, str | Path) else None
    if folder is None or not (folder / "adapter_config.json").is_file() or (folder / "config.json").is_file():
        if c is not None or base is not None:
            raise InputError(
                f"model {str(name)!r} is no folder of an adapter, which c and base are for: leave them out"
            )
        return models.load(name, **options)
    adapter, scale = Adapter.load(folder), checked_scale(1.0 if c is None else c)
    below = base or named_by(adapter.base_model)
    if Path(below).is_absolute() and not reachable(below).is_dir():
        raise InputError(f"adapter {str(name)!r}: its base {below!r} is not on this machine: name it with base=")
    lm = models.load(below, **options)
    AdapterStack(lm.model).push(adapter, scale)  # in for good: nobody keeps the stack
    return LM(lm.model, lm.tokenizer, str(name))
