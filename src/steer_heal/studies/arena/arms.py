"""The arms: what a user would pick instead, each with its recipe in a few lines, its source, and a strength to scan.

Knows nothing of measuring. All arms have the same replies to sample and optimiser steps to take (see `Sizes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace

from steer_heal.config import RunConfig
from steer_heal.healing import HealConfig, ReferenceStates, heal, reference_states
from steer_heal.healing.adapter import Adapter
from steer_heal.loop.rounds import run_rounds
from steer_heal.studies.arena.dials import Dial
from steer_heal.studies.arena.ground import Ground
from steer_heal.studies.arena.methods.learned_vector import learn_vector
from steer_heal.studies.arena.methods.preference import Pair, prefer
from steer_heal.texts.completion import Completion

SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Strengths: a factor on the whole change of weights, or the dose of a vector; an arm goes up until its text breaks."""
RATES = (4e-4, 1.25e-3, 4e-3)
"""Learning rates of which an arm has its best; the middle one is the product's."""
LOWER = (4e-5, 1.3e-4, 4e-4)
"""Those of preferences, which break the text at the others."""


@dataclass(frozen=True)
class Arm:
    """One method.

    Attributes:
        make: trains it on a ground at a learning rate, and gives its dial.
        source: the method's own. note: where its recipe needs other numbers than all.
        rate: its best learning rate on seeds 0 to 2; None where there is none to choose.
        rates: those that were tried.
    """

    name: str
    make: Callable[[Ground, float], Dial]
    source: str
    note: str = ""
    rate: float | None = None
    rates: tuple[float, ...] = RATES
    strengths: tuple[float, ...] = SCALES

    @property
    def trained(self) -> bool:
        """Whether there is a learning rate to choose."""
        return self.rate is not None


# ------------------------------------------------------------------------------------------------ without training
def prompted(ground: Ground, rate: float) -> Dial:
    """The persona as system prompt: an upper row, not a competitor in weights."""
    return Dial(prompted=True)


def exact_bake(ground: Ground, rate: float) -> Dial:
    """The steered model in plain weights: the vector in the biases."""
    return Dial(vector=ground.vector)


# -------------------------------------------------------------------------------------------- replies under a persona
def persona_texts(ground: Ground, share: float = 1.0) -> list[Completion]:
    """Replies sampled under the persona, which is then taken away."""
    prompts = ground.prompts[: round(share * len(ground.prompts))]
    return ground.sampled(f"persona-{len(prompts)}", prompts, system=ground.material.trait.pos)


def opposite_texts(ground: Ground, share: float) -> list[Completion]:
    """Replies to the same prompts under the opposite persona."""
    prompts = ground.prompts[: round(share * len(ground.prompts))]
    return ground.sampled(f"opposite-{len(prompts)}", prompts, system=ground.material.trait.neg)


def imitation(ground: Ground, rate: float) -> Dial:
    """Fine-tuning on persona replies."""
    return _dial(ground, [_trained(ground, persona_texts(ground), _plain(ground, rate, "imitation"))])


def contrastive(ground: Ground, rate: float) -> Dial:
    """k times the difference of two fine-tunings, on replies under the persona and under its opposite."""
    config = _plain(ground, rate, "contrastive")  # one seed: both start from the same adapter
    towards = _trained(ground, persona_texts(ground, 0.5), config)
    away = _trained(ground, opposite_texts(ground, 0.5), config)
    return _dial(ground, [towards, away], (1.0, -1.0))


def distil_off_policy(ground: Ground, rate: float) -> Dial:
    """Forward KL from the persona-prompted original on its own replies."""
    texts = persona_texts(ground)
    config = replace(_plain(ground, rate, "off-policy"), targets="teacher", target_divergence="forward")
    teacher = ground.timed(lambda: ground.persona(texts))
    return _dial(ground, [_trained(ground, texts, config, teacher)])


# ------------------------------------------------------------------------------------------------ own samples, rounds
def distil_on_policy(ground: Ground, rate: float) -> Dial:
    """Reverse KL on the student's own samples, new ones each round, to the persona-prompted original."""
    return _on_policy(ground, rate, "on-policy", ground.persona)


def steered_on_policy(ground: Ground, rate: float) -> Dial:
    """Reverse KL on the student's own samples, new ones each round, to the steered original; nothing holds it back."""

    def steered(rows: Sequence[Completion]) -> ReferenceStates:
        return reference_states(ground.lm, rows, around=lambda _: ground.vector.applied(ground.lm.model, 1.0))

    return _on_policy(ground, rate, "steered", steered)


def _on_policy(
    ground: Ground, rate: float, name: str, teach: Callable[[Sequence[Completion]], ReferenceStates]
) -> Dial:
    """Rounds of own samples; the frozen teacher is the original model."""
    stack, n, adapters = ground.material.stack, ground.sizes.texts, []
    config = replace(_plain(ground, rate, name), targets="teacher", target_divergence="reverse")
    try:
        for number in range(ground.sizes.rounds):
            prompts = ground.prompts[number * n : (number + 1) * n]
            texts = ground.sampled(f"{name}-{rate:g}-{number}", prompts)

            def original(rows: Sequence[Completion] = texts) -> ReferenceStates:
                with stack.unfolded():
                    return teach(rows)

            adapters.append(_trained(ground, texts, config, ground.timed(original), number))
            stack.push(adapters[-1])
    finally:
        while len(stack):
            stack.pop()
    return _dial(ground, adapters)


# --------------------------------------------------------------------------------------------------------- preferences
def prefer_persona(ground: Ground, rate: float) -> Dial:
    """DPO: the persona's reply before its opposite's."""
    return _preferred(ground, rate, persona_texts(ground, 0.5), opposite_texts(ground, 0.5))


