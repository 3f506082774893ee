"""Every option of a run, in groups by stage; `RunConfig` is all groups side by side, flat.

Knows nothing of models. The command line shows the groups; notebooks write `RunConfig(reg="kl_rev", n_rounds=2)`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import tyro

from steer_heal.barriers.names import DivergenceFunction
from steer_heal.dose import DoseConfig
from steer_heal.errors import InputError
from steer_heal.healing.config import HealConfig
from steer_heal.sampling import Sampling
from steer_heal.trait import Vignette
from steer_heal.trait_file import read_vignettes


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model and trait."""

    model: str | None = None
    """pocket (embedded), tiny-random, a folder or a hub id; default pocket, tiny-random with --fast-dev-run."""
    trait: str | None = None
    """Built-in trait or a TOML file; default follows the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; auto: float32 on a CPU and for embedded models, else as stored."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    attn_implementation: str | None = None
    """Attention of transformers: sdpa, eager, flash_attention_2; default its own choice."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model."""
    temperature: float | None = None
    """Sampling temperature; default the model's own (its generation config), which is 1 where it names none."""
    top_p: float | None = None
    """Sample from the likeliest tokens that hold this share of the probability; default the model's own."""
    threads: int = 0
    """CPU threads of torch; 0: one for the embedded models (faster for them), else torch's own choice."""


@dataclass(frozen=True, kw_only=True)
class SteeringOptions:
    """Vector, doses, generation."""

    layers: tuple[float, float] | Literal["auto"] = (0.45, 0.55)
    """Blocks to steer: a band of relative depth (0..1, rounded outwards), or auto: measure all and say why."""
    position: Literal["last", "last_content"] = "last"
    """Token the vector is read at: the assistant tag, or the last token of the user's words."""
    too_long: Literal["error", "skip"] = "error"
    """A context that does not fit the model is an error, or is left out and counted."""
    doses: tuple[float, ...] | None = None
    """Doses of the training texts, times the vector and kappa; they should straddle the knee. Follows the model."""
    target_kl: float | None = None
    """Nats (rmse over a reply's tokens) that dose 1 causes, found anew each round; 0: raw vector. Follows the model."""
    text_temperature: float | None = None
    """Sampling temperature of the training texts; under 1 every round sharpens the student. Follows the model."""
    diversity_gain: float | None = None
    """Feedback on that temperature: it rises by this times the share of base's distinct 4-grams that the student has
    lost; 0: none. Follows the model."""
    text_top_p: float | None = None
    """Top-p of the training texts; under 1 it sharpens too. Follows the model."""
    text_min_p: float | None = None
    """Min-p of the training texts: a token needs this share of the likeliest one's probability, after the temperature;
    it keeps hot texts sound. Follows the model."""
    vector: Literal["real", "random", "none"] = "real"
    """Control: a random vector of the same norm (with a target_kl, of the same divergence), or no steering."""
    vector_from: Literal["each", "first", "mixed"] = "each"
    """Extract the vector anew from each round's student, keep round 0's, or take the mean of both, at the new one's
    norm in each block."""
    max_new_tokens: int | None = None
    """Longest reply, in tokens. Follows the model."""


