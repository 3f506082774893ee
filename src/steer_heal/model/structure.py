"""Where things are in a transformers model: the decoder's blocks, its configuration, its output head as a function.

Knows nothing of tokens and text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steer_heal.errors import InputError


@dataclass(frozen=True)
class Head:
    """The output head as a function: logits = cap * tanh(scale * (W h + b) / cap), in float32.

    `scale` and `cap` are those of the model's configuration (Cohere's `logit_scale`, Granite's `logits_scaling`,
    Gemma's `final_logit_softcapping`); 1 and None for the common case.
    """

    linear: nn.Module
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden: Float[Tensor, "*position width"]) -> Float[Tensor, "*position vocab"]:
        logits = self.linear(hidden.to(self.linear.weight.dtype)).float()
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: nn.Module):
    """Configuration of the text part: of a multimodal model its decoder's."""
    return model.config.get_text_config(decoder=True)


def find_blocks(model: nn.Module) -> str:
    """Dotted path of the text decoder's block list.

    It is the one `ModuleList` with as many entries as the text configuration has layers that lies outside any
    vision or audio part and inside no other block. Raises InputError when there is none or more than one.
    """
    n_layers = text_config(model).num_hidden_layers
    foreign = ("vision", "visual", "audio", "speech", "encoder")
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and not any(word in part for part in name.split(".") for word in foreign)
    ]
    found = [name for name in found if not any(name.startswith(other + ".") for other in found)]
    if len(found) != 1:
        raise InputError(
            f"{type(model).__name__}: expected one list of {n_layers} decoder blocks, found {found or 'none'}: "
            "use a decoder-only causal language model"
        )
    return found[0]


def find_head(model: nn.Module) -> Head:
    """The output head with the configuration's scale and soft cap."""
    config = text_config(model)
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    if divisor := getattr(config, "logits_scaling", None):
        scale /= float(divisor)
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(model.get_output_embeddings(), scale, None if cap is None else float(cap))
