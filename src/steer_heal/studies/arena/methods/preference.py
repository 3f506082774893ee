"""Direct preference optimisation of a LoRA: the loss, and the loop that lowers it.

Knows nothing of where pairs come from. Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from steer_heal.healing import HealConfig
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.lora import injected, seeded
from steer_heal.healing.plan import lr_factor
from steer_heal.healing.references import completion_hidden
from steer_heal.model import LM, completion_logprobs
from steer_heal.texts.completion import Completion

BETA = 0.1
"""Weight of the implicit KL penalty, as in the paper."""


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt: the one to be preferred and the other."""

    chosen: Completion
    rejected: Completion


def preference_loss(
    chosen: Float[Tensor, " pair"],
    rejected: Float[Tensor, " pair"],
    reference_chosen: Float[Tensor, " pair"],
    reference_rejected: Float[Tensor, " pair"],
    beta: float = BETA,
) -> Float[Tensor, " pair"]:
    """-log sigmoid(beta * [(log p - log p_0)(chosen) - (log p - log p_0)(rejected)]), nats.

    Args: log-probabilities of whole replies (sums over tokens) under the student and the frozen reference.
    """
    return -logsigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))


def reply_logprobs(lm: LM, completions: Sequence[Completion]) -> Float[Tensor, " completion"]:
    """Log-probability of each whole reply given its prompt, nats, with gradients."""
    hidden, targets, lengths = completion_hidden(lm, completions)
    logp = lm.head(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return torch.stack([part.sum() for part in logp.split(lengths)])


def prefer(lm: LM, pairs: Sequence[Pair], config: HealConfig, beta: float = BETA) -> tuple[Adapter, list[float]]:
    """Train a LoRA to prefer; the model is afterwards as it was. Returns the adapter and each step's mean loss, nats.

    Rank, blocks, learning rate, epochs, batch size, clipping and seed are the heal's options.
    """
    known = []
    for side in ([p.chosen for p in pairs], [p.rejected for p in pairs]):
        rows = completion_logprobs(lm, [c.prompt_ids for c in side], [c.token_ids for c in side])
        known.append(torch.stack([row.sum() for row in rows]).to(lm.device))
    order, losses = seeded(config.seed, 0, "order"), []
    total = math.ceil(len(pairs) / config.batch_size) * config.epochs
    with injected(lm, config, config.seed) as lora, torch.enable_grad():
        optimiser = torch.optim.AdamW(
            lora.parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        for _ in range(config.epochs):
            for rows in torch.randperm(len(pairs), generator=order).split(config.batch_size):
                some = [pairs[i] for i in rows.tolist()]
                for group in optimiser.param_groups:
                    group["lr"] = config.lr * lr_factor(len(losses), total, config.warmup)
                optimiser.zero_grad(set_to_none=True)
                both = reply_logprobs(lm, [p.chosen for p in some] + [p.rejected for p in some])
                rows = rows.to(lm.device)
                loss = preference_loss(*both.split(len(some)), known[0][rows], known[1][rows], beta).mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(lora.parameters, config.clip or math.inf)
                optimiser.step()
                losses.append(loss.item())
        return lora.adapter(), losses
