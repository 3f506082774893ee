"""`HealConfig`: every knob of a heal with its unit, and one clear error per impossible value or barrier.

Knows nothing of models and data; needs no torch.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steer_heal.arguments import check_fields, shortened
from steer_heal.errors import InputError
from steer_heal.model.depth import pick_layers
from steer_heal.shown import brief

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
    "targets": ("tokens", "teacher"),
    "keep_epoch": ("best", "last"),
    "gradient_checkpointing": ("auto", "on", "off"),
}


def target_beta(name: str) -> float | None:
    """The BETA of a target divergence `jsd:BETA`; None for `reverse` and `forward`. InputError for any other name."""
    if name in ("reverse", "forward"):
        return None
    kind, _, text = str(name).partition(":")
    beta = float(text) if kind == "jsd" and re.fullmatch(r"0?\.\d+", text) else 0.0
    if not 0 < beta < 1:
        raise InputError(f"target divergence {name!r}: use reverse, forward, or jsd:BETA with BETA between 0 and 1")
    return beta


@dataclass(frozen=True)
class HealConfig:
    """How a heal trains and what holds it back. Loss per completion: nll + lam * relu(D - tau), in nats.

    With `targets` "teacher" the nll gives way to the divergence from the teacher.

    Attributes:
        reg: Barrier: nll (none), kl_rev = KL(student||reference), kl_fwd = KL(reference||student),
            or module:function.
        lam: Weight of the barrier, nats of nll per nat of divergence; in budget mode where the multiplier starts.
        tau: Budget of a completion's aggregated divergence, in nats; the barrier is silent below it.
        tau_rel: If set, tau is this share of the divergence that the steering itself caused, and `tau` is not used.
        kl_agg: How the positions of a completion become one number: mean, rmse, p95, max, cvar.
        reference: Divergence from: prev (the student before this round), base (the original model), or both.
        tau_base: Budget against base in nats, if another than `tau`.
        lam_base: Weight of the barrier against base, if another than `lam`.
        kl_top_k: Truncate the KL to the reference's k likeliest tokens and a tail bucket; 0: full vocabulary.
        lam_mode: constant, or budget: dual ascent on nll + lam * (D - tau), which settles at tau where the budget
            binds.
        lam_power: lam is multiplied by (1 + round)^power.
        lam_rate: Step of the dual ascent, multiplier per nat over budget and optimiser step.
        lam_max: Upper bound of the multiplier in budget mode.
        rank: LoRA rank r.
        alpha: The adapter's delta is alpha / r * B A.
        lora_layers: Band of relative depth whose blocks get adapters (rounded outwards).
        target_modules: Linear layers that get adapters, by the last parts of their names such as q_proj or mlp.up_proj;
            empty: all of the band that can be adapted and exported.
        exclude_modules: Linear layers that get none, named likewise.
        experts: Adapt experts' weights that lie in one parameter too, at rank r for each expert: many times the factors
            and memory, for no better a heal where it was tried. Both lists may name them, as experts.down_proj.
        lr: Peak learning rate of AdamW.
        betas: AdamW's averaging factors; 0.999 would not warm up within a heal's few hundred steps.
        weight_decay: Decoupled weight decay of A and B, per step as a multiple of the learning rate.
        spectral: Weight of the mean over modules of sigma_max(alpha / r * B A)^2.
        epochs: Passes over the training rows.
        batch_size: Completions per forward pass.
        grad_accum: Forward passes per optimiser step; only the product with `batch_size` changes the result.
        warmup: Share of the steps with a rising learning rate; a cosine to zero follows.
        clip: Largest norm of the adapter's gradient; 0: no clipping.
        heldout: Share of rows kept out of training, to see overfitting and to choose the epoch by; 0: none.
        keep_epoch: Whose adapter a heal returns: best, the epoch with the lowest loss on the held-out rows, or last.
        row_weights: tokens: every token of the data counts the same (maximum likelihood); inv_sqrt: a row's token sum
            over sqrt(tokens); none: its token mean, so that a token of a short reply, its end too, weighs more.
        barrier_rows: Rows the barrier acts on: all, or replay (the original model's own completions among the data).
        replay_weight: Factor on the barrier of the original model's own completions; 4 guards them harder than the new
            texts.
        targets: What a position teaches: tokens (the sampled id), or teacher (the whole distribution of a frozen
            teacher: of the steered student, and of the original model on its own rows).
        target_divergence: From the teacher: reverse = KL(student||teacher), forward = KL(teacher||student), or
            jsd:BETA between them.
        target_strength: How much of what the teacher adds to the student before the heal is taught, in logits; above 1
            extrapolates.
        target_plausibility: A token under this share of the likeliest one's probability before the heal gains nothing
            from the teacher; 0: all tokens are taught.
        target_temperature: The target's plausible tokens share their mass at this temperature. Reverse KL sharpens the
            student every round; a target a little flatter than the teacher (1.3) gives the entropy back.
        target_top_k: Truncate the divergence from the teacher to its k likeliest tokens and a tail bucket; 0: full
            vocabulary.
        token_weight: With a teacher, the weight (0 to 1) of the sampled ids' nll beside it.
        gradient_checkpointing: Recompute blocks in the backward pass (less memory, a third more time): on, off, auto.
        seed: Seed of the initial A, of the held-out split and of the order of rows.
    """

    reg: str | DivergenceFunction = "kl_rev"
    lam: float = 0.3
    tau: float = 0.5
    tau_rel: float | None = None
    kl_agg: str = "rmse"
    reference: str = "prev"
    tau_base: float | None = None
    lam_base: float | None = None
    kl_top_k: int = 0
    lam_mode: str = "constant"
    lam_power: float = 0.0
    lam_rate: float = 1.0
    lam_max: float = 10.0
    rank: int = 32
    alpha: float = 64.0
    lora_layers: tuple[float, float] = (0.2, 0.8)
    target_modules: tuple[str, ...] = ()
    exclude_modules: tuple[str, ...] = ()
    experts: bool = False
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    spectral: float = 0.0
    epochs: int = 6
    batch_size: int = 4
    grad_accum: int = 1
    warmup: float = 0.1
    clip: float = 1.0
    heldout: float = 0.125
    keep_epoch: str = "best"
    row_weights: str = "none"
    barrier_rows: str = "all"
    replay_weight: float = 1.0
    targets: str = "tokens"
    target_divergence: str = "reverse"
    target_strength: float = 1.0
    target_plausibility: float = 0.0
    target_temperature: float = 1.0
    target_top_k: int = 0
    token_weight: float = 0.0
    gradient_checkpointing: str = "auto"
    seed: int = 0

    __repr__ = brief

    def __post_init__(self) -> None:
        check_fields(self, but=("lora_layers", "layers"))  # a band, or blocks
        positive = ("rank", "alpha", "lr", "epochs", "batch_size", "grad_accum", "lam_max", "target_temperature")
        for name in positive:
            self._require(name, "a number above 0", lambda x: x > 0)
        for name in (
            "lam",
            "tau",
            "weight_decay",
            "spectral",
            "clip",
            "kl_top_k",
            "lam_rate",
            "replay_weight",
            "target_strength",
            "target_top_k",
        ):
            self._require(name, "a number of at least 0", lambda x: x >= 0)
        for name in ("tau_base", "lam_base", "tau_rel"):
            if getattr(self, name) is not None:
                self._require(name, "a number of at least 0", lambda x: x >= 0)
        self._require("lam_power", "a finite number", math.isfinite)
        self._require("warmup", "a share from 0 to below 1", lambda x: 0 <= x < 1)
        self._require("target_plausibility", "a share from 0 to below 1", lambda x: 0 <= x < 1)
        self._require("token_weight", "a share from 0 to 1", lambda x: 0 <= x <= 1)
        self._require("heldout", "a share from 0 to 0.5", lambda x: 0 <= x <= 0.5)
        for name in ("rank", "epochs", "batch_size", "grad_accum", "kl_top_k", "target_top_k"):
            self._require(name, "a whole number", lambda x: float(x).is_integer())
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise InputError(f"betas {self.betas!r}: give two numbers from 0 to below 1")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} {getattr(self, name)!r} is unknown: use {', '.join(choices)}")
        if target_beta(self.target_divergence) is not None and self.target_top_k:
            raise InputError(f"target_top_k truncates reverse and forward only: 0 for {self.target_divergence!r}")
        if self.lam_mode == "budget" and self.lam_rate == 0:
            raise InputError("lam_rate 0 never moves the multiplier: give a number above 0 or use lam_mode constant")
        for name in ("target_modules", "exclude_modules"):
            given = getattr(self, name)
            if isinstance(given, str) or not all(isinstance(one, str) and one for one in given):
                raise InputError(f"{name} {given!r}: give names of modules in a list, such as q_proj")
        pick_layers(self.lora_layers, 10**4)  # which blocks there are is known when the model is
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
        given = shortened(reg)
        raise InputError(f"reg {given} is not a function (logp_student, logp_reference) -> one value per position")
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
    except (Exception, SystemExit) as problem:  # the user's code may do anything
        raise InputError(
            f"reg {reg!r} cannot be imported ({problem}): use {names} or a module on the path"
        ) from problem
