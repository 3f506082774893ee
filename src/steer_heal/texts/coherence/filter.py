"""`CoherenceFilter`: measures every completion, compares with limits, and names the gate that drops it.

Knows nothing of doses and rounds. Perplexity is taken under whatever weights the model has at the call; the caller
sees to it that they are the original ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from steer_heal.arguments import checked
from steer_heal.errors import InputError
from steer_heal.ledger.units import FORGET, Keep
from steer_heal.model import GivenLM, as_lm
from steer_heal.shown import brief
from steer_heal.texts.coherence.calibration import fit_limits
from steer_heal.texts.coherence.content import content_figures
from steer_heal.texts.coherence.order import order_figures
from steer_heal.texts.coherence.perplexity import perplexity_figures
from steer_heal.texts.coherence.repetition import repetition_figures
from steer_heal.texts.coherence.report import FilterReport, make_report
from steer_heal.texts.coherence.rules import GATES, REPETITION_GATES, RULES, Rule, breaches, default_limits
from steer_heal.texts.coherence.soup import soup_figures
from steer_heal.texts.completion import Completion
from steer_heal.texts.engines import TRANSFORMERS, Engine
from steer_heal.texts.generation import OnBatch, generate
from steer_heal.texts.sampling import Sampling


def text_figures(text: str) -> dict[str, float]:
    """All figures that need the text alone, by name."""
    return content_figures(text) | repetition_figures(text) | soup_figures(text) | order_figures(text)


@dataclass(frozen=True)
class CoherenceFilter:
    """The coherence filter: call it with a model and completions to get judged copies in the same order.

    Attributes:
        limits: limit by rule key (`nll.high`, `rep_word2.high`, ...); infinite means the rule is off. Without
            calibration the perplexity rules are off and the text rules stand at their fixed limits.
        gates: names of the active gates.
        calibration: record of the fit (completions, how many dropped, which fixed limits were widened).
    """

    limits: Mapping[str, float] = field(default_factory=default_limits)
    gates: frozenset[str] = frozenset(GATES)
    calibration: Mapping = field(default_factory=dict)

    __repr__ = brief

    def __post_init__(self) -> None:
        object.__setattr__(self, "gates", frozenset(self.gates))
        if unknown := sorted(self.gates - set(GATES)):
            raise InputError(f"unknown gate {unknown[0]!r}: use {', '.join(GATES)}")
        object.__setattr__(self, "limits", default_limits() | _checked(self.limits))

    # -- which gates ------------------------------------------------------------------------------------------------

    @checked
    def only(self, *gates: str) -> CoherenceFilter:
        """The same filter with these gates alone."""
        return replace(self, gates=frozenset(gates))

    @checked
    def without(self, *gates: str) -> CoherenceFilter:
        """The same filter with these gates off. Raises InputError for an unknown name."""
        self.only(*gates)
        return replace(self, gates=self.gates - frozenset(gates))

    def only_repetition(self) -> CoherenceFilter:
        """Coherence off, repetition kept: the open experiment in which the barrier has to do the healing."""
        return self.only(*REPETITION_GATES)

    # -- fitting ----------------------------------------------------------------------------------------------------

    @classmethod
    @checked
    def calibrate(
        cls,
        lm: GivenLM,
        prompts: Sequence[str],
        *,
        system: str | None = None,
        n: int = 128,
        seed: int = 0,
        false_drop: float = 0.05,
        max_new_tokens: int = 64,
        thresholds: Mapping[str, float] | None = None,
        sampling: Sampling | None = None,
        keep: Keep = FORGET,
        on_batch: OnBatch | None = None,
        engine: Engine = TRANSFORMERS,
    ) -> CoherenceFilter:
        """Sample n completions of the model as it is, unsteered, and fit all limits to them.

        Args:
            lm: the model; its present weights count as the original ones.
            prompts: user turns, used in turn.
            system: system prompt of the generations that will be judged.
            n: completions to sample; 5 % of fewer than 20 is none, so the limits then lie just beyond all of them.
            seed: seed of the sampling.
            false_drop: share (0..1) of the model's own completions that all gates together may drop.
            max_new_tokens: longest completion, in tokens; use that of the generations that will be judged.
            thresholds: limits by rule key that are not to be fitted.
            sampling: as the completions that will be judged are sampled; None is the model's own way.
            keep: where finished batches are committed and looked up.
            on_batch: called after each batch of them with its completions and the progress.
            engine: what samples, see `generate_requests`.

        `calibration["tokens"]` holds the lengths of the completions, in tokens. Raises InputError for no prompts, an
        impossible n or budget, and too few usable completions.
        """
        lm = as_lm(lm)
        if not prompts:
            raise InputError("calibration has no prompts: give at least one")
        if n < 1:
            raise InputError(f"n {n}: calibration needs completions, 128 is a good number")
        prompts = list(prompts)
        if n < len(prompts):  # spread over the list, whose parts may differ in kind
            prompts = [prompts[i * len(prompts) // n] for i in range(n)]
        samples = math.ceil(n / len(prompts))
        own = generate(
            lm,
            prompts,
            samples=samples,
            system=system,
            max_new_tokens=max_new_tokens,
            seed=seed,
            sampling=sampling or Sampling(),
            keep=keep,
            on_batch=on_batch,
            engine=engine,
        )
        fitted = cls.fit(cls().score(lm, own), false_drop=false_drop, thresholds=thresholds)
        tokens = [len(c.token_ids) for c in own]
        return replace(fitted, calibration={**fitted.calibration, "model": lm.name, "seed": seed, "tokens": tokens})

    @classmethod
    @checked
    def fit(
        cls, scored: Sequence[Completion], *, false_drop: float = 0.05, thresholds: Mapping[str, float] | None = None
    ) -> CoherenceFilter:
        """Limits from completions that are already scored and known to be good; see `calibrate`."""
        given = _checked(thresholds or {})
        start = default_limits() | {"unfinished.high": 0.5} | given
        limits, record = fit_limits([c.scores for c in scored], start, false_drop, frozenset(given))
        return cls(limits, calibration=record)

    # -- judging ----------------------------------------------------------------------------------------------------

    @checked
    def score(self, lm: GivenLM | None, completions: Sequence[Completion]) -> list[Completion]:
        """Copies with all figures measured, not judged; lm=None leaves perplexity out."""
        surprise = perplexity_figures(as_lm(lm), completions) if lm is not None else [{} for _ in completions]
        out = []
        for completion, nll in zip(completions, surprise, strict=True):
            own = {"unfinished": float(not completion.finished), "tokens": float(len(completion.token_ids))}
            out.append(replace(completion, scores={**text_figures(completion.text), **nll, **own}))
        return out

    @checked
    def judge(self, scored: Sequence[Completion]) -> list[Completion]:
        """Copies with the verdict of this filter on figures that are already there."""
        out = []
        for completion in scored:
            broken = breaches(completion.scores, self.limits, self.gates)
            out.append(replace(completion, dropped_by=broken[0].gate if broken else None, judged=True))
        return out

    def __call__(self, lm: GivenLM, completions: Sequence[Completion]) -> list[Completion]:
        """Judged copies in the same order: `scores`, `dropped_by` (None: kept), `judged`.

        A completion's figures do not depend on which others are judged with it. Perplexity is measured if its gate
        is active.
        """
        return self.judge(self.score(lm if "perplexity" in self.gates else None, completions))

    @checked
    def judge_text(self, text: str) -> tuple[Rule, ...]:
        """The rules that a bare text breaks, most telling first; empty if it passes. No model, no length."""
        return tuple(breaches(text_figures(text), self.limits, self.gates))

    @checked
    def reason(self, completion: Completion) -> str:
        """Why a judged completion was dropped, in words; empty if it was kept."""
        broken = breaches(completion.scores, self.limits, self.gates)
        return "; ".join(
            f"{rule.words}: {completion.scores[rule.figure]:.3g}, limit {self.limits[rule.key]:.3g}" for rule in broken
        )

    @checked
    def report(self, judged: Sequence[Completion]) -> FilterReport:
        """Counts per gate, kept share per dose, and the completions nearest to every limit on both sides."""
        return make_report(judged, self.limits, self.gates)

    # -- saving -----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict:
        """Plain JSON: infinite limits are None."""
        limits = {key: value if math.isfinite(value) else None for key, value in self.limits.items()}
        return {"limits": limits, "gates": sorted(self.gates), "calibration": dict(self.calibration)}

    @classmethod
    def from_dict(cls, data: Mapping) -> CoherenceFilter:
        """The inverse of `to_dict`. Raises InputError for data of another form."""
        try:
            limits, gates = dict(data["limits"]), frozenset(data["gates"])
            calibration = dict(data.get("calibration", {}))
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise InputError(f"not a saved coherence filter ({problem!r}): write it with to_dict") from problem
        return cls({k: _off(k) if v is None else v for k, v in limits.items()}, gates, calibration)


def _off(key: str) -> float:
    return -math.inf if key.endswith(".low") else math.inf


def _checked(limits: Mapping[str, float]) -> dict[str, float]:
    known = {rule.key for rule in RULES}
    for key, value in limits.items():
        if key not in known:
            raise InputError(f"unknown limit {key!r}: use {', '.join(sorted(known))}")
        if not isinstance(value, (int, float)) or math.isnan(value):
            raise InputError(f"limit {key} = {value!r}: give a number")
    return {key: float(value) for key, value in limits.items()}
