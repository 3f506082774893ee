"""The options of a run in groups by stage, as the command line shows them.

Knows nothing of how they are checked together.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Annotated, Literal, get_args, get_type_hints

import tyro

from steer_heal.config.follows_model import by_model
from steer_heal.healing.config import HealConfig
from steer_heal.model.memory import LoadIn
from steer_heal.texts.dose import DoseConfig


def text_of(stage: type, name: str) -> object:
    """The text that a dataclass has for its field `name`, for an option that says the same of it elsewhere."""
    documented = "\n".join(one.__doc__ for one in stage.__mro__[:-1])
    text, *_ = re.findall(rf"^ {{8}}{name}: (.+(?:\n {{12}}.+)*)", documented, re.MULTILINE)
    return tyro.conf.arg(help=" ".join(text.split()))


def explained(options: type) -> str:
    """Every field of a class of options with its text, as its docstring would have it."""
    told = []
    for name, hint in get_type_hints(options, include_extras=True).items():
        own = [note.help for note in get_args(hint)[1:] if getattr(note, "help", None)]
        told.append(f"{name}: {own[0] if own else text_of(options, name).help}")
    rows = (textwrap.fill(one, 116, initial_indent=" " * 8, subsequent_indent=" " * 12) for one in told)
    return "\n".join(("    Attributes:", *rows))


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model, trait and machine.

    Attributes:
        model: pocket (embedded), tiny-random, a folder or a hub id; default pocket, tiny-random with --fast-dev-run.
        trait: Built-in trait or a TOML file; default by model.
        dtype: Precision of the weights; auto: float32 on a CPU and for embedded models, else as stored.
        load_in: Pack the base's linear layers into 4bit or 8bit (steer-heal[quantized]); adapters stay beside them.
        device: cpu, cuda, mps or auto.
        attn_implementation: Attention of transformers: sdpa, eager, flash_attention_2; default its own choice.
        trust_remote_code: Run Python code that comes with a hub model.
        temperature: Sampling temperature of all but the training texts, which have --text-temperature; default the
            model's own (its generation config), 1 where it names none.
        top_p: Sample from the likeliest tokens that hold this share of the probability (training texts:
            --text-top-p); default the model's own.
        engine: What samples: transformers; compiled, the same with compiled blocks, as one CUDA graph on a GPU; vllm,
            which takes rows without a dose, faster from some hundred thousand tokens on, with pip install
            'steer-heal[vllm]'. The draws of vllm are others, so that texts are too.
        threads: CPU threads of torch; 0: one for a model of under 20 million parameters (on idle cores two are
            faster, on busy ones several times slower), else torch's own choice.
    """

    model: str | None = None
    trait: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    load_in: LoadIn | None = None
    device: str = "auto"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    temperature: float | None = None
    top_p: float | None = None
    engine: Literal["transformers", "compiled", "vllm"] = "transformers"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class SteeringOptions:
    """The vector, its doses, and the texts sampled under it.

    Attributes:
        layers: Blocks to steer: a band of relative depth (0..1, rounded outwards), or auto: measure all and say why.
        position: Token the vector is read at: the assistant tag, or the last token of the user's words.
        too_long: A context that does not fit the model is an error, or is left out and counted.
        doses: Doses of the training texts, times the vector and kappa; they should straddle the knee.
        target_kl: Nats (rmse over a reply's tokens) that dose 1 causes, found anew each round; 0: raw vector.
        text_temperature: Sampling temperature of the training texts; under 1 every round sharpens the student.
        diversity_gain: Feedback on that temperature, with a teacher on its target's: it rises by this times the share
            of base's distinct 4-grams that the student has lost; 0: none.
        text_top_p: Top-p of the training texts; under 1 it sharpens too.
        text_min_p: Min-p of the training texts: a token needs this share of the likeliest one's probability, after the
            temperature; it keeps hot texts sound.
        texts: Whose texts a round learns from: the steered student's, or (with --targets teacher) its own without
            steering, the doses being the teacher's then; mixed: half of each.
        text_prompts: What these texts answer: the trait's prompts, the extraction contexts, or both.
        context_share: Share of the texts that answer contexts, with --text-prompts both.
        context_dose: Factor on the dose of texts that answer contexts. Free text on the trait's own prompts follows a
            mild teacher; only a strong one carries the trait to other kinds of question.
        trait_teacher: Which weights are under the vector where a teacher reads the trait's own prompts: the original's,
            with round 0's vector, a teacher that does not drift, or the student's, as on contexts.
        teacher_reach: Nats (rmse over a reply's tokens) that the teacher of one of the student's own texts may be away
            from the student: a text beyond it is left out, and kappa falls while too few are within; 0: no limit.
        prompted_teacher: Share of the texts whose teacher is not the steered student but the original model under the
            persona (context distillation).
        vector: Control: a random vector of the same norm (with a target_kl, of the same divergence), or no steering.
        vector_from: Extract the vector anew from each round's student, keep round 0's, or take the mean of both, at
            the new one's norm in each block.
        max_new_tokens: Longest reply, in tokens.
    """

    layers: tuple[float, float] | Literal["auto"] = (0.45, 0.55)
    position: Literal["last", "last_content"] = "last"
    too_long: Literal["error", "skip"] = "error"
    doses: Annotated[tuple[float, ...] | None, by_model("doses")] = None
    target_kl: Annotated[float | None, by_model("target_kl")] = None
    text_temperature: Annotated[float | None, by_model("text_temperature")] = None
    diversity_gain: Annotated[float | None, by_model("diversity_gain")] = None
    text_top_p: Annotated[float | None, by_model("text_top_p")] = None
    text_min_p: Annotated[float | None, by_model("text_min_p")] = None
    texts: Annotated[Literal["steered", "own", "mixed"] | None, by_model("texts")] = None
    text_prompts: Annotated[Literal["trait", "contexts", "both"] | None, by_model("text_prompts")] = None
    context_share: float = 0.6
    context_dose: Annotated[float | None, by_model("context_dose")] = None
    trait_teacher: Literal["original", "student"] = "original"
    teacher_reach: float = 0.0
    prompted_teacher: float = 0.0
    vector: Literal["real", "random", "none"] = "real"
    vector_from: Literal["each", "first", "mixed"] = "each"
    max_new_tokens: Annotated[int | None, by_model("max_new_tokens")] = None