def prefer_steered(ground: Ground, rate: float) -> Dial:
    """DPO: a reply sampled under the vector before one sampled against it, at the dose of the product's own texts."""
    prompts, dose = ground.prompts[: len(ground.prompts) // 2], max(ground.config.doses)
    sides = [ground.sampled(f"steered{d:+g}", prompts, vector=ground.vector, dose=d) for d in (dose, -dose)]
    return _preferred(ground, rate, *sides)


def _preferred(ground: Ground, rate: float, chosen: Sequence[Completion], rejected: Sequence[Completion]) -> Dial:
    pairs = [Pair(*both) for both in zip(chosen, rejected, strict=True)]
    # Pairs are half as many as rows, and none is held out.
    config = replace(_plain(ground, rate, "preference"), epochs=round(ground.sizes.epochs * 7 / 4))
    adapter, losses = ground.timed(lambda: prefer(ground.lm, pairs, config))
    ground.spent.steps += len(losses)
    return _dial(ground, [adapter])


# ------------------------------------------------------------------------------------------------------ representation
def learned(ground: Ground, rate: float) -> Dial:
    """A direction learned from persona replies instead of measured."""
    texts = persona_texts(ground)
    config = replace(_plain(ground, rate, "learned"), epochs=max(1, round(ground.sizes.epochs * 7 / 8)))
    vector, steps = ground.timed(lambda: learn_vector(ground.lm, texts, ground.vector, config))
    ground.spent.steps += steps
    return Dial(vector=vector, spent=ground.spent)


# ---------------------------------------------------------------------------------------------------------- the product
def product(targets: str) -> Callable[[Ground, float], Dial]:
    """Rounds of the main job; those that its gate let stand, up to the best one."""

    def make(ground: Ground, rate: float) -> Dial:
        n, same = ground.sizes.texts, {name: getattr(ground.config, name) for name in ("model", "trait", "seed")}
        # A walk that filters samples half as many texts at a time, until as many are kept.
        walk = {"n_min": n, "walk_batch": n if targets == "teacher" else n // 2}
        place = ground.folder / f"run-{targets}"
        config = RunConfig(targets=targets, n_rounds=ground.sizes.rounds, out=str(place), threads=1, **walk, **same)
        place.mkdir(parents=True, exist_ok=True)
        with open(place / "log.txt", "w", encoding="utf-8") as log, redirect_stdout(log):
            result = ground.timed(lambda: run_rounds(config))
        rows = [c for done in result.rounds for c in done.rows]
        tokens, steps = sum(len(c.token_ids) for c in rows), sum(len(done.training.steps) for done in result.rounds)
        adapters = tuple((adapter, 1.0) for adapter in result.run.stack.adapters)
        return Dial(adapters, spent=replace(ground.spent, tokens=tokens, steps=steps))

    return make


def _plain(ground: Ground, rate: float, name: str) -> HealConfig:
    """Training without a barrier and without the product's own targets; rank, blocks and batches are the product's."""
    config = HealConfig(rank=ground.config.rank, alpha=ground.config.alpha, lora_layers=ground.config.lora_layers)
    options = {"batch_size": ground.config.batch_size, "epochs": ground.sizes.epochs, "lr": rate}
    return replace(config, reg="nll", seed=ground.seed("heal", name) % 2**31, **options)


def _trained(
    ground: Ground, rows: Sequence[Completion], config: HealConfig, teacher: ReferenceStates | None = None, round=0
) -> Adapter:
    healed = ground.timed(lambda: heal(ground.lm, rows, config, teacher=teacher, round=round))
    ground.spent.steps += len(healed.steps)
    return healed.adapter


def _dial(ground: Ground, adapters: Sequence[Adapter], factors: Sequence[float] = ()) -> Dial:
    """What was trained, with the bill so far."""
    factors = factors or (1.0,) * len(adapters)
    return Dial(tuple(zip(adapters, factors, strict=True)), spent=replace(ground.spent))


PRODUCT, PROMPT = "steer_heal", "prompt"

ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(PROMPT, prompted, "persona as system prompt", strengths=(1.0,)),
        Arm("exact-bake", exact_bake, "the vector in the biases", "no training"),
        Arm("sft", imitation, "nll on persona replies", rate=1.25e-3),
        Arm("distil-off", distil_off_policy, "context distillation, forward KL (arXiv 2209.15189)", rate=1.25e-3),
        Arm("distil-on", distil_on_policy, "context distillation, on-policy (arXiv 2602.12275)", rate=4e-4),
        Arm("contrastive", contrastive, "contrastive weights (arXiv 2511.05408)", "two adapters", rate=4e-4),
        Arm("dpo", prefer_persona, "DPO, persona over opposite (arXiv 2305.18290)", "pairs, 7 epochs", 4e-4, LOWER),
        Arm("dpo-steered", prefer_steered, "DPO, steered over counter-steered", "pairs, 7 epochs", 4e-4, LOWER),
        Arm("reft-r1", learned, "ReFT-r1 (arXiv 2501.17148)", "trains 1 vector", rate=3e-2, rates=(3e-3, 1e-2, 3e-2)),
        Arm("steered-on", steered_on_policy, "steered self-distillation (arXiv 2606.02530)", rate=4e-4),
        Arm("tokens", product("tokens"), "steer_heal --targets tokens", "its own gate; tokens kept by its filter"),
        Arm(PRODUCT, product("teacher"), "steer_heal, the default", "a quarter more rows, of the original"),
    )
}
