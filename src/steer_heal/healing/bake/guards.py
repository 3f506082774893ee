"""Blocks around a training loop: while one runs a model's weights must not be swapped, after one all is as it was.

Knows nothing of stacks and adapters.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_IN_USE: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def in_use(model: nn.Module) -> bool:
    """Whether the model is inside `weights_in_use`."""
    return model in _IN_USE


@contextmanager
def weights_in_use(model: nn.Module) -> Iterator[None]:
    """While the block runs the model's stack refuses to swap weights; a training loop holds it around its steps."""
    if model in _IN_USE:
        raise RuntimeError("the model is being trained already: a heal cannot run inside another one")
    _IN_USE.add(model)
    try:
        yield
    finally:
        _IN_USE.discard(model)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Whatever the block does to the module tree, hooks, modes, attributes and requires_grad flags is undone after it.

    Parameters are kept as objects and not copied, so the block must not write into them.
    """
    states = []
    for module in model.modules():
        attributes = dict(module.__dict__)
        states.append((module, attributes, {k: dict(v) for k, v in attributes.items() if isinstance(v, dict)}))
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        for module, attributes, containers in states:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for key, content in containers.items():
                attributes[key].clear()
                attributes[key].update(content)
        for parameter, flag, grad in flags:
            parameter.requires_grad_(flag)
            parameter.grad = grad
