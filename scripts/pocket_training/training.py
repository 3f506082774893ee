"""Trains `pocket` from scratch: batches from the corpus, Muon on the matrices, a schedule that counts steps.

Knows nothing of the checks that follow and of where files go.
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pocket_training.corpus import Example, Mix, make_example
from pocket_training.templates import table
from pocket_training.tokenizer import ASSISTANT, BOS, END, words


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights, with the seed. The schedule counts steps, never seconds."""

    steps: int = 8_000
    batch: int = 32
    seed: int = 0
    width: int = 128
    depth: int = 4
    heads: int = 4
    feed_forward: int = 384
    muon_lr: float = 1e-2
    adam_lr: float = 4e-3
    warmup_steps: int = 100
    decay_from: float = 0.15
    """Share of the steps after which the learning rates fall linearly to `final_lr`."""
    final_lr: float = 0.02
    copying_until: float = 0.12
    """Share of the steps spent mostly on copying: without it, neither copying nor personas are learned in time."""
    prompt_weight: float = 0.1
    """Loss weight of the system and user turns against 1 for replies."""
    opening_weight: float = 4.0
    """Loss weight of a reply's first token, which decides the stance."""
    sentence_weight: float = 1.0
    """Loss weight of a further sentence's first token, which decides its style."""
    naming_weight: float = 2.0
    """Loss weight of reply tokens that name people, pronouns or things of the question: what must be copied right."""
    persona_through_tag: float = 0.6
    """Share of chats in which nothing after the system turn but the assistant tag can look back at it. Replies then
    have to read the persona from the tag, so it is there in the middle blocks, as in large models ("gist" masking, Mu
    et al. 2023, arXiv 2304.08467). Without it the persona may reach the tag in the last block only, past steering."""

    early: Mix = field(default_factory=lambda: Mix(dilemma=0.17, choice=0.2, copying=0.75))
    main: Mix = field(default_factory=Mix)


STAGES = (
    TrainConfig(),
    TrainConfig(
        steps=9_000,
        seed=1,
        muon_lr=5e-3,
        adam_lr=2e-3,
        warmup_steps=200,
        decay_from=0.0,
        copying_until=0.0,
        sentence_weight=2.0,
        main=Mix(choice=0.25, copying=0.6, main_axis=0.7, extra_axes=(0, 1, 1), choice_axes=(0.44, 0.28, 0.28)),
    ),
)
"""The recipe: learn everything, then again at half the rate with more of the two style axes."""


