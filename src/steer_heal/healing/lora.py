"""LoRA layers put into a model's text blocks for a stretch of code, their initial values and their spectrum.

Knows nothing of losses and data.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from steer_heal.errors import InputError
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import preserved, weights_in_use
from steer_heal.healing.config import HealConfig
from steer_heal.model import LM
from steer_heal.model.depth import pick_layers


@dataclass(frozen=True)
class Lora:
    """The trainable factors inside a model, float32, by full module name: delta = alpha / rank * B A."""

    a: Mapping[str, Float[nn.Parameter, "rank inputs"]]
    b: Mapping[str, Float[nn.Parameter, "outputs rank"]]
    rank: int
    alpha: float
    base_model: str
    fan_in_fan_out: bool

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.a.values(), *self.b.values()]

    def adapter(self) -> Adapter:
        """A copy of the factors as they are now."""
        a, b = (
            {name: value.detach().cpu().float().clone() for name, value in factor.items()}
            for factor in (self.a, self.b)
        )
        return Adapter(a, b, self.rank, self.alpha, self.base_model, self.fan_in_fan_out)

    @torch.no_grad()
    def load(self, adapter: Adapter) -> None:
        """Put an adapter's factors, a copy taken earlier, in the place of these."""
        for ours, theirs in ((self.a, adapter.a), (self.b, adapter.b)):
            for name, factor in ours.items():
                factor.copy_(theirs[name])

    def spectral(self) -> Float[Tensor, ""]:
        """Mean over modules of sigma_max(alpha / rank * B A)^2, differentiable also at B = 0.

        With thin factorisations A^T = Q_a R_a, B = Q_b R_b the singular values of BA are those of the r x r core
        R_b R_a^T. Its leading right vector v gives the direction x = Q_a v; held constant, |B A x|^2 has the gradient
        of sigma_max^2 (envelope theorem), and gradient 0 instead of nan at B = 0.
        """
        scaling = self.alpha / self.rank
        squares = []
        for name, a in self.a.items():
            b = self.b[name]
            with torch.no_grad():
                q_a, r_a = torch.linalg.qr(a.T)
                r_b = torch.linalg.qr(b).R
                leading = q_a @ torch.linalg.svd(r_b @ r_a.T).Vh[0]
            squares.append((scaling * (b @ (a @ leading))).square().sum())
        return torch.stack(squares).mean()


def seeded(seed: int, round: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each seed, round and purpose."""
    digest = hashlib.sha256(f"{seed}/{round}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def linear_names(lm: LM, layers: tuple[float, float]) -> list[str]:
    """Full names of the linear layers inside the text blocks of a band.

    Raises InputError when a block already carries PEFT layers or has no linear layer.
    """
    names = []
    for i in pick_layers(layers, len(lm.blocks)):
        for name, module in lm.blocks[i].named_modules():
            if hasattr(module, "base_layer"):
                raise InputError(
                    f"{lm.name}: block {i} already carries a PEFT adapter: merge it first (merge_and_unload)"
                )
            if isinstance(module, nn.Linear | Conv1D):
                names.append(f"{lm.blocks_path}.{i}.{name}")
    if not names:
        raise InputError(f"{lm.name}: the blocks of {layers} have no linear layers to adapt")
    return names


@contextmanager
def injected(lm: LM, config: HealConfig, seed: int, round: int = 0) -> Iterator[Lora]:
    """LoRA layers in the picked blocks, A random from the seed, B = 0; after the block the model is as it was before.

    Everything but the factors is frozen. The model is put in evaluation mode: dropout would make the student differ
    from its reference before it has learnt anything.
    """
    from peft import LoraConfig, inject_adapter_in_model

    base, names = lm.base, linear_names(lm, config.lora_layers)
    transposed = {isinstance(base.get_submodule(name), Conv1D) for name in names}
    if len(transposed) > 1:
        raise InputError(f"{lm.name} mixes Linear and Conv1D layers in its blocks: this layout is not supported")
    fan_in_fan_out = transposed.pop()
    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=names,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=fan_in_fan_out,
    )
    with weights_in_use(base), preserved(base), torch.random.fork_rng(devices=[]):
        base.eval().requires_grad_(False)
        inject_adapter_in_model(peft_config, base)
        a, b = {}, {}
        for name in names:
            layer = base.get_submodule(name)
            # Adapters stay in float32 also in bf16 models: weight decay and small steps vanish in bf16.
            a[name] = layer.lora_A["default"].float().weight.requires_grad_()
            b[name] = layer.lora_B["default"].float().weight.requires_grad_()
        generator = seeded(seed, round, "lora")
        with torch.no_grad():
            for name in names:
                bound = 1 / math.sqrt(a[name].shape[1])  # as peft: Kaiming uniform with a = sqrt(5)
                a[name].copy_(torch.empty(a[name].shape).uniform_(-bound, bound, generator=generator))
                b[name].zero_()
        if config.gradient_checkpointing:
            _checkpoint_blocks(lm)
        yield Lora(a, b, config.rank, config.alpha, lm.name, fan_in_fan_out)


def _checkpoint_blocks(lm: LM) -> None:
    """Checkpoint each block. Only the block itself goes to training mode, so that no dropout inside it wakes up."""
    for block in lm.blocks:
        if not isinstance(block, GradientCheckpointingLayer):
            raise InputError(f"{lm.name}: its blocks do not support gradient checkpointing: turn it off")
        block.gradient_checkpointing = True
        # The non-reentrant kind: with inputs that need no gradient the other one trains nothing.
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        block.training = True
