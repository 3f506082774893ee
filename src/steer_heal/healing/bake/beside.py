"""A low-rank delta computed beside a layer: what a stack does where a weight is packed and nothing can be folded in.

Knows nothing of stacks and rounds. The factors are parameters of the layer, so whatever hashes or moves a model's
weights finds them; the packed weight is never written to.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

Factors = tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]
"""A and B of a delta B A, float32."""
NAMES = ("beside_a", "beside_b")


def factors_of(layer: nn.Module) -> Factors | None:
    """What is computed beside a layer now; None for nothing."""
    found = tuple(layer._parameters[name].data for name in NAMES if name in layer._parameters)
    return found or None


def put_beside(layer: nn.Linear, factors: Factors | None) -> None:
    """From now on the layer gives W x + B A x, or with None W x alone, as if there had never been anything else."""
    if (hook := layer.__dict__.pop("beside", None)) is not None:
        hook.remove()
        for name in NAMES:
            del layer._parameters[name]
    if factors is not None:
        for name, factor in zip(NAMES, factors, strict=True):
            layer.register_parameter(name, nn.Parameter(factor, requires_grad=False))
        layer.__dict__["beside"] = layer.register_forward_hook(_add)


def _add(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
    a, b = (layer._parameters[name] for name in NAMES)
    return output + (given[0].to(a.dtype) @ a.T @ b.T).to(output.dtype)
