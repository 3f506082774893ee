"""LoRA layers put into a model's text blocks for a stretch of code, their initial values and their spectrum.

Knows nothing of losses and data.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from steer_heal.errors import InputError
from steer_heal.healing.adapter import Adapter, per_expert
from steer_heal.healing.bake import preserved, weights_in_use
from steer_heal.healing.config import HealConfig
from steer_heal.healing.result import HealInterrupted
from steer_heal.model import LM
from steer_heal.model.depth import pick_layers
from steer_heal.model.structure import is_quantised, weight_of


@dataclass(frozen=True)
class Lora:
    """The trainable factors inside a model, float32, by full module name: delta = alpha / rank * B A.

    Those of experts' parameters lie as PEFT keeps them, all experts in two matrices; see `pair`. `reach` is the share
    of the weights in the adapted blocks that belong to these modules and parameters.
    """

    a: Mapping[str, Float[nn.Parameter, "expert_rank inputs"]]
    b: Mapping[str, Float[nn.Parameter, "outputs expert_rank"]]
    rank: int
    alpha: float
    base_model: str
    fan_in_fan_out: bool
    experts: tuple[str, ...] = ()
    experts_transposed: bool = False
    reach: float = 1.0

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.a.values(), *self.b.values()]

    def adapter(self) -> Adapter:
        """A copy of the factors as they are now."""
        a, b = (
            {
                name: self.pair(name)[side].detach().cpu().float().clone(memory_format=torch.contiguous_format)
                for name in self.a
            }
            for side in (0, 1)
        )
        layout = self.fan_in_fan_out, self.experts, self.experts_transposed
        return Adapter(a, b, self.rank, self.alpha, self.base_model, *layout)

    def pair(self, name: str) -> tuple[Float[Tensor, "*expert rank inputs"], Float[Tensor, "*expert outputs rank"]]:
        """A and B of a module, or of each expert of a parameter."""
        a, b = self.a[name], self.b[name]
        return per_expert(a, b, self.rank) if name in self.experts else (a, b)

    @torch.no_grad()
    def load(self, adapter: Adapter) -> None:
        """Put an adapter's factors, a copy taken earlier, in the place of these."""
        for name in self.a:
            for factor, kept in zip(self.pair(name), (adapter.a[name], adapter.b[name]), strict=True):
                factor.copy_(kept)

    def spectral(self) -> Float[Tensor, ""]:
        """Mean over modules (and experts) of sigma_max(alpha / rank * B A)^2, differentiable also at B = 0.

        With thin factorisations A^T = Q_a R_a, B = Q_b R_b the singular values of BA are those of the r x r core
        R_b R_a^T. Its leading right vector v gives the direction x = Q_a v; held constant, |B A x|^2 has the gradient
        of sigma_max^2 (envelope theorem), and gradient 0 instead of nan at B = 0.
        """
        scaling = self.alpha / self.rank
        squares = []
        for name in self.a:
            a, b = self.pair(name)
            with torch.no_grad():
                q_a, r_a = torch.linalg.qr(a.mT)
                r_b = torch.linalg.qr(b).R
                leading = q_a @ torch.linalg.svd(r_b @ r_a.mT).Vh[..., :1, :].mT
            squares.append((scaling * (b @ (a @ leading))).square().sum(dim=(-1, -2)).flatten())
        return torch.cat(squares).mean()


