"""How large a model is, from its configuration alone; no weight is read.

Knows nothing of runs.
"""

from __future__ import annotations

import torch

from steer_heal.commands.presets import PRESETS, Shape
from steer_heal.model.loading import read_config


def shape_of(name: str) -> Shape:
    """Sizes of an embedded model, a folder, a preset's model, or a hub id, whose configuration is fetched.

    Raises InputError for a name that cannot be loaded.
    """
    for preset in PRESETS.values():
        if preset.options["model"] == name:
            return preset.shape
    if name == "tiny-random":
        from steer_heal.model.tiny import tiny_random

        return _counted(tiny_random()[0])
    if name == "pocket":
        from steer_heal.pocket import WEIGHTS

        config = read_config(WEIGHTS, name, trust_remote_code=False)
    else:
        config = read_config(name, name, trust_remote_code=False)
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return _counted(AutoModelForCausalLM.from_config(config))


def _counted(model: torch.nn.Module) -> Shape:
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        sum(p.numel() for p in model.parameters()), config.num_hidden_layers, config.hidden_size, heads * head_dim,
        config.vocab_size,
    )  # fmt: skip
