"""`RunConfig`: all options of a run, flat, with the values that follow the model, checked together.

Knows nothing of models.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace

from steer_heal.arguments import check_fields, checked
from steer_heal.config.follows_model import defaults, mixed_in
from steer_heal.config.options import (
    EvaluationOptions,
    GateOptions,
    HealOptions,
    LoopOptions,
    ModelOptions,
    SteeringOptions,
    WalkOptions,
    explained,
)
from steer_heal.errors import InputError, is_name
from steer_heal.healing.config import DivergenceFunction, HealConfig
from steer_heal.model.depth import pick_layers
from steer_heal.shown import brief
from steer_heal.texts.sampling import Sampling
from steer_heal.trait import Trait, Vignette, default_trait
from steer_heal.trait.rows import read_rows

AT_LEAST = {
    0: ("accumulate", "threads", "eval_think_tokens"),
    1: ("n_rounds", "max_reverts"),
    4: ("max_new_tokens",),
    8: ("eval_replies",),
}
SHARES = {
    0.5: ("false_drop",),
    0.9: ("replay", "replay_anchors"),
    1.0: ("context_share", "prompted_teacher", "coherence_floor", "max_drop", "total_drop", "coherence_drop"),
}
"""Largest value of options that are shares."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(LoopOptions, GateOptions, EvaluationOptions, WalkOptions, SteeringOptions, ModelOptions, HealOptions):
    """All options of a run, flat; defaults give the main job on the embedded model.

    The groups that it inherits from explain them; `reg` may also be the function itself. Defaults of None that follow
    the model and the targets (`defaults`) are filled in.

    Raises InputError on an impossible value.
    """

    reg: str | DivergenceFunction = "kl_rev"

    __repr__ = brief

    def __post_init__(self) -> None:
        check_fields(self, but=("layers",))  # a band, or blocks
        if not is_name(f"{self.out}{self.model}"):
            raise InputError("out and model must have no line breaks or control characters: name them otherwise")
        for name, value in defaults(self.model_name, self.targets).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.targets == "tokens":  # nothing of it depends on the trait
            for name, value in mixed_in(self.model_name, "tokens").items():
                object.__setattr__(self, name, value if getattr(self, name) is None else getattr(self, name))
        HealConfig.__post_init__(self)
        self.dose_config()
        if not self.doses or any(not isinstance(d, (int, float)) or not 0 <= d < float("inf") for d in self.doses):
            raise InputError(f"doses {self.doses!r}: give finite numbers of at least 0")
        if self.layers not in (None, "auto"):
            pick_layers(self.layers, 10**4)  # which blocks there are is known when the model is
        for least, names in AT_LEAST.items():
            for name in names:
                if getattr(self, name) < least:
                    raise InputError(f"{name} {getattr(self, name)}: give a whole number of at least {least}")
        cores = os.cpu_count() or 1
        if self.threads > cores:
            raise InputError(f"threads {self.threads}: this machine has {cores} cores, give at most so many, or 0")
        for most, names in SHARES.items():
            for name in names:
                if not 0 <= (getattr(self, name) or 0) <= most:
                    raise InputError(f"{name} {getattr(self, name)}: give a share from 0 to {most}")
        mixed = (self.replay or 0) + (self.replay_anchors or 0)
        if mixed > 0.9:
            raise InputError(
                f"replay {self.replay} and replay_anchors {self.replay_anchors} are together over 0.9: lower one"
            )
        if self.engine == "vllm" and self.load_in:
            raise InputError(f"engine vllm takes the full weights and load_in {self.load_in} packs them: leave one out")
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
        if self.barrier_rows == "replay" and self.reg != "nll" and mixed == self.replay == 0:
            raise InputError("barrier_rows replay: no row is the original model's own; give --replay, such as .2")
        if self.texts != "steered" and self.targets == "tokens":
            raise InputError(
                f"texts {self.texts} with targets tokens teaches the student what it says already: --targets teacher"
            )
        if not 0 <= self.teacher_reach < float("inf"):
            raise InputError(f"teacher_reach {self.teacher_reach}: give nats above 0, or 0 for no limit")
        if not 0 <= self.context_dose < float("inf"):
            raise InputError(f"context_dose {self.context_dose}: give a factor of at least 0, such as 2")
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
        return None if self.eval_vignettes is None else read_rows(self.eval_vignettes, Vignette)

    def text_sampling(self) -> Sampling:
        """How training texts, and those that the filter is calibrated on, are sampled; None: the model's own way."""
        return Sampling(self.text_temperature, self.text_top_p, min_p=self.text_min_p)

    @checked
    def heal_config(self, seed: int) -> HealConfig:
        """The heal's own options with a seed of their own."""
        return HealConfig(**{f.name: getattr(self, f.name) for f in fields(HealConfig)} | {"seed": seed})

    @checked
    def for_model(self, name: str) -> RunConfig:
        """The same for a model in memory: options that follow the model and stand at a default follow this one's.

        Raises InputError when another model is named already.
        """
        if self.model not in (None, name):
            raise InputError(
                f"the configuration names the model {self.model!r}, the one given is {name!r}: leave one out"
            )
        if self.model == name:
            return self
        old = defaults(self.model_name, self.targets)
        return replace(self, model=name, **{option: None for option in old if getattr(self, option) == old[option]})

    def resolved(self, trait: Trait | None = None) -> RunConfig:
        """As it is run: what was left open as far as the trait has texts for it, and with --fast-dev-run small sizes.

        `trait` is one in memory, instead of the file that is named. Eight replies decide nothing, so inconclusive
        rounds are kept in a fast run: the second round starts on a baked one.
        """
        open_shares = {name: value for name, value in self._mixed_in(trait).items() if getattr(self, name) is None}
        if open_shares:
            return replace(self, **open_shares).resolved()
        if not self.fast_dev_run:
            return self
        most = {"n_rounds": 2, "n_min": 12, "walk_batch": 16, "epochs": 2, "max_new_tokens": 16}
        cut_down = {name: min(getattr(self, name), size) for name, size in most.items()}
        return replace(self, **cut_down, eval_items=8, eval_replies=8, on_inconclusive="keep")

    def _mixed_in(self, trait: Trait | None) -> dict[str, float]:
        """Shares of the original model's own rows by default: none of a kind that the trait has no texts for."""
        if self.replay is not None and self.replay_anchors is not None:
            return {}
        trait = trait or Trait.load(self.trait or default_trait(self.model_name))
        usual = mixed_in(self.model_name, self.targets)
        there = {"replay": trait.replay_prompts, "replay_anchors": self.anchors or trait.anchors}
        return {name: share if there[name] else 0.0 for name, share in usual.items()}

    def to_dict(self) -> dict:
        """For `config.json`."""
        return asdict(self)


RunConfig.__doc__ = f"{RunConfig.__doc__}\n{explained(RunConfig)}\n"  # what it inherits is in no help page