@dataclass(frozen=True, kw_only=True)
class WalkOptions:
    """Walk-C and filter."""

    n_min: int | None = None
    """Completions to bank per round before the walk is content. Follows the model."""
    walk_batch: int | None = None
    """Completions per batch of the walk. Follows the model."""
    walk_batches: int = 6
    """Batches at most; a round with fewer than 30 survivors by then is starved."""
    survival_target: float | None = None
    """Share of a batch that has to survive, else kappa falls. Follows the model."""
    kappa_start: float = 1.0
    """First multiplier of the doses."""
    kappa_floor: float = 0.2
    """Smallest multiplier of the doses."""
    kappa_shrink: float = 0.7
    """Factor on kappa when too few survive."""
    walk_mode: Literal["ladder", "bisect", "grid"] = "ladder"
    """Down a ladder of batches; or first bisect log kappa with probes of 8, or share one batch among 6 kappas."""
    filter: Literal["coherence", "repetition", "none"] = "coherence"
    """All gates, the repetition gate alone, or no filter (experiments)."""
    filter_model: Literal["original", "student"] = "original"
    """Whose perplexity the filter uses."""
    false_drop: float = 0.05
    """Share of the model's own unsteered text that all gates together may drop."""
    match_lengths: Literal["base", "sampled", "none"] = "base"
    """Weight the kept texts so that their lengths are spread as those of the original model's own texts, or as all
    that were sampled (for a trait that changes the length); none: survivors are shorter, and so is the student."""
    pairs: Literal["real", "shuffled"] = "real"
    """Control: completions shuffled between prompts before training."""

    def dose_config(self) -> DoseConfig:
        """These options as the controller takes them."""
        return DoseConfig(
            kappa_start=self.kappa_start, kappa_floor=self.kappa_floor, shrink=self.kappa_shrink,
            target=self.survival_target, n_min=self.n_min, batch=self.walk_batch, max_batches=self.walk_batches,
            mode=self.walk_mode,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Evaluation and floors."""

    eval_items: int | None = None
    """Forced-choice items, a stratified sample; default all."""
    eval_replies: int = 96
    """Held-out free-text replies per measured model."""
    eval_vignettes: str | None = None
    """Vignettes, a JSON-lines file of id, foundation_coarse, text, human_<Category>; default those of the trait."""
    eval_think_tokens: int = 0
    """Longest thinking before the answer of each forced choice, in tokens; 0: none. For models that think."""
    eval_think_closing: str = "</think>"
    """Text with which the model closes its thinking."""
    coherence_floor: float = 0.85
    """A round whose sentence quality falls under this share of base has collapsed and is reverted."""


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """Gate between the rounds, anchors and controls."""

    gate: Literal["on", "watch"] = "on"
    """on: a round not shown to be harmless is taken out again; watch: decide and record only (experiments)."""
    max_drop: float = 0.05
    """Largest drop of coherence, and of anchors, that one round may cause, as a share (0..1)."""
    total_drop: float = 0.10
    """Largest drop of anchors against the original model: what all rounds together may cost."""
    coherence_drop: float = 0.025
    """The same for coherence, as a share (0..1) of sound sentences or replies."""
    on_inconclusive: Literal["estimate", "keep", "revert"] = "estimate"
    """When an interval crosses an allowed drop. estimate: kept if the drop found is within it; revert: only what is
    shown to be no worse is kept (needs about 100 prompts and anchors); keep: kept unless surely worse."""
    max_reverts: int = 4
    """Reverted rounds in a row after which the run ends; each starts the next one at a lower dose, a kept one at a
    higher one again."""
    early_stop: bool = False
    """End the run when two standing rounds in a row moved the trait's log-odds by no more than their noise."""
    anchors: str | None = None
    """Anchor tasks, a JSON-lines file of id, prompt, answer and check; default those of the trait."""
    replay_anchors: float = 0.0
    """Share of the training rows that are anchors with the ORIGINAL model's own right answers; about .5 to learn
    tasks without losing others."""
    controls: Literal["all", "none"] = "none"
    """all: the same budget again unsteered, with a random vector and with shuffled pairs, compared item by item."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """The loop and its output."""

    n_rounds: int = 4
    """Rounds of extract, walk, filter, heal, bake, evaluate."""
    replay: float = 0.0
    """Share of the training rows that are the ORIGINAL model's own replies to neutral prompts."""
    accumulate: int = 0
    """Earlier rounds' kept completions that stay in the training set, at most this many."""
    seed: int = 0
    """Seed of everything: the same seed on the same machine gives the same run."""
    out: str = "out"
    """Folder that gets the run's folder."""
    fast_dev_run: bool = False
    """Every stage in seconds on a random model; the numbers mean nothing."""
    quiet: bool = False
    """Print the final table only."""
    overfit_check: bool = False
    """After each heal, train on its most trait-laden completion alone: tells "cannot express it" from "not seen"."""


@dataclass(frozen=True)
class HealOptions(HealConfig):
    """Heal: LoRA under a divergence barrier. Loss per completion: nll + lam * relu(D - tau), in nats."""

    reg: str = "kl_rev"
    """Barrier: nll (none), kl_rev = KL(student||reference), kl_fwd = KL(reference||student), or module:function."""
    reference: str = "base"
    """Divergence from: prev (the student before this round), base (the original model), or both."""
    tau: float | None = None
    """Budget of a completion's aggregated divergence, in nats; the barrier is silent below it. Follows the model."""
    lr: float | None = None
    """Peak learning rate of AdamW. Follows the model."""
    epochs: int | None = None
    """Passes over the training rows. Follows the model."""
    row_weights: str = "tokens"
    """tokens: every token of the data counts the same (maximum likelihood); inv_sqrt: a row's token sum over
    sqrt(tokens); none: its token mean, so that a token of a short reply, its end too, weighs more."""
    seed: tyro.conf.Suppress[int] = 0
    """Set by the run's own seed."""

    def __post_init__(self) -> None:
        """Checked by `RunConfig`, once the values that follow the model are filled in."""


FOLLOWS_MODEL: dict[str, dict[str, object]] = {
    "pocket": {
        "lr": 1.25e-3, "epochs": 3, "tau": 0.5, "doses": (0.5, 1.0), "max_new_tokens": 72, "n_min": 192,
        "walk_batch": 96, "target_kl": 0.0, "survival_target": 0.4, "text_temperature": 1.15, "text_top_p": 1.0,
        "text_min_p": 0.03, "diversity_gain": 1.0,
    },
    "tiny-random": {
        "lr": 1e-3, "epochs": 2, "tau": 0.2, "doses": (0.5, 1.0), "max_new_tokens": 24, "n_min": 16, "walk_batch": 24,
        "target_kl": 0.0, "survival_target": 0.25, "diversity_gain": 0.0,
    },
    "others": {
        "lr": 1e-4, "epochs": 6, "tau": 0.5, "doses": (0.5, 0.75, 1.0), "max_new_tokens": 256, "n_min": 48,
        "walk_batch": 48, "target_kl": 1.0, "survival_target": 0.25, "diversity_gain": 0.0,
    },
}  # fmt: skip
"""Defaults that no single number serves: steps and lengths of a 1 M-parameter model are not those of a 4 B one."""

GROUPS: dict[str, type] = {
    "model_options": ModelOptions,
    "steering": SteeringOptions,
    "walk": WalkOptions,
    "heal": HealOptions,
    "evaluation": EvaluationOptions,
    "gate": GateOptions,
    "loop": LoopOptions,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig(LoopOptions, GateOptions, EvaluationOptions, WalkOptions, SteeringOptions, ModelOptions, HealOptions):
    """All options of a run, flat; defaults give the main job on the embedded model.

    Raises InputError on an impossible value.
    """

    reg: str | DivergenceFunction = "kl_rev"
    """As in `HealConfig`: a name, module:function, or in Python the function itself."""

    def __post_init__(self) -> None:
        for name, value in FOLLOWS_MODEL.get(self.model_name, FOLLOWS_MODEL["others"]).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        HealConfig.__post_init__(self)
        self.dose_config()
        if not self.doses or any(not isinstance(d, (int, float)) or not 0 <= d < float("inf") for d in self.doses):
            raise InputError(f"doses {self.doses!r}: give finite numbers of at least 0")
        _check_layers(self.layers)
        at_least = {"n_rounds": 1, "max_new_tokens": 4, "eval_replies": 8, "accumulate": 0, "threads": 0,
                    "max_reverts": 1, "eval_think_tokens": 0}  # fmt: skip
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}: give a whole number of at least {least}")
        shares = {"replay": 0.9, "replay_anchors": 0.9, "coherence_floor": 1.0, "false_drop": 0.5, "max_drop": 1.0,
                  "total_drop": 1.0, "coherence_drop": 1.0}  # fmt: skip
        for name, high in shares.items():
            if not 0 <= getattr(self, name) <= high:
                raise InputError(f"{name} {getattr(self, name)}: give a share from 0 to {high}")
        if self.replay + self.replay_anchors > 0.9:
            raise InputError(
                f"replay {self.replay} and replay_anchors {self.replay_anchors} are together over 0.9: lower one"
            )
        if not 0 <= self.diversity_gain < float("inf"):
            raise InputError(f"diversity_gain {self.diversity_gain}: give a number of at least 0, such as 1")
        if not 0 <= self.target_kl < float("inf"):
            raise InputError(f"target_kl {self.target_kl}: give nats above 0, or 0 for multiples of the raw vector")
        if self.eval_items is not None and self.eval_items < 8:
            raise InputError(f"eval_items {self.eval_items}: give at least 8")
        self.text_sampling()
        Sampling(self.temperature, self.top_p)
        self.vignettes()  # a wrong file is an error here, not after the filter is calibrated
        if self.vector == "none" and self.tau_rel is not None and self.reg != "nll":
            raise InputError("tau_rel is a share of what steering causes; vector none steers nothing: give tau in nats")
        if self.vector == "none" and any(self.doses):
            object.__setattr__(self, "doses", (0.0,))  # an unsteered run has one dose

    @property
    def model_name(self) -> str:
        """The model this run uses."""
        return self.model or ("tiny-random" if self.fast_dev_run else "pocket")

    @property
    def reg_name(self) -> str:
        """The barrier's name; a user's own function is named by the function."""
        return self.reg if isinstance(self.reg, str) else self.reg.__name__

    def vignettes(self) -> tuple[Vignette, ...] | None:
        """The vignettes of `eval_vignettes`; None for the trait's own."""
        return None if self.eval_vignettes is None else read_vignettes(Path(self.eval_vignettes).expanduser())

    def text_sampling(self) -> Sampling:
        """How training texts, and those that the filter is calibrated on, are sampled; None: the model's own way."""
        return Sampling(self.text_temperature, self.text_top_p, min_p=self.text_min_p)

    def heal_config(self, seed: int) -> HealConfig:
        """The heal's own options with a seed of their own."""
        return HealConfig(**{f.name: getattr(self, f.name) for f in fields(HealConfig)} | {"seed": seed})

    def resolved(self) -> RunConfig:
        """With --fast-dev-run: sizes cut down so that every stage runs in seconds.

        Eight replies decide nothing, so inconclusive rounds are kept there: the second round starts on a baked one.
        """
        if not self.fast_dev_run:
            return self
        return replace(
            self, n_rounds=min(self.n_rounds, 2), n_min=min(self.n_min, 12), walk_batch=min(self.walk_batch, 16),
            epochs=min(self.epochs, 2), eval_items=8, eval_replies=8, max_new_tokens=min(self.max_new_tokens, 16),
            on_inconclusive="keep",
        )  # fmt: skip

    def to_dict(self) -> dict:
        """For `config.json`."""
        return asdict(self)


def _check_layers(layers: object) -> None:
    """A band of two fractions, or auto."""
    pair = isinstance(layers, (tuple, list)) and len(layers) == 2
    if layers != "auto" and not (pair and 0 <= layers[0] <= layers[1] <= 1):
        raise InputError(f"layers {layers!r}: give `auto` or two fractions with 0 <= low <= high <= 1")
