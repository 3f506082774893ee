"""`HealConfig`: every knob of a heal with its unit, and one clear error per impossible value or barrier.

Knows nothing of models and data; needs no torch.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steer_heal.errors import InputError
from steer_heal.model.depth import pick_layers

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    DivergenceFunction = Callable[
        [Float[Tensor, "position vocab"], Float[Tensor, "position vocab"]], Float[Tensor, " position"]
    ]
else:
    DivergenceFunction = Callable

KL_NAMES = ("kl_rev", "kl_fwd")
CHOICES = {
    "kl_agg": ("mean", "rmse", "p95", "max", "cvar"),
    "reference": ("prev", "base", "both"),
    "lam_mode": ("constant", "budget"),
    "row_weights": ("none", "inv_sqrt", "tokens"),
    "barrier_rows": ("all", "replay"),
}


@dataclass(frozen=True)
class HealConfig:
    """How a heal trains and what holds it back. Loss per completion: nll + lam * relu(D - tau), in nats."""

    reg: str | DivergenceFunction = "kl_rev"
    """Barrier: nll (none), kl_rev = KL(student||reference), kl_fwd = KL(reference||student), module:function."""
    lam: float = 0.3
    """Weight of the barrier, nats of nll per nat of divergence; in budget mode where the multiplier starts."""
    tau: float = 0.5
    """Budget of the aggregated divergence of a completion, in nats; below it the barrier is silent."""
    tau_rel: float | None = None
    """If set, tau is this share of the divergence that the steering itself caused, and `tau` is not used."""
    kl_agg: str = "rmse"
    """How the positions of a completion become one number: mean, rmse, p95, max, cvar."""
    reference: str = "prev"
    """Divergence from: prev (the student before this round), base (the original model), or both."""
    tau_base: float | None = None
    """Budget against base in nats, if another than `tau`."""
    lam_base: float | None = None
    """Weight of the barrier against base, if another than `lam`."""
    kl_top_k: int = 0
    """Truncate the KL to the reference's k likeliest tokens and a tail bucket; 0: full vocabulary."""
    lam_mode: str = "constant"
    """constant, or budget: dual ascent on nll + lam * (D - tau), which settles at tau where the budget binds."""
    lam_power: float = 0.0
    """lam is multiplied by (1 + round)^power."""
    lam_rate: float = 1.0
    """Step of the dual ascent, multiplier per nat over budget and optimiser step."""
    lam_max: float = 10.0
    """Upper bound of the multiplier in budget mode."""
    rank: int = 32
    """LoRA rank r."""
    alpha: float = 64.0
    """The adapter's delta is alpha / r * B A."""
    lora_layers: tuple[float, float] = (0.2, 0.8)
    """Band of relative depth whose blocks get adapters (rounded outwards)."""
    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging factors; 0.999 would not warm up within a heal's few hundred steps."""
    weight_decay: float = 0.0
    """Decoupled weight decay of A and B, per step as a multiple of the learning rate."""
    spectral: float = 0.0
    """Weight of the mean over modules of sigma_max(alpha / r * B A)^2."""
    epochs: int = 6
    """Passes over the training rows."""
    batch_size: int = 4
    """Completions per forward pass."""
    grad_accum: int = 1
    """Forward passes per optimiser step; only the product with `batch_size` changes the result."""
    warmup: float = 0.1
    """Share of the steps with a rising learning rate; a cosine to zero follows."""
    clip: float = 1.0
    """Largest norm of the adapter's gradient; 0: no clipping."""
    heldout: float = 0.125
    """Share of rows kept out of training, to see overfitting; 0: none."""
    row_weights: str = "none"
    """none: every completion's token-mean nll counts the same, so a short one's tokens, its end too, weigh more;
    inv_sqrt: token sums over sqrt(tokens); tokens: every token of the data counts the same (maximum likelihood)."""
    barrier_rows: str = "all"
    """Rows the barrier acts on: all, or replay (the original model's own completions among the data)."""
    replay_weight: float = 1.0
    """Factor on the barrier of the original model's own completions; 4 guards them harder than the new texts."""
    gradient_checkpointing: bool = False
    """Recompute the blocks in the backward pass: less memory, about a third more time."""
    seed: int = 0
    """Seed of the initial A, of the held-out split and of the order of rows."""

    def __post_init__(self) -> None:
        positive = ("rank", "alpha", "lr", "epochs", "batch_size", "grad_accum", "lam_max")
        for name in positive:
            self._require(name, "a number above 0", lambda x: x > 0)
        for name in ("lam", "tau", "weight_decay", "spectral", "clip", "kl_top_k", "lam_rate", "replay_weight"):
            self._require(name, "a number of at least 0", lambda x: x >= 0)
        for name in ("tau_base", "lam_base", "tau_rel"):
            if getattr(self, name) is not None:
                self._require(name, "a number of at least 0", lambda x: x >= 0)
        self._require("lam_power", "a finite number", math.isfinite)
        self._require("warmup", "a share from 0 to below 1", lambda x: 0 <= x < 1)
        self._require("heldout", "a share from 0 to 0.5", lambda x: 0 <= x <= 0.5)
        for name in ("rank", "epochs", "batch_size", "grad_accum", "kl_top_k"):
            self._require(name, "a whole number", lambda x: float(x).is_integer())
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise InputError(f"betas {self.betas!r}: give two numbers from 0 to below 1")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} {getattr(self, name)!r} is unknown: use {', '.join(choices)}")
        if self.lam_mode == "budget" and self.lam_rate == 0:
            raise InputError("lam_rate 0 never moves the multiplier: give a number above 0 or use lam_mode constant")
        if any(isinstance(x, float) for x in self.lora_layers):
            pick_layers(self.lora_layers, 2)
        if self.reg not in ("nll", *KL_NAMES):
            user_divergence(self.reg, int(self.kl_top_k))

    def _require(self, name: str, what: str, good) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not good(value):
            raise InputError(f"{name} {value!r}: give {what}")

    def barrier_names(self) -> tuple[str, ...]:
        """The references that the barrier needs."""
        if self.reg == "nll":
            return ()
        return ("prev", "base") if self.reference == "both" else (self.reference,)


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
