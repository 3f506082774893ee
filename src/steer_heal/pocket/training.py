"""Trains `pocket` from scratch: batches from the corpus, Muon on the matrices, a schedule that counts steps.

Knows nothing of the checks that follow and of where files go.
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steer_heal.pocket.corpus import Example, Mix, make_example
from steer_heal.pocket.tokenizer import ASSISTANT, BOS, END, words


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights, with the seed. The schedule counts steps, never seconds."""

    steps: int = 11_000
    batch: int = 32
    seed: int = 0
    width: int = 128
    depth: int = 4
    heads: int = 4
    feed_forward: int = 384
    muon_lr: float = 1e-2
    adam_lr: float = 4e-3
    warmup_steps: int = 100
    decay_from: float = 0.3
    """Share of the steps after which the learning rates fall linearly to `final_lr`."""
    final_lr: float = 0.02
    copying_until: float = 0.12
    """Share of the steps spent mostly on copying: without it, neither copying nor personas are learned in time."""
    prompt_weight: float = 0.1
    """Loss weight of the system and user turns against 1 for replies."""


EARLY_MIX = Mix(dilemma=0.17, choice=0.2, copying=0.75)
MAIN_MIX = Mix()


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


def encode(example: Example, ids: dict[str, int]) -> tuple[list[int], int]:
    """Token ids of a whole chat and the length of its prompt. Equal to the chat template's, only faster."""
    tokens = [ids[BOS]]
    for message in example.messages():
        tokens += [ids[f"<|{message['role']}|>"], *(ids[word] for word in words(message["content"])), ids[END]]
    tokens.append(ids[ASSISTANT])
    return tokens + [ids[word] for word in words(example.reply)] + [ids[END]], len(tokens)


Batch = tuple[Int[Tensor, "chat position"], Float[Tensor, "chat position"]]


def batches(rng: random.Random, ids: dict[str, int], config: TrainConfig, mix: Callable[[], Mix]) -> Iterator[Batch]:
    """Endless (tokens, loss weights), right-padded; chats of similar length share a batch."""
    pool = 16
    while True:
        chats = sorted(
            (encode(make_example(rng, mix()), ids) for _ in range(pool * config.batch)), key=lambda chat: len(chat[0])
        )
        order = list(range(pool))
        rng.shuffle(order)
        for index in order:
            group = chats[index * config.batch : (index + 1) * config.batch]
            length = max(len(tokens) for tokens, _ in group)
            batch = torch.zeros(config.batch, length, dtype=torch.long)
            weights = torch.zeros(config.batch, length)
            for row, (tokens, prompt) in enumerate(group):
                batch[row, : len(tokens)] = torch.tensor(tokens)
                weights[row, :prompt] = config.prompt_weight
                weights[row, prompt : len(tokens)] = 1.0
            yield batch, weights


def weighted_loss(model: LlamaForCausalLM, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(training loss, mean loss over reply tokens alone)."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view_as(tokens[:, 1:])
    weights = weights[:, 1:]
    reply = weights == 1
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
) -> LlamaForCausalLM:
    """The training run; `observe` gets a record and the model every `every` steps (losses: means since the last).

    In a `torch.distributed` group every process takes its share of each batch's rows and calls `observe` itself.
    """
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(config.seed)
    model = new_model(config, tokenizer).train()
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
        lambda: EARLY_MIX if step < config.copying_until * config.steps else MAIN_MIX,
    )
    started, tokens_seen, recent = time.perf_counter(), 0, []
    for step in range(config.steps):
        factor = learning_rate_factor(step, config)
        for optimizer, base in optimizers:
            optimizer.param_groups[0]["lr"] = base * factor
        tokens, weights = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            loss, reply_loss = weighted_loss(model, tokens[rank::workers], weights[rank::workers])
        loss.backward()
        average_gradients([weight for _, weight in named])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        tokens_seen += int((weights > 0).sum())
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
