"""What the benches compare a heal with: the same heal as a plain loop; and a counter of copied weights.

Knows nothing of chunks, caches and folding; it is slow on purpose and used by `scripts/bench.py` and its tests alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from steer_heal.healing import HealConfig
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.lora import injected, seeded
from steer_heal.healing.plan import lr_factor, split_rows, step_rows
from steer_heal.model import LM
from steer_heal.texts.completion import Completion


@contextmanager
def copied_in(lm: LM, history: Mapping[str, Tensor]) -> Iterator[None]:
    """The history's weights inside the block, by copying; the pristine ones are copied aside and back."""
    weights = {}
    for name in history:
        module = lm.base.get_submodule(name)
        weights[name] = getattr(module, "base_layer", module).weight
    pristine = {name: weight.data.clone() for name, weight in weights.items()}
    for name, weight in weights.items():
        weight.data.copy_(history[name])
    try:
        yield
    finally:
        for name, weight in weights.items():
            weight.data.copy_(pristine[name])


def history_of(lm: LM, adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """Pristine weight plus the rounds' deltas by module: computed once, which is kind to the naive loop."""
    out = {}
    for name in adapters[0].modules if adapters else ():
        weight = lm.base.get_submodule(name).weight.detach()
        out[name] = (weight.double() + sum(adapter.delta(name) for adapter in adapters)).to(weight.dtype)
    return out


def naive_heal(lm: LM, rows: Sequence[Completion], config: HealConfig, history: Mapping[str, Tensor]) -> Adapter:
    """The same kl_rev heal as a plain loop: one completion at a time, a reference forward pass on every step, full
    log-softmax over all positions, the history copied into the weights around each pass (held through backward).

    It measures nothing before, between and after, as `heal` does; that too is kind to it.
    """
    train, _ = split_rows(rows, config)
    with injected(lm, config, config.seed) as lora, torch.enable_grad():
        layers = [m for m in lm.base.modules() if hasattr(m, "enable_adapters")]
        optimiser = torch.optim.AdamW(
            lora.parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        order = seeded(config.seed, 0, "order")
        total, step = -(-len(train) // config.batch_size) * config.epochs, 0
        for _ in range(config.epochs):
            for picked in step_rows(train, rows, config, order):
                for group in optimiser.param_groups:
                    group["lr"] = config.lr * lr_factor(step, total, config.warmup)
                optimiser.zero_grad(set_to_none=True)
                for i in picked:
                    ids, n = torch.tensor([[*rows[i].prompt_ids, *rows[i].token_ids]]), len(rows[i].token_ids)
                    with copied_in(lm, history), torch.no_grad():
                        for layer in layers:
                            layer._disable_adapters = True
                        reference = lm.base(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
                        for layer in layers:
                            layer._disable_adapters = False
                    with copied_in(lm, history):
                        logp = lm.base(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
                        loss = full_loss(logp, reference, ids, n, config)
                        (loss / len(picked)).backward()
                torch.nn.utils.clip_grad_norm_(lora.parameters, config.clip)
                optimiser.step()
                step += 1
        return lora.adapter()


def full_loss(logp: Tensor, reference: Tensor, ids: Tensor, n: int, config: HealConfig) -> Tensor:
    """nll + lam * relu(rmse - tau) of the last `n` tokens, from log-probabilities at all positions."""
    kl = (logp.exp() * (logp - reference)).sum(-1)[0, -n - 1 : -1]
    nll = -logp[0, :-1].gather(-1, ids[0, 1:, None])[-n:].mean()
    return nll + config.lam * torch.relu(torch.linalg.vector_norm(kl) / n**0.5 - config.tau)


class WeightCopies(TorchDispatchMode):
    """Counts copies into, or out of, the given weights while it is on."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.pointers = {w.data_ptr() for w in weights}
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("copy_", "clone", "_to_copy"):
            tensors = [t for t in args if isinstance(t, Tensor)]
            self.count += any(t.data_ptr() in self.pointers for t in tensors)
        return func(*args, **(kwargs or {}))