@dataclass(frozen=True, kw_only=True)
class WalkOptions:
    """Walk-C, which adapts the dose, and the coherence filter.

    Attributes:
        filter: All gates, the repetition gate alone, or no filter (experiments).
        filter_model: Whose perplexity the filter uses.
        false_drop: Share of the model's own unsteered text that all gates together may drop.
        match_lengths: Weight the kept texts so that their lengths are spread as those of the original model's own
            texts, or as all that were sampled (for a trait that changes the length); none: survivors are shorter, and
            so is the student.
        pairs: Control: completions shuffled between prompts before training; with a teacher, what it reads is.
    """

    n_min: Annotated[int | None, text_of(DoseConfig, "n_min"), by_model("n_min")] = None
    walk_batch: Annotated[int | None, text_of(DoseConfig, "batch"), by_model("walk_batch")] = None
    walk_batches: Annotated[int, text_of(DoseConfig, "max_batches")] = 6
    survival_target: Annotated[float | None, text_of(DoseConfig, "target"), by_model("survival_target")] = None
    kappa_start: Annotated[float, text_of(DoseConfig, "kappa_start")] = 1.0
    kappa_floor: Annotated[float, text_of(DoseConfig, "kappa_floor")] = 0.2
    kappa_shrink: Annotated[float, text_of(DoseConfig, "shrink")] = 0.7
    walk_mode: Annotated[Literal["ladder", "bisect", "grid"], text_of(DoseConfig, "mode")] = "ladder"
    filter: Literal["coherence", "repetition", "none"] = "coherence"
    filter_model: Literal["original", "student"] = "original"
    false_drop: float = 0.05
    match_lengths: Annotated[Literal["base", "sampled", "none"] | None, by_model("match_lengths")] = None
    pairs: Literal["real", "shuffled"] = "real"

    def dose_config(self) -> DoseConfig:
        """These options as the controller takes them."""
        return DoseConfig(
            kappa_start=self.kappa_start,
            kappa_floor=self.kappa_floor,
            shrink=self.kappa_shrink,
            target=self.survival_target,
            n_min=self.n_min,
            batch=self.walk_batch,
            max_batches=self.walk_batches,
            mode=self.walk_mode,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What every model of a run is measured on.

    Attributes:
        eval_items: Forced-choice items, a stratified sample; default all.
        eval_replies: Held-out free-text replies per measured model.
        eval_vignettes: Vignettes, a JSON-lines file of id, foundation_coarse, text, human_<Category>; default those of
            the trait.
        eval_think_tokens: Longest thinking before the answer of each forced choice, in tokens; 0: none. For models
            that think.
        eval_think_closing: Text with which the model closes its thinking.
        coherence_floor: A round whose sentence quality falls under this share of base has collapsed and is reverted.
    """

    eval_items: int | None = None
    eval_replies: int = 96
    eval_vignettes: str | None = None
    eval_think_tokens: int = 0
    eval_think_closing: str = "</think>"
    coherence_floor: float = 0.85


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """Which rounds stand; anchors and controls.

    Attributes:
        gate: on: a round not shown to be harmless is taken out again; watch: decide and record only (experiments).
        max_drop: Largest drop of coherence, and of anchors, that one round may cause, as a share (0..1).
        total_drop: Largest drop of anchors against the original model: what all rounds together may cost.
        coherence_drop: Largest drop of coherence against the original model, as a share (0..1) of sound sentences or
            replies.
        on_inconclusive: When an interval crosses an allowed drop. estimate: kept if the drop found is within it;
            revert: only what is shown to be no worse is kept (needs about 100 prompts and anchors); keep: kept unless
            surely worse.
        max_reverts: Reverted rounds in a row after which the run ends; each starts the next one at a lower dose, a
            kept one at a higher one again.
        early_stop: End the run when two standing rounds in a row moved the trait's log-odds by no more than their
            noise.
        anchors: Anchor tasks, a JSON-lines file of id, prompt, answer and check; default those of the trait.
        replay_anchors: Share of the training rows that are anchors with the ORIGINAL model's own right answers; about
            .5 to learn tasks without losing others. Every other anchor by id is replayed, only the rest are counted.
        controls: all: the same budget again unsteered, with a random vector and with shuffled pairs, compared item by
            item.
    """

    gate: Literal["on", "watch"] = "on"
    max_drop: float = 0.05
    total_drop: float = 0.10
    coherence_drop: float = 0.025
    on_inconclusive: Literal["estimate", "keep", "revert"] = "estimate"
    max_reverts: int = 4
    early_stop: bool = False
    anchors: str | None = None
    replay_anchors: Annotated[float | None, by_model("replay_anchors")] = None
    controls: Literal["all", "none"] = "none"


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Rounds, seed and output.

    Attributes:
        n_rounds: Rounds of extract, walk, heal, bake, evaluate.
        replay: Share of the training rows that are the ORIGINAL model's own replies to neutral prompts.
        accumulate: Earlier rounds' kept completions that stay in the training set, at most this many.
        seed: Of everything: same seed, same machine, same run.
        out: Folder that gets the run's folder.
        fast_dev_run: Every stage in seconds on a random model, with at most 2 rounds, 2 epochs and 16 tokens, whatever
            else is asked for; the numbers mean nothing.
        quiet: Print the final table only.
        track: Also log every figure to an experiment tracker, with pip install 'steer-heal[wandb]' and so on.
        overfit_check: After each heal, train on its most trait-laden completion alone: tells "cannot express it" from
            "not seen".
    """

    n_rounds: int = 3
    replay: Annotated[float | None, by_model("replay")] = None
    accumulate: int = 0
    seed: int = 0
    out: str = "out"
    fast_dev_run: bool = False
    quiet: bool = False
    track: Literal["wandb", "tensorboard", "trackio"] | None = None
    overfit_check: bool = False


@dataclass(frozen=True)
class HealOptions(HealConfig):
    """The divergence barrier, and the LoRA adapter trained under it.

    Loss per completion: nll + lam * relu(D - tau), in nats.
    """

    reg: str = "kl_rev"
    targets: str = "teacher"
    reference: str = "base"
    lam: Annotated[float | None, by_model("lam")] = None
    tau: Annotated[float | None, by_model("tau")] = None
    lr: Annotated[float | None, by_model("lr")] = None
    epochs: Annotated[int | None, by_model("epochs")] = None
    row_weights: Annotated[str | None, by_model("row_weights")] = None
    target_temperature: Annotated[float | None, by_model("target_temperature")] = None
    target_plausibility: Annotated[float | None, by_model("target_plausibility")] = None
    seed: tyro.conf.Suppress[int] = 0

    def __post_init__(self) -> None:
        """Checked by `RunConfig`, once the values that follow the model are filled in."""
