"""The exact bake of a steering vector: dose * v in the bias of each block's last linear map, without any training.

Knows nothing of adapters. Such weights are the steered model, with all that it breaks: the upper end of the curve of
trait against coherence that a heal has to beat.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from steer_heal.errors import InputError
from steer_heal.healing.bake.export import write_merged
from steer_heal.healing.bake.guards import in_use
from steer_heal.model import LM
from steer_heal.model.structure import block_states, text_config
from steer_heal.steering import SteeringVector

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative error, by dtype, of a block's output between a shifted bias and the addition it stands for."""


@contextmanager
def bias_baked(lm: LM, vector: SteeringVector, dose: float = 1.0) -> Iterator[None]:
    """Inside the block the model's plain weights steer at every position: block output + dose * vector, by a bias.

    A block adds its last linear map's output to the residual stream, so that a shift of that map's bias is a shift of
    the block's output. Whether it is one is measured on random states; a block that normalises or scales after its
    last map (Gemma 2's, say) is refused. After it the biases are the old ones, bit for bit.

    Raises InputError for such a block, and RuntimeError inside a running heal.
    """
    if in_use(lm.base):
        raise RuntimeError("a bias baked inside a running heal would falsify its gradients: wait until it is done")
    old: dict[nn.Module, nn.Parameter | None] = {}
    try:
        for layer in vector.layers:
            module = last_linear(lm, layer)
            old[module] = module.bias
            like = module.weight
            shift = (dose * vector.vectors[layer]).to(like.device, like.dtype)
            bias = shift if module.bias is None else module.bias.detach() + shift
            module.bias = nn.Parameter(bias, requires_grad=False)
        yield
    finally:
        for module, bias in old.items():
            module.bias = bias


def export_biased(lm: LM, vector: SteeringVector, c: float, folder: str | Path, card: str | None = None) -> None:
    """Write a plain transformers folder of the model that steers by its biases at c * vector, checked by its logits.

    Raises InputError for a family whose configuration knows no bias in these maps; Llama's has one switch for all maps
    of an MLP, whose other biases are then 0.
    """
    config = text_config(lm.base)
    switched = getattr(config, "mlp_bias", None) is False
    with bias_baked(lm, vector, c):
        bare = [m for m in lm.base.modules() if isinstance(m, nn.Linear) and m.bias is None] if switched else []
        bare = [m for m in bare if any(m in block.mlp.modules() for block in lm.blocks)]
        try:
            if switched:
                config.mlp_bias = True
            for module in bare:
                zeros = module.weight.new_zeros(module.out_features)
                module.bias = nn.Parameter(zeros, requires_grad=False)
            with torch.device("meta"):
                known = type(lm.base)(deepcopy(lm.base.config)).state_dict()
            if lost := sorted(lm.base.state_dict().keys() - known.keys()):
                raise InputError(
                    f"{lm.name}: its configuration has no place for {lost[0]}: write a control vector instead"
                )
            write_merged(lm, folder, card)
        finally:
            for module in bare:
                module.bias = None
            if switched:
                config.mlp_bias = False


def last_linear(lm: LM, layer: int) -> nn.Linear | Conv1D:
    """The linear map of a block whose output the block adds to the residual stream last. InputError without one."""
    block = lm.blocks[layer]
    for module in reversed([one for one in block.modules() if isinstance(one, nn.Linear | Conv1D)]):
        if _outputs(module) == lm.width and _shifts_alone(lm, layer, module):
            return module
    raise InputError(
        f"{lm.name}: block {layer} does more than add its last linear map to the residual stream, so no bias is the "
        "steering: use `applied()`, or heal"
    )


def _outputs(module: nn.Linear | Conv1D) -> int:
    return module.nf if isinstance(module, Conv1D) else module.out_features


@torch.no_grad()
def _shifts_alone(lm: LM, layer: int, module: nn.Linear | Conv1D) -> bool:
    """Whether adding something to the module's output adds just that to its block's output."""
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(lm.width, generator=generator).to(lm.device, lm.dtype)
    ids = torch.randint(lm.base.get_input_embeddings().weight.shape[0], (1, 8), generator=generator).to(lm.device)
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: object, output: object) -> None:
        seen.append(block_states(output).detach())

    hook = lm.blocks[layer].register_forward_hook(keep)
    try:
        lm.backbone(input_ids=ids, use_cache=False)
        added = module.register_forward_hook(lambda _, inputs, output: output + shift)
        try:
            lm.backbone(input_ids=ids, use_cache=False)
        finally:
            added.remove()
    finally:
        hook.remove()
    error = (seen[1] - seen[0] - shift).norm() / (seen[0].norm() + shift.norm())
    return bool(error <= TOLERANCE[lm.dtype])
