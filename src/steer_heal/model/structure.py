"""Where things are in a model: the decoder's blocks, its configuration, its output head; a hash of its weights.

Knows nothing of tokens and text.
"""

from __future__ import annotations

import hashlib
import math
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from steer_heal.errors import InputError


@dataclass(frozen=True)
class Head:
    """The output head as a function: logits = cap * tanh(scale * (W f(h) + b) / cap), in float32.

    `scale` and `cap` are those of the model's configuration (`SCALES`, `CAPS`); 1 and None for the common case. f is
    what `before` does, ModernBERT's dense and norm; mostly nothing.
    """

    linear: nn.Module
    scale: float = 1.0
    cap: float | None = None
    before: nn.Module | None = None

    def __call__(self, hidden: Float[Tensor, "*position width"]) -> Float[Tensor, "*position vocab"]:
        hidden = hidden.to(self.linear.weight.dtype)
        logits = self.linear(hidden if self.before is None else self.before(hidden)).float()
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


SCALES = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Names under which configurations have a factor on the logits: Cohere's, Falcon-H1's, Muse's."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of a soft cap: Gemma's, RecurrentGemma's, xLSTM's."""


def unwrap(model: object) -> nn.Module:
    """The transformers model inside an `LM`, PEFT or `torch.compile`, or the model itself; InputError for no model."""
    if not isinstance(model, nn.Module):
        model = getattr(model, "model", model)
    if not isinstance(model, nn.Module):
        raise InputError(f"a model is needed here, not {type(model).__name__}: give an LM or a transformers model")
    inner = getattr(model, "_orig_mod", model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return inner if inner is model else unwrap(inner)


STEERED: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""The thread whose `applied()` is open, by transformers model."""
ONE_AT_A_TIME = threading.RLock()
"""A batch under a vector and a pass that reads states wait for each other, whatever threads they run in."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block: dropout would make every figure another one; then each module's own mode.

    Raises InputError while another thread steers the model, whose vector acts on whatever runs through it, and inside
    `torch.autocast`.
    """
    if STEERED.get(model, threading.get_ident()) != threading.get_ident():
        raise InputError("another thread is steering this model with applied(): wait for the end of its block")
    if torch.is_autocast_enabled(next(model.parameters()).device.type):
        raise InputError("inside torch.autocast figures would be of other numbers than the model's: leave its block")
    trained = [module for module in model.modules() if module.training]
    try:
        for module in trained:
            module.training = False
        yield
    finally:
        for module in trained:
            module.training = True


def find_backbone(model: nn.Module) -> nn.Module:
    """The model without its output head; Llama 4's text model does not name it by its prefix."""
    found = model.base_model
    return getattr(model, "model", model) if found is model else found


def block_states(output: object) -> Tensor:
    """The hidden states among what a decoder block returns: alone, or first of several."""
    return output[0] if isinstance(output, tuple | list) else output


def is_quantised(module: nn.Module) -> bool:
    """Whether a linear layer's weight is packed whole numbers, as bitsandbytes has them: no number can be added to."""
    return isinstance(module, nn.Linear) and not module.weight.is_floating_point()


def takes_no_delta(module: nn.Module) -> bool:
    """Whether nothing can be folded into a linear layer's weight: it is packed, or this process has a share of it."""
    return isinstance(module, nn.Linear) and (is_quantised(module) or isinstance(module.weight, DTensor))


def is_sharded(model: nn.Module) -> bool:
    """Whether this process has a share of some weights, as FSDP2 keeps them."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _whole(weight: Tensor) -> Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def full_weight(model: nn.Module, name: str) -> Float[Tensor, "*expert rows columns"]:
    """A layer's weight as numbers, as `weight_of` finds it: as it is, or as its packed numbers stand for."""
    weight, _ = weight_of(model, name)
    return _whole(weight).detach() if weight.is_floating_point() else unpacked(bare(model.get_submodule(name)))


def unpacked(layer: nn.Module) -> Float[Tensor, "rows columns"]:
    """What the packed numbers of a quantised layer stand for."""
    if (state := getattr(layer, "state", None)) is not None:  # LLM.int8, whose scales peft's helper loses on a CPU
        scales = layer.weight.SCB if state.SCB is None else state.SCB
        return layer.weight.data * (scales / 127)[:, None]
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer).detach()


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
    """The output head with the configuration's scale and soft cap, and what stands before it."""
    config, linear = text_config(model), model.get_output_embeddings()
    if not isinstance(getattr(linear, "weight", None), Tensor):
        raise InputError(f"{type(model).__name__} has no output head: use a causal language model")
    scale = math.prod(float(getattr(config, name, None) or 1.0) for name in SCALES)
    if divisor := getattr(config, "logits_scaling", None):  # Granite divides by it, HyperCLOVA X multiplies
        scale *= float(divisor) if "hyperclovax" in config.model_type else 1 / float(divisor)
    cap = next((float(found) for name in CAPS if (found := getattr(config, name, None))), None)
    before = getattr(model, "lm_head", None)
    if before is None or linear in before.modules():
        before = None
    return Head(linear, scale, cap, before)


def fingerprint(model: nn.Module) -> str:
    """A cheap hash of a model's weights: per parameter its name, shape, dtype, sum and 16 of its entries."""
    digest, sums = hashlib.sha256(), []
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = _whole(parameter).data.reshape(-1)
        total = flat.sum(dtype=torch.float32 if flat.device.type == "mps" else torch.float64).reshape(1)
        sums.append(torch.cat([total, flat[:: max(1, len(flat) // 16)][:16].to(total.dtype)]))
    # One transfer for all parameters.
    digest.update(torch.cat(sums).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def weight_of(model: nn.Module, name: str) -> tuple[nn.Parameter, bool]:
    """The weight of the module of this name, or the parameter of this name, and whether it is stored [in, out].

    PEFT's wrappers are looked through. Raises AttributeError where there is neither.
    """
    owner, _, leaf = name.rpartition(".")
    module = bare(model.get_submodule(owner))
    found = getattr(module, leaf)
    if not isinstance(found, nn.Parameter):
        module = bare(found)
        found = module.weight
        if found is None:
            raise AttributeError(f"{name} has no weight")
    return found, isinstance(module, Conv1D) or getattr(module, "is_transposed", False)


def bare(module: nn.Module) -> nn.Module:
    """A module without PEFT's wrappers."""
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module
