"""The options of a run in groups by stage, as the command line shows them.

Knows nothing of how they are checked together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from steer_heal.healing.config import HealConfig
from steer_heal.texts.dose import DoseConfig


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model and trait."""

    model: str | None = None
    """pocket (embedded), tiny-random, a folder or a hub id; default pocket, tiny-random with --fast-dev-run."""
    trait: str | None = None
    """Built-in trait or a TOML file; default by model."""
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
    """Batches at most; a round with fewer than 30 survivors (or n-min, if that is less) by then is starved."""
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
    """Largest drop of coherence against the original model, as a share (0..1) of sound sentences or replies."""
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
    """Rounds of extract, walk, heal, bake, evaluate."""
    replay: float = 0.0
    """Share of the training rows that are the ORIGINAL model's own replies to neutral prompts."""
    accumulate: int = 0
    """Earlier rounds' kept completions that stay in the training set, at most this many."""
    seed: int = 0
    """Of everything: same seed, same machine, same run."""
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
