"""What barriers and aggregates are called, and whether a name or a user's own function can be one.

Knows nothing of how they are computed; needs no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from steer_heal.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    DivergenceFunction = Callable[
        [Float[Tensor, "position vocab"], Float[Tensor, "position vocab"]], Float[Tensor, " position"]
    ]
else:
    DivergenceFunction = Callable

KL_NAMES = ("kl_rev", "kl_fwd")
AGGREGATE_NAMES = ("mean", "rmse", "p95", "max", "cvar")


def check_aggregate(name: str) -> None:
    """Raises InputError for an unknown aggregate."""
    if name not in AGGREGATE_NAMES:
        raise InputError(f"kl_agg {name!r} is unknown: use {', '.join(AGGREGATE_NAMES)}")


def check_reg(reg: str | DivergenceFunction, kl_top_k: int = 0) -> None:
    """Raises InputError when there is no such barrier, or it cannot be truncated; a user's module is imported."""
    if reg != "nll" and reg not in KL_NAMES:
        user_divergence(reg, kl_top_k)


def user_divergence(reg: str | DivergenceFunction, kl_top_k: int = 0) -> DivergenceFunction:
    """A user's own function, given as such or as `module:function`.

    Raises InputError for an unknown name, a module or function that cannot be imported, and for top-k.
    """
    function = _import_function(reg) if isinstance(reg, str) else reg
    if not callable(function):
        raise InputError(f"reg {reg!r} is not a function (logp_student, logp_reference) -> one value per position")
    if kl_top_k:
        raise InputError(f"kl_top_k={kl_top_k} truncates kl_rev and kl_fwd only: set it to 0 for {reg!r}")
    return function


def _import_function(reg: str) -> object:
    names = ", ".join(["nll", *KL_NAMES])
    module, colon, function = reg.partition(":")
    if not colon or not module or not function:
        raise InputError(f"reg {reg!r} is unknown: use {names}, or module:function for your own divergence")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as problem:
        raise InputError(
            f"reg {reg!r} cannot be imported ({problem}): use {names} or a module on the path"
        ) from problem
