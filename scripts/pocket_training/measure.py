"""Measures a `pocket` model with plain transformers: coherence, stance, forced choice, anchors, and a dose sweep.

Stands apart from the library's own evaluation and steering on purpose, so that the data card does not depend on them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steer_heal.pocket.checker import Check

CHOICE_TEMPLATE = "{prompt} answer with one word: {choices}."
Checker = Callable[[str, str, bool], Check]


@dataclass(frozen=True)
class Sampling:
    """Default sampling of the model, written into its generation_config.json."""

    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 96

    def generation_config(self, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
        """The same as a transformers generation config."""
        return GenerationConfig(
            do_sample=True,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0,
            max_new_tokens=self.max_new_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )


@dataclass(frozen=True)
class Pocket:
    """A model with its tokenizer."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast

    def encode(self, prompts: Sequence[str], system: str | None) -> dict[str, Tensor]:
        """Left-padded chats that end with the assistant tag."""
        opening = [{"role": "system", "content": system}] if system else []
        texts = [
            self.tokenizer.apply_chat_template(
                [*opening, {"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
        batch = self.tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


@dataclass(frozen=True)
class Reply:
    """One generated reply: its token ids (with the end token, if it ended), its text, and whether it ended."""

    ids: tuple[int, ...]
    text: str
    finished: bool


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and the number of values."""

    mean: float
    se: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Mean and standard error of at least one value."""
        return cls(fmean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.se:.3f}"


# -------------------------------------------------------------------------------------------------------- generation
@torch.inference_mode()
def replies(pocket: Pocket, prompts: Sequence[str], system: str | None, seed: int, greedy: bool = False) -> list[Reply]:
    """One reply per prompt under the model's own generation config, or greedily."""
    torch.manual_seed(seed)
    end = pocket.tokenizer.eos_token_id
    found: list[Reply] = []
    for start in range(0, len(prompts), 96):
        batch = pocket.encode(prompts[start : start + 96], system)
        settings = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None} if greedy else {}
        output = pocket.model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
        for row in output.tolist():
            finished = end in row
            ids = row[: row.index(end) + 1] if finished else row
            found.append(Reply(tuple(ids), pocket.tokenizer.decode(ids, skip_special_tokens=True), finished))
    return found


@dataclass(frozen=True)
class FreeText:
    """How a set of replies came out; trait is over the replies that show a stance at all."""

    sentence_ok: Estimate
    reply_ok: Estimate
    trait: Estimate | None
    stance_shown: float
    words: float
    finished: float
    by_stance: dict[float, Estimate]
    """sentence_ok of the replies of each stance."""


def free_text(prompts: Sequence[str], texts: Sequence[Reply], checker: Checker) -> FreeText:
    """Judge replies with a checker."""
    checks = [checker(prompt, reply.text, reply.finished) for prompt, reply in zip(prompts, texts, strict=True)]
    stances = [check.trait for check in checks if check.trait is not None]
    return FreeText(
        sentence_ok=Estimate.of([check.sentence_ok for check in checks]),
        reply_ok=Estimate.of([float(check.reply_ok) for check in checks]),
        trait=Estimate.of(stances) if stances else None,
        stance_shown=len(stances) / len(checks),
        words=fmean(len(reply.text.split()) for reply in texts),
        finished=fmean(reply.finished for reply in texts),
        by_stance={
            side: Estimate.of(values)
            for side in (0.0, 1.0)
            if (values := [check.sentence_ok for check in checks if check.trait == side])
        },
    )


@dataclass(frozen=True)
class Choice:
    """Forced choice over items, each asked in both orders: probability and log-odds of the trait's word."""

    rate: Estimate
    log_odds: Estimate
    allowed_mass: float


@torch.inference_mode()
def forced_choice(pocket: Pocket, items: Sequence[dict[str, Any]], system: str | None) -> Choice:
    """Log-odds of the trait's word against the other at the first reply token, averaged over both orders."""
    asks, traits, others = [], [], []
    for item in items:
        for choices in (item["choices"], item["choices"][::-1]):
            asks.append(CHOICE_TEMPLATE.format(prompt=item["prompt"], choices=" or ".join(choices)))
            traits.append(pocket.tokenizer.convert_tokens_to_ids(item["trait"]))
            others.append(pocket.tokenizer.convert_tokens_to_ids(next(c for c in choices if c != item["trait"])))
    logp = _last_logits(pocket, asks, system).log_softmax(-1)
    rows = torch.arange(len(asks))
    trait, other = logp[rows, traits], logp[rows, others]
    odds = (trait - other).view(-1, 2).mean(1)
    rate = torch.sigmoid(trait - other).view(-1, 2).mean(1)
    return Choice(Estimate.of(rate.tolist()), Estimate.of(odds.tolist()), (trait.exp() + other.exp()).mean().item())


@torch.inference_mode()
def _last_logits(pocket: Pocket, prompts: Sequence[str], system: str | None) -> Float[Tensor, "prompt vocab"]:
    found = []
    for start in range(0, len(prompts), 96):
        batch = pocket.encode(prompts[start : start + 96], system)
        position_ids = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        found.append(pocket.model(**batch, position_ids=position_ids, use_cache=False).logits[:, -1].float())
    return torch.cat(found)


def anchors_right(pocket: Pocket, anchors: Sequence[dict[str, str]], system: str | None) -> list[bool]:
    """Which exact answers the greedy reply gives."""
    found = replies(pocket, [anchor["prompt"] for anchor in anchors], system, seed=0, greedy=True)
    return [reply.finished and reply.text == anchor["answer"] for reply, anchor in zip(found, anchors, strict=True)]


@torch.inference_mode()
def nll(pocket: Pocket, prompts: Sequence[str], texts: Sequence[Reply], system: str | None) -> Estimate:
    """Mean nats per reply token under the model, per reply."""
    found = []
    for prompt, reply in zip(prompts, texts, strict=True):
        head = pocket.encode([prompt], system)["input_ids"]
        tokens = torch.cat([head, torch.tensor([reply.ids])], dim=1)
        logp = pocket.model(input_ids=tokens, use_cache=False).logits[0, head.shape[1] - 1 : -1].float().log_softmax(-1)
        found.append(-logp.gather(1, torch.tensor(reply.ids)[:, None]).mean().item())
    return Estimate.of(found)


# ---------------------------------------------------------------------------------------------------------- steering
@contextmanager
def _hooked(model: LlamaForCausalLM, hooks: dict[int, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Pass each named block's output through a function while the context lasts."""

    def wrap(change: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            changed = change(hidden)
            if changed is None:
                return None
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    handles = [model.model.layers[index].register_forward_hook(wrap(change)) for index, change in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


Vector = dict[int, Float[Tensor, " width"]]


def mean_difference(
    pocket: Pocket, pos: str, neg: str, contexts: Sequence[str], blocks: Sequence[int]
) -> tuple[Vector, Vector]:
    """(vector, mean residual norm) per block: `pos` minus `neg` system prompt at the last prompt token, averaged."""
    means: dict[str, Vector] = {}
    norms: Vector = {}
    for system in (pos, neg):
        kept: dict[int, list[Tensor]] = {block: [] for block in blocks}

        def keep(hidden: Tensor, rows: list[Tensor]) -> None:
            rows.append(hidden[:, -1].float().clone())

        with _hooked(pocket.model, {block: partial(keep, rows=rows) for block, rows in kept.items()}):
            _last_logits(pocket, contexts, system)
        means[system] = {block: torch.cat(kept[block]).mean(0) for block in blocks}
        norms = {block: torch.cat(kept[block]).norm(dim=1).mean() for block in blocks}
    return {block: means[pos][block] - means[neg][block] for block in blocks}, norms


@contextmanager
def steered(pocket: Pocket, vector: Vector, dose: float) -> Iterator[None]:
    """Add dose * vector to the output of its blocks at all positions."""
    with _hooked(pocket.model, {block: lambda hidden, v=value: hidden + dose * v for block, value in vector.items()}):
        yield