def seeded(seed: int, round: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each seed, round and purpose."""
    digest = hashlib.sha256(f"{seed}/{round}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


PLAIN = (nn.Linear.forward, Conv1D.forward)
"""Forward passes that are known to be a plain linear map."""
PAIRS = ("w1", "w3", "gate_proj", "up_proj")
"""PEFT refuses one of such a pair without the other where it takes both for an expert's fused weight."""
BYPASSED = {"dt_proj", "indexer"}
"""Parts of names: state-space blocks multiply this weight themselves, and what an indexer picks has no gradient."""
REFUSED = {kind: {"out_proj"} for kind in ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")}
"""By model type, what PEFT refuses to adapt: fused kernels take the weight past the adapter."""


def target_names(lm: LM, config: HealConfig) -> tuple[list[str], list[str]]:
    """Full names of the linear layers and of the experts' parameters that a heal of this configuration adapts.

    Raises InputError when a block already carries PEFT layers or there is nothing to adapt.
    """
    named = config.target_modules, config.exclude_modules
    linear = linear_names(lm, config.lora_layers, *named)
    experts = expert_names(lm, config.lora_layers, *named) if config.experts else []
    if not linear and not experts:
        raise InputError(f"{lm.name}: the blocks of {config.lora_layers} have nothing to adapt")
    return linear, experts


def expert_names(
    lm: LM, layers: tuple[float, float], wanted: Sequence[str] = (), left_out: Sequence[str] = ()
) -> list[str]:
    """Full names of the parameters in a band's blocks that hold a matrix for each expert, in their modules' order."""
    return [
        name
        for i in pick_layers(layers, len(lm.blocks))
        for path, module in lm.blocks[i].named_modules(prefix=f"{lm.blocks_path}.{i}")
        if not isinstance(module, nn.modules.conv._ConvNd)
        for name, weight in module.named_parameters(path, recurse=False)
        if weight.ndim == 3
        and min(weight.shape) > 1
        and weight.is_floating_point()
        and (not wanted or _is_one_of(name, wanted))
        and not _is_one_of(name, left_out)
    ]


def linear_names(
    lm: LM, layers: tuple[float, float], wanted: Sequence[str] = (), left_out: Sequence[str] = ()
) -> list[str]:
    """Full names of the linear layers inside the text blocks of a band that an adapter can change and PEFT can load.

    Left out are modules whose forward pass is more than a linear map or never runs, those that share their weight, and
    in some families those whose names PEFT takes for experts' fused weights or refuses.

    Args:
        wanted, left_out: see `HealConfig.target_modules` and `exclude_modules`.

    Raises InputError when a block already carries PEFT layers.
    """
    base, found = lm.base, {}
    for i in pick_layers(layers, len(lm.blocks)):
        for name, module in lm.blocks[i].named_modules():
            if hasattr(module, "base_layer"):
                raise InputError(
                    f"{lm.name}: block {i} already carries a PEFT adapter: merge it first (merge_and_unload)"
                )
            if isinstance(module, nn.Linear | Conv1D):
                found[f"{lm.blocks_path}.{i}.{name}"] = module
    found = _plain_maps(lm, found)
    users = Counter(
        id(m.weight) for _, m in base.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear | Conv1D)
    )
    kept = _kept_by_peft(base, {name.rpartition(".")[2] for name in found})
    return [
        name
        for name, module in found.items()
        if users[id(module.weight)] == 1
        and name.rpartition(".")[2] in kept
        and (not wanted or _is_one_of(name, wanted))
        and not BYPASSED & set(name.split("."))
        and not _is_one_of(name, left_out)
    ]


@torch.no_grad()
def _plain_maps(lm: LM, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Those whose output is W x + b: a router that inherits from Linear has a forward pass of its own, and is tried.

    A quantised layer is one by what it is for, and rounds too much to be tried.
    """
    odd = {name: m for name, m in modules.items() if type(m).forward not in PLAIN and not is_quantised(m)}
    plain = set()

    def note(name: str, module: nn.Linear, given: tuple[Tensor, ...], output: object) -> None:
        fits = module.weight.shape == (module.out_features, module.in_features)
        if fits and isinstance(output, Tensor):
            expected = nn.functional.linear(given[0], module.weight, module.bias)
            if output.shape == expected.shape and torch.allclose(output, expected, rtol=1e-2, atol=1e-3):
                plain.add(name)

    with ExitStack() as hooks:
        for name, module in odd.items():
            hooks.callback(module.register_forward_hook(partial(note, name)).remove)
        if odd:
            lm.hidden_states(lm.pad_left([list(lm.eos_ids or {lm.pad_id}) * 2]))
    return {name: module for name, module in modules.items() if name not in odd or name in plain}


def _is_one_of(name: str, endings: Sequence[str]) -> bool:
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def _kept_by_peft(base: nn.Module, names: set[str]) -> set[str]:
    """Those last parts of module names that stay modules to PEFT and that it does not refuse in this model."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=sorted(names | set(PAIRS)))
    convert_peft_config_for_transformers(config, base, conversions=[])
    return names & set(config.target_modules) - REFUSED.get(base.config.model_type, set())


def reach(lm: LM, names: Sequence[str], layers: tuple[float, float]) -> float:
    """Share of the weights in a band's blocks that are the named modules' or parameters: what adapters can change."""
    blocks = {id(p): p.numel() for i in pick_layers(layers, len(lm.blocks)) for p in lm.blocks[i].parameters()}
    return sum(weight_of(lm.base, name)[0].numel() for name in names) / sum(blocks.values())


def check_rank(lm: LM, rank: int) -> None:
    """Raises InputError for a rank that no weight of the model has; its factors may not fit the memory either."""
    if rank > lm.width:
        raise InputError(f"rank {rank}: {lm.name} has a width of {lm.width}, give at most that")


@contextmanager
def injected(lm: LM, config: HealConfig, seed: int, round: int = 0) -> Iterator[Lora]:
    """LoRA layers in the picked blocks, A random from the seed, B = 0; after the block the model is as it was before.

    Everything but the factors is frozen. The model is put in evaluation mode: dropout would make the student differ
    from its reference before it has learnt anything.

    Raises HealInterrupted, with the factors, on Ctrl-C.
    """
    from peft import LoraConfig, inject_adapter_in_model

    check_rank(lm, config.rank)
    base, (linear, experts) = lm.base, target_names(lm, config)
    names = [*linear, *experts]
    reached = reach(lm, names, config.lora_layers)
    layouts = [{weight_of(base, name)[1] for name in some} for some in (linear, experts)]
    if max(map(len, layouts)) > 1:
        raise InputError(f"{lm.name} mixes Linear and Conv1D layers in its blocks: this layout is not supported")
    fan_in_fan_out, experts_transposed = (True in layout for layout in layouts)
    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=linear,
        target_parameters=experts or None,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=fan_in_fan_out,
    )
    with weights_in_use(base), preserved(base), torch.random.fork_rng(devices=[]):
        base.eval().requires_grad_(False)
        inject_adapter_in_model(peft_config, base)
        a, b = {}, {}
        for name in names:
            layer = _wrapper(base, name) if name in experts else base.get_submodule(name)
            # Adapters stay in float32 also in bf16 models: weight decay and small steps vanish in bf16.
            a[name] = layer.lora_A["default"].float().weight.requires_grad_()
            b[name] = layer.lora_B["default"].float().weight.requires_grad_()
        generator = seeded(seed, round, "lora")
        with torch.no_grad():
            for name in names:
                bound = 1 / math.sqrt(a[name].shape[1])  # as peft: Kaiming uniform with a = sqrt(5)
                a[name].copy_(torch.empty(a[name].shape).uniform_(-bound, bound, generator=generator))
                b[name].zero_()
        layout = fan_in_fan_out, tuple(experts), experts_transposed
        lora = Lora(a, b, config.rank, config.alpha, lm.name, *layout, reached)
        try:
            yield lora
        except KeyboardInterrupt as stop:
            raise HealInterrupted(lora.adapter() if any(factor.any() for factor in b.values()) else None) from stop


def _wrapper(base: nn.Module, parameter: str) -> nn.Module:
    """PEFT's wrapper of one parameter; those of a module's parameters lie in one another."""
    owner, _, leaf = parameter.rpartition(".")
    layer = base.get_submodule(owner)
    while layer.parameter_name != leaf:
        layer = layer.base_layer
    return layer


def checkpoint_blocks(lm: LM) -> None:
    """From now on each block is recomputed in the backward pass. Inside `injected`, which undoes it."""

    def recomputed(forward, *given, **named):
        # The non-reentrant kind: with inputs that need no gradient the other one trains nothing.
        return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False, **named)

    for block in lm.blocks:
        # Not transformers' own switch: it needs blocks in training mode, whose dropout would wake up in some families.
        block.forward = partial(recomputed, block.forward)
