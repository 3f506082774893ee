"""Completions of random tokens, a quick configuration and small helpers for the tests of heal."""

import torch

from steer_heal.healing import HealConfig
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.lora import checkpoint_blocks, injected
from steer_heal.healing.loss import Task, Term, backward_step
from steer_heal.texts.completion import Completion

# Random tokens teach nothing that holds for other rows: the best epoch would always be the first.
QUICK = HealConfig(lr=2e-3, tau=0.01, epochs=2, batch_size=4, rank=4, alpha=8.0, keep_epoch="last")


def completion(lm, i, tokens, origin="steered", seed=0):
    """A completion of random tokens that ends with the end-of-turn token."""
    g = torch.Generator().manual_seed(1000 * seed + i)
    ids = (*torch.randint(4, 400, (tokens - 1,), generator=g).tolist(), 3)
    prompt = f"question number {i}"
    return Completion(prompt, None, lm.chat_ids(prompt), ids, lm.decode(ids), True, origin=origin)


ATTENTION, MLP = "model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.down_proj"
MODULES = (ATTENTION.format(1), MLP.format(2))


def random_adapter(lm, seed, rank=4, size=0.05, modules=MODULES, alpha=8.0):
    """LoRA factors of a given scale for some modules."""
    g = torch.Generator().manual_seed(seed)
    a, b = {}, {}
    for name in modules:
        out, inputs = lm.base.get_submodule(name).weight.shape
        a[name] = torch.randn(rank, inputs, generator=g) * size
        b[name] = torch.randn(out, rank, generator=g) * size
    return Adapter(a, b, rank, alpha, lm.name)


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[n].reshape(-1).view(torch.uint8), other[n].reshape(-1).view(torch.uint8)) for n in one
    )


def task_of(lm, data, config, references, weights=None):
    terms = tuple(Term(name, states, config.tau) for name, states in references.items())
    return Task(lm, data, config, terms, tuple(weights or [1.0] * len(data)), (1.0,) * len(data))


def with_b(lora, size=0.05):
    """Give B random values, so that the student differs from its reference."""
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for b in lora.b.values():
            b.copy_(torch.randn(b.shape, generator=g) * size)


def gradients(lm, data, config, references, lam=0.3, weights=None):
    """(loss by row, gradient by factor) of one step over all rows, at a fixed B that is not zero."""
    with injected(lm, config, 0) as lora:
        with_b(lora)
        if config.gradient_checkpointing == "on":
            checkpoint_blocks(lm)
        task = task_of(lm, data, config, references, weights)
        stats = backward_step(task, lora, range(len(data)), dict.fromkeys(references, lam))
        return stats, [p.grad.clone() for p in lora.parameters]