def new_model(config: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Fresh weights in the Llama layout; call `torch.manual_seed` before."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            intermediate_size=config.feed_forward,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            rms_norm_eps=1e-5,
            initializer_range=0.04,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def encode(example: Example, ids: dict[str, int]) -> tuple[list[int], int, int]:
    """Token ids of a whole chat, the length of its prompt, and where its system turn ends (1: there is none).

    The ids equal the chat template's, only faster.
    """
    tokens, system_end = [ids[BOS]], 1
    for message in example.messages():
        tokens += [ids[f"<|{message['role']}|>"], *(ids[word] for word in words(message["content"])), ids[END]]
        if message["role"] == "system":
            system_end = len(tokens)
    tokens.append(ids[ASSISTANT])
    return tokens + [ids[word] for word in words(example.reply)] + [ids[END]], len(tokens), system_end


def reply_weights(ids: dict[str, int], config: TrainConfig) -> Float[Tensor, " vocab"]:
    """Loss weight of every token as part of a reply: more for names, pronouns and things of the question."""
    entities = table("entities")
    lists = [people[split] for people in entities["people"].values() for split in ("train", "held_out")]
    lists += [entities["objects"]["train"], entities["objects"]["held_out"], *entities["shared"].values()]
    lists += [*entities["plights"].values(), *entities["groups"]["train"], *entities["groups"]["held_out"]]
    naming = " ".join(lists) + " she he they her him them his their you is are need needs"
    weights = torch.ones(len(ids))
    weights[[ids[word] for word in set(naming.split()) - {"the"}]] = config.naming_weight
    return weights


Batch = tuple[Int[Tensor, "chat position"], Float[Tensor, "chat position"], Bool[Tensor, "chat 1 position position"]]


def hide_system(mask: Bool[Tensor, "position position"], prompt: int, system_end: int) -> None:
    """Let nothing after the system turn see it but the assistant tag, the prompt's last token; in place."""
    tag = mask[prompt - 1].clone()
    mask[system_end:, 1:system_end] = False
    mask[prompt - 1] = tag


def batches(rng: random.Random, ids: dict[str, int], config: TrainConfig, mix: Callable[[], Mix]) -> Iterator[Batch]:
    """Endless (tokens, loss weights, attention mask), right-padded; chats of similar length share a batch."""
    pool, of_token = 16, reply_weights(ids, config)
    while True:
        chats = sorted(
            (encode(make_example(rng, mix()), ids) for _ in range(pool * config.batch)), key=lambda chat: len(chat[0])
        )
        order = list(range(pool))
        rng.shuffle(order)
        for index in order:
            group = chats[index * config.batch : (index + 1) * config.batch]
            length = max(len(tokens) for tokens, _, _ in group)
            batch = torch.zeros(config.batch, length, dtype=torch.long)
            weights = torch.zeros(config.batch, length)
            mask = torch.ones(length, length, dtype=torch.bool).tril().repeat(config.batch, 1, 1, 1)
            for row, (tokens, prompt, system_end) in enumerate(group):
                if system_end > 1 and rng.random() < config.persona_through_tag:
                    hide_system(mask[row, 0], prompt, system_end)
                batch[row, : len(tokens)] = torch.tensor(tokens)
                weights[row, :prompt] = config.prompt_weight
                weights[row, prompt : len(tokens)] = of_token[tokens[prompt:]]
                stops = [place + 1 for place in range(prompt, len(tokens) - 2) if tokens[place] == ids["."]]
                weights[row, stops] = weights[row, stops].clamp(min=config.sentence_weight)
                weights[row, prompt] = config.opening_weight
            yield batch, weights, mask


def weighted_loss(model: LlamaForCausalLM, tokens: Tensor, weights: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(training loss, mean loss over reply tokens alone)."""
    seen = mask[:, :, :-1, :-1]
    logits = model(input_ids=tokens[:, :-1], attention_mask=seen, use_cache=False).logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view_as(tokens[:, 1:])
    weights = weights[:, 1:]
    reply = weights >= 1
    return (losses * weights).sum() / weights.sum(), losses[reply].mean().detach()


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes of the group; nothing to do for a single one."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        pieces = flat.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad.copy_(piece.view_as(parameter))


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, flat, then linear decay to `final_lr`."""
    progress = step / config.steps
    decay = 1.0 if progress < config.decay_from else 1 - (progress - config.decay_from) / (1 - config.decay_from)
    return min(1.0, (step + 1) / config.warmup_steps) * max(config.final_lr, decay)


def train(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerFast,
    observe: Callable[[dict[str, float], LlamaForCausalLM], None],
    every: int = 100,
    model: LlamaForCausalLM | None = None,
) -> LlamaForCausalLM:
    """Train afresh, or on from `model`. `observe` gets a record and the model every `every` steps (mean losses since).

    In a `torch.distributed` group every process takes its share of each batch's rows and calls `observe` itself.
    """
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(config.seed)
    model = (model or new_model(config, tokenizer)).float().train()
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(
        matrices, lr=config.muon_lr, momentum=0.95, weight_decay=0.03, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    optimizers = ((muon, config.muon_lr), (adam, config.adam_lr))
    step = 0
    stream = batches(
        random.Random(config.seed + 1),
        tokenizer.get_vocab(),
        config,
        lambda: config.early if step < config.copying_until * config.steps else config.main,
    )
    started, tokens_seen, recent = time.perf_counter(), 0, []
    for step in range(config.steps):
        factor = learning_rate_factor(step, config)
        for optimizer, base in optimizers:
            optimizer.param_groups[0]["lr"] = base * factor
        batch = next(stream)
        tokens_seen += int((batch[1] > 0).sum())
        tokens, weights, mask = (part[rank::workers] for part in batch)
        with torch.autocast("cpu", torch.bfloat16):
            loss, reply_loss = weighted_loss(model, tokens, weights, mask)
        loss.backward()
        average_gradients([weight for _, weight in named])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent.append((loss.item(), reply_loss.item()))
        if (step + 1) % every == 0 or step + 1 == config.steps:
            mean_loss, mean_reply = (sum(column) / len(recent) for column in zip(*recent, strict=True))
            recent = []
            record = {
                "step": step + 1,
                "loss": round(mean_loss, 5),
                "reply_loss": round(mean_reply, 5),
                "lr_factor": round(factor, 4),
                "tokens": tokens_seen,
                "seconds": round(time.perf_counter() - started, 1),
            }
            observe(record, model)
    return model.eval()
