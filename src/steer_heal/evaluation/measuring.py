"""Measures a model state: forced choice, free text, diversity, off-target categories, anchors; compares two of them.

Knows nothing of training and rounds. Base, steered, healed and prompted model are measured by the same function.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from steer_heal.arguments import checked
from steer_heal.errors import InputError
from steer_heal.evaluation.anchors.tasks import answer
from steer_heal.evaluation.choices import FLOOR, score_items
from steer_heal.evaluation.metrics import AnchorRow, Metrics, ReplyRow
from steer_heal.evaluation.text import loops, token_entropy
from steer_heal.evaluation.thinking import CLOSING, Thinking
from steer_heal.evaluation.vignettes import score_vignettes
from steer_heal.ledger.units import FORGET, Keep
from steer_heal.model import LM, GivenLM, as_lm
from steer_heal.steering import SteeringVector
from steer_heal.texts.completion import Completion
from steer_heal.texts.engines import TRANSFORMERS, Engine
from steer_heal.texts.generation import OnBatch, generate
from steer_heal.trait import Item, Judgement, Trait, Vignette

Scorer = Callable[[list[Completion]], Sequence[float]]
"""Completions -> nll of each in nats per token, under a model of the caller's choice (the original one).

It is asked twice: first for the replies as they are, then for the same ones behind another prompt.
"""
RULED_OUT = -1e4
"""Logit of a token that cannot come; finite in every dtype, also after a scale or soft cap."""


@checked
def evaluate(
    lm: GivenLM,
    trait: Trait,
    *,
    system: str | None = None,
    vector: SteeringVector | None = None,
    dose: float = 0.0,
    n_items: int | None = None,
    n_free: int | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    scorer: Scorer | None = None,
    batch_tokens: int | None = None,
    vignettes: Sequence[Vignette] | None = None,
    think_tokens: int = 0,
    think_closing: str = CLOSING,
    keep: Keep = FORGET,
    on_batch: OnBatch | None = None,
    engine: Engine = TRANSFORMERS,
) -> Metrics:
    """Measure one model state on a trait's items, held-out prompts, off-target items, vignettes and anchors.

    A broken model (NaN, infinity) gets figures, bad ones: no answer mass, empty replies, coherence 0.

    Args:
        system: system prompt of every question; None is `trait.neutral`. `trait.pos` is the prompted baseline.
        vector, dose: steering applied throughout, in multiples of the vector; dose 0 is the model as it is.
        n_items: measure a sample of at most so many items, stratified by category (the same for off-target items and
            for vignettes).
        n_free: number of sampled replies, cycling through `trait.eval_prompts`; None is one per prompt, 0 none.
        max_new_tokens: length at which a reply is cut, in tokens.
        seed: of the item sample and of the sampling; the same seed measures the same items.
        scorer: nll of the replies, in nats per token; without it `nll` and `nll_other` stay None.
        vignettes: instead of the trait's own.
        think_tokens: longest thinking before the answer of every forced choice, in tokens; 0 is none.
        think_closing: text with which the model closes its thinking.
        keep: where finished batches of replies are committed and looked up.
        on_batch: called with the free-text replies of each batch and the progress, see `generate_requests`.
        engine: what samples the replies, see `generate_requests`; choices are scored by the model itself.

    Raises:
        InputError: a dose without a vector, an impossible size, a choice unknown to the tokenizer.
    """
    lm = as_lm(lm)
    if dose and vector is None:
        raise InputError(f"evaluation at dose {dose:g} needs a steering vector")
    least = {"n_items": 1, "n_free": 0, "max_new_tokens": 1, "think_tokens": 0}
    for (name, low), value in zip(least.items(), (n_items, n_free, max_new_tokens, think_tokens), strict=True):
        if value is not None and value < low:
            raise InputError(f"{name} is {value}: it must be at least {low}")
    system = trait.neutral if system is None else system
    items, off_target = stratified(trait.items, n_items, seed), stratified(trait.off_target, n_items, seed)
    scenes = stratified(trait.vignettes if vignettes is None else vignettes, n_items, seed)
    prompts = free_prompts(trait.eval_prompts, n_free, seed)
    thinking = Thinking(think_tokens, think_closing) if think_tokens else None
    steering = vector.applied(lm.model, dose) if dose else contextlib.nullcontext()
    with steering, ending_broken_replies(lm) if thinking else contextlib.nullcontext():
        rows = score_items(lm, trait, (*items, *off_target), system, batch_tokens, thinking)
        unseen = [
            row
            for asked, some in in_held_out_formats(trait, items, seed)
            for row in score_items(lm, asked, some, system, batch_tokens, thinking)
        ]
        seen = score_vignettes(lm, trait, scenes, system, batch_tokens, thinking) if scenes else ()
    steered = {"vector": vector if dose else None, "doses": (dose,)}
    asked = {"system": system or None, "max_new_tokens": max_new_tokens, "engine": engine, **steered}
    sampled = {"seed": seed, "keep": keep.part("replies"), "on_batch": on_batch}
    with ending_broken_replies(lm):
        completions = generate(lm, prompts, **asked, **sampled) if prompts else []
        said = answer(lm, trait.anchors, **asked, keep=keep.part("anchors")) if trait.anchors else []
    return Metrics(
        trait=trait.name,
        system=system,
        dose=float(dose),
        items_key=_items_key(trait, items, off_target, scenes, prompts, max_new_tokens, seed, thinking),
        items=rows[: len(items)],
        off_target=rows[len(items) :],
        replies=judge(trait, completions, scorer),
        anchors=tuple(AnchorRow(a.id, r.text, a.passes(r.text)) for a, r in zip(trait.anchors, said, strict=True)),
        token_entropy=token_entropy(completion.token_ids for completion in completions),
        vignettes=seen,
        vignette_up=trait.vignette_up if scenes else (),
        vignette_down=trait.vignette_down if scenes else (),
        held_out=tuple(unseen),
    )


@contextlib.contextmanager
def ending_broken_replies(lm: LM) -> Iterator[None]:
    """While open, a position with a NaN or infinite logit predicts the end of the reply and nothing else.

    Sampling from NaN is an error on a CPU and takes the whole process's accelerator down; a student that training has
    broken must be measured and judged `collapsed`, not crash the loop. Its replies are empty, and that is incoherent.
    """
    end = min(lm.eos_ids, default=lm.pad_id)

    def end_reply(
        module: nn.Module, inputs: object, logits: Float[Tensor, "*position vocab"]
    ) -> Float[Tensor, "*position vocab"]:
        ended = torch.full_like(logits[..., :1, :], RULED_OUT)
        ended[..., end] = 0.0
        return torch.where(logits.isfinite().all(-1, keepdim=True), logits, ended)

    hook = lm.base.get_output_embeddings().register_forward_hook(end_reply)
    try:
        yield
    finally:
        hook.remove()


def judge(trait: Trait, completions: Sequence[Completion], scorer: Scorer | None = None) -> tuple[ReplyRow, ...]:
    """One row per reply: loop, length, the checker's judgement, nll under the scorer behind its own and another prompt.

    A reply without a word is unsound whatever a checker would say of it: it is what a broken model leaves.
    """
    nlls = others = [None] * len(completions)
    if scorer is not None and completions:
        nlls = _finite(scorer(list(completions)))
        if moved := behind_others(completions):
            others = _finite(scorer(moved))
    rows = []
    for completion, nll, nll_other in zip(completions, nlls, others, strict=True):
        found = (
            trait.judge(completion.prompt, completion.text, completion.finished)
            if completion.text.strip()
            else (Judgement(0.0, None, False) if trait.check else None)
        )
        rows.append(
            ReplyRow(
                prompt=completion.prompt,
                text=completion.text,
                words=len(completion.text.split()),
                finished=completion.finished,
                loop=loops(completion.text, completion.token_ids),
                trait=found and found.trait,
                sentence_ok=found and found.sentence_ok,
                reply_ok=found and found.reply_ok,
                nll=nll,
                nll_other=nll_other,
            )
        )
    return tuple(rows)


def _finite(nlls: Sequence[float]) -> list[float]:
    return [float(np.nan_to_num(nll, nan=-FLOOR, posinf=-FLOOR)) for nll in nlls]


def behind_others(completions: Sequence[Completion]) -> list[Completion]:
    """The same replies, each behind another's prompt; empty where all prompts are equal.

    The prompts move on by half their number, the same for every model state: neighbours in a trait's file are often
    alike. Prompts of equal text move together.
    """
    asked = {completion.prompt: completion.prompt_ids for completion in completions}
    prompts = list(asked)
    if len(prompts) < 2:
        return []
    half = len(prompts) // 2
    other = dict(zip(prompts, [*prompts[half:], *prompts[:half]], strict=True))
    return [replace(c, prompt=other[c.prompt], prompt_ids=asked[other[c.prompt]]) for c in completions]


Stratum = TypeVar("Stratum", Item, Vignette)


def stratified(items: Sequence[Stratum], n: int | None, seed: int) -> tuple[Stratum, ...]:
    """At most n items, categories in proportion (largest remainders), drawn from the seed, in their own order.

    Vignettes are drawn by foundation; those of one id (its conditions) count one by one.
    """
    if n is None or n >= len(items):
        return tuple(items)
    groups: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item.foundation if isinstance(item, Vignette) else item.category, []).append(i)
    exact = {name: n * len(group) / len(items) for name, group in groups.items()}
    take = {name: int(share) for name, share in exact.items()}
    for name in sorted(groups, key=lambda name: take[name] - exact[name])[: n - sum(take.values())]:
        take[name] += 1
    rng = np.random.default_rng(seed)
    picked = [i for name, group in groups.items() for i in rng.permutation(group)[: take[name]]]
    return tuple(items[i] for i in sorted(picked))


HELD_OUT_SHARE = 4
"""One in so many items is asked in the held-out formats too: each of them costs as much as the trait's own."""


