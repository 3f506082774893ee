"""Options that were given and cannot act, each with the reason: told before a run starts, and no error.

Knows nothing of models and of where it is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from steer_heal.config.run_config import RunConfig
from steer_heal.model.names import EMBEDDED


@dataclass(frozen=True)
class Idle:
    """Options that do nothing where `when` (the configuration, the same model's defaults) holds.

    `why` follows the option and its value, with the configuration's values filled in.
    """

    options: tuple[str, ...]
    when: Callable[[RunConfig, RunConfig], bool]
    why: str


def _weights(config: RunConfig) -> list[float]:
    """Weight of the barrier against each of its references."""
    of_base = config.lam if config.lam_base is None else config.lam_base
    return [of_base if name == "base" else config.lam for name in config.barrier_names()]


def _own_rows(config: RunConfig) -> float:
    """Share of the training rows that are the original model's own."""
    return config.replay + config.replay_anchors


BARRIER = (
    "tau",
    "tau_rel",
    "tau_base",
    "kl_agg",
    "kl_top_k",
    "reference",
    "barrier_rows",
    "replay_weight",
    "lam_power",
)
TARGET = ("target_divergence", "target_strength", "target_plausibility", "target_temperature", "target_top_k")
NOTHING = "does nothing: "
IDLE = (
    Idle((*BARRIER, "lam", "lam_base", "lam_mode", "lam_rate", "lam_max"), lambda c, _: c.reg == "nll",
         NOTHING + "--reg nll has no barrier"),
    Idle(BARRIER, lambda c, _: c.lam_mode == "constant" and not any(_weights(c)),
         NOTHING + "the barrier's weight is 0 (--lam, --lam-base)"),
    Idle(("lam_rate", "lam_max"), lambda c, _: c.lam_mode == "constant",
         NOTHING + "--lam-mode constant keeps lam as it is"),
    Idle(("tau_base", "lam_base"), lambda c, _: c.reference == "prev",
         NOTHING + "--reference prev has no barrier against base"),
    Idle(("tau", "tau_rel"), lambda c, _: c.reference == "base" and c.tau_base is not None,
         NOTHING + "--tau-base is the budget against base, and there is no other"),
    Idle(("lam",), lambda c, _: c.reference == "base" and c.lam_base is not None,
         NOTHING + "--lam-base is the weight against base, and there is no other"),
    Idle(("tau",), lambda c, _: c.tau_rel is not None, NOTHING + "--tau-rel sets the budget"),
    Idle(("replay_weight",), lambda c, _: not _own_rows(c),
         NOTHING + "no row is the original model's own (--replay, --replay-anchors)"),
    Idle((*TARGET, "token_weight", "prompted_teacher", "trait_teacher"), lambda c, _: c.targets == "tokens",
         NOTHING + "--targets tokens has no teacher"),
    Idle(TARGET, lambda c, _: c.token_weight == 1, NOTHING + "--token-weight 1 leaves the teacher no part in the loss"),
    Idle(("teacher_reach",), lambda c, _: c.texts == "steered", NOTHING + "--texts steered has no text of its own"),
    Idle(("context_share",), lambda c, _: c.text_prompts != "both", NOTHING + "--text-prompts {text_prompts}"),
    Idle(("trait_teacher",), lambda c, _: c.text_prompts == "contexts", NOTHING + "--text-prompts contexts"),
    Idle(("context_dose",), lambda c, _: c.text_prompts == "trait", NOTHING + "--text-prompts trait"),
    Idle(("match_lengths",), lambda c, _: c.texts == "own", "has nothing to undo: no own text is dropped"),
    Idle(("keep_epoch",), lambda c, _: not c.heldout or c.epochs == 1,
         NOTHING + "there is one epoch to choose from, or no row held out to choose by (--epochs, --heldout)"),
    Idle(("temperature",), lambda c, usual: c.text_temperature == usual.text_temperature not in (None, c.temperature),
         "does not reach the training texts: they have --text-temperature {text_temperature}, its default here"),
    Idle(("top_p",), lambda c, usual: c.text_top_p == usual.text_top_p not in (None, c.top_p),
         "does not reach the training texts: they have --text-top-p {text_top_p}, its default here"),
    Idle(("target_kl",), lambda c, _: c.vector == "none", NOTHING + "--vector none steers nothing"),
    Idle(("trust_remote_code",), lambda c, _: c.model_name in EMBEDDED,
         NOTHING + "an embedded model comes with no code of its own"),
    Idle(("attn_implementation",), lambda c, _: c.model_name == "tiny-random",
         NOTHING + "tiny-random is built as it is"),
    Idle(("filter_model",), lambda c, _: c.filter != "coherence",
         NOTHING + "--filter {filter} does not look at perplexity"),
    Idle(("false_drop",), lambda c, _: c.filter == "none", NOTHING + "--filter none drops no text"),
    Idle(("match_lengths",), lambda c, _: c.match_lengths == "sampled" and c.filter == "none",
         "has nothing to undo: --filter none drops no text"),
    Idle(("walk_mode",), lambda c, _: c.walk_mode == "grid" and c.kappa_floor == c.kappa_start,
         NOTHING + "there is one kappa (--kappa-start, --kappa-floor)"),
    Idle(("survival_target",), lambda c, _: c.walk_mode == "ladder" and c.walk_batches == 1,
         NOTHING + "after the only batch (--walk-batches 1) no kappa is chosen"),
    Idle(("eval_think_closing",), lambda c, _: not c.eval_think_tokens,
         NOTHING + "nothing is thought before an answer (--eval-think-tokens 0)"),
    Idle(("max_reverts", "on_inconclusive"), lambda c, _: c.gate == "watch",
         NOTHING + "--gate watch takes no round out"),
    Idle(("max_reverts",), lambda c, _: c.max_reverts > c.n_rounds,
         NOTHING + "the run has no more than {n_rounds} rounds"),
    Idle(("accumulate", "diversity_gain", "early_stop", "lam_power", "vector_from"), lambda c, _: c.n_rounds == 1,
         NOTHING + "it acts from the second round on, and --n-rounds is 1"),
)  # fmt: skip
"""In the order of their reasons: of several that hold for an option the first is told."""


def idle_options(config: RunConfig) -> list[str]:
    """A line for each option that is not at its default (as model and targets have it) and cannot act, and why."""
    config = config.resolved()
    usual = RunConfig(model=config.model, targets=config.targets, fast_dev_run=config.fast_dev_run).resolved()
    told: dict[str, str] = {}
    for idle in IDLE:
        for name in idle.options:
            value = getattr(config, name)
            if value != getattr(usual, name) and idle.when(config, usual):
                option = f"--{name.replace('_', '-')}{'' if value is True else f' {value}'}"
                told.setdefault(name, f"{option} {idle.why.format_map(vars(config))}")
    return list(told.values())