def in_held_out_formats(trait: Trait, items: Sequence[Item], seed: int) -> list[tuple[Trait, tuple[Item, ...]]]:
    """Per held-out choice template, the trait as it asks in it, and the same sample of the items; the template is
    their category."""
    some = stratified(items, -(-len(items) // HELD_OUT_SHARE), seed)
    return [
        (replace(trait, choice_template=one), tuple(replace(item, category=one) for item in some))
        for one in trait.held_out_choice_templates
    ]


def free_prompts(prompts: Sequence[str], n: int | None, seed: int) -> list[str]:
    """n prompts: a seeded sample when there are more, in turn again and again when there are fewer."""
    if n is None:
        return list(prompts)
    if n < len(prompts):
        return [prompts[i] for i in sorted(np.random.default_rng(seed).permutation(len(prompts))[:n])]
    return [prompts[i % len(prompts)] for i in range(n)]


def _items_key(
    trait: Trait, items, off_target, scenes, prompts, max_new_tokens: int, seed: int, thinking: Thinking | None
) -> str:
    """Hash of everything that must be equal for two evaluations to be comparable."""
    asked = [astuple(item) for item in (*items, *off_target)]
    anchors = [(a.id, a.prompt, a.answer, a.check) for a in trait.anchors]
    seen = [[astuple(one) for one in scenes], trait.vignette_up, trait.vignette_down, trait.vignette_agreement]
    sizes = [max_new_tokens, seed, *seen, thinking and astuple(thinking)]
    content = [trait.name, trait.choice_template, trait.checker, asked, prompts, anchors, *sizes]
    content += trait.held_out_choice_templates
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
