"""One padded batch, decoded token by token: a row draws from a seed of its own and leaves when it has ended.

Knows nothing of prompts, doses and completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.utils import ModelOutput

from steer_heal.errors import InputError

LEAVE = 1 / 32
"""Share of a batch that must have ended before rows leave: taking them out copies the cache, as a new token does."""
LOOK = {"cuda": 8}
"""Tokens between two looks at who has ended, where a look waits for the device; elsewhere every token."""


Step = Callable[[PreTrainedModel, dict[str, object]], ModelOutput]
"""A forward pass of a model over prepared inputs."""


def eager(model: PreTrainedModel, ready: dict[str, object]) -> ModelOutput:
    """The pass as transformers makes it."""
    return model(**ready, return_dict=True)


def uniforms(seed: int, n: int) -> Float[np.ndarray, " n"]:
    """`n` numbers in [0, 1 - 2**-32] from the counter-based Philox generator (Salmon et al. 2011), steps of 2**-32.

    Raw bits: numpy promises them for all versions. Below 1 by so much that a rounded product with a sum stays below it.
    """
    return (np.random.Philox(key=seed).random_raw(n) >> np.uint64(32)) / 2.0**32


def draw(scores: Float[Tensor, "row token"], u: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """A token per row by inversion: the first whose cumulated probability exceeds `u`, never one of probability 0.

    The sum is taken in float64, so that a row's draw hangs on `u` alone however many tokens there are.
    """
    cumulated = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulated, u[:, None] * cumulated[:, -1:], right=True)[:, 0]


class Decoding:
    """A batch on its way; goes to transformers' `generate` as `custom_generate`.

    Theirs is all up to the first token, each distribution and when a row stops; ours are the draw and who is present.

    Attributes:
        ids: tokens sampled so far, by row and position; what follows a row's end is padding or never looked at.
        n_tokens: positions of `ids` that are filled.
    """

    def __init__(
        self,
        rows: int,
        max_new_tokens: int,
        pad_id: int,
        device: torch.device,
        seeds: Sequence[int] | None,
        keep_rows: Callable[[Int[Tensor, " kept"]], None],
        on_token: Callable[[], None],
        step: Step = eager,
    ):
        """`seeds`: of each row, None to take the most probable token. `keep_rows` hears which rows stay.

        `step` passes every token but the first, which comes with the prompt.
        """
        self.ids = torch.full((rows, max_new_tokens), pad_id, device=device)
        self.n_tokens = 0
        self.keep_rows, self.on_token, self.step = keep_rows, on_token, step
        drawn = None if seeds is None else np.stack([uniforms(seed, max_new_tokens) for seed in seeds])
        self.drawn = None if drawn is None else torch.from_numpy(drawn).to(device)

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Int[Tensor, "row position"],
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **inputs,
    ) -> Int[Tensor, "row sampled"]:
        present = torch.arange(len(input_ids), device=input_ids.device)
        ended = torch.zeros_like(present, dtype=torch.bool)
        look = LOOK.get(input_ids.device.type, 1)
        for position in range(self.ids.shape[1]):
            first = position == 0
            new = None if first or not inputs.get("use_cache") else 1
            ready = model.prepare_inputs_for_generation(
                input_ids, next_sequence_length=new, is_first_iteration=first, **inputs
            )
            output = eager(model, ready) if first else self.step(model, ready)
            inputs = model._update_model_kwargs_for_generation(output, inputs)
            scores = logits_processor(input_ids, output.logits[:, -1].float())
            if first and bool(scores.isnan().any()):
                raise InputError(
                    "the model gives probabilities that are no numbers: lower the dose, or raise the dtype"
                )
            del output, ready  # logits of a whole prompt must not live on beside the next pass
            token = scores.argmax(-1) if self.drawn is None else draw(scores, self.drawn[present, position])
            self.ids[present, position] = token
            self.n_tokens = position + 1
            input_ids = torch.cat([input_ids, token[:, None]], dim=1)
            ended |= stopping_criteria(input_ids, None)
            self.on_token()
            if self.n_tokens % look:
                continue
            n_ended = int(ended.sum())
            if n_ended == len(present):
                break
            if n_ended > LEAVE * len(present) and _can_leave(model, inputs, len(present)):
                kept = (~ended).nonzero()[:, 0]
                present, ended, input_ids = present[kept], ended[kept], input_ids[kept]
                inputs = {name: _rows(value, kept) for name, value in inputs.items()}
                self.keep_rows(kept)
        return self.ids


def _can_leave(model: PreTrainedModel, inputs: dict, rows: int) -> bool:
    """Whether all that the model carries from token to token is known to have a row per reply.

    Not where it keeps state in its modules or in a cache of its own (minimax).
    """
    carried = [value for value in inputs.values() if not isinstance(value, bool | int | float | None) and len(value)]
    tensors = [value for value in carried if isinstance(value, Tensor)]
    caches = [value for value in carried if type(value) is DynamicCache]
    known = len(carried) == len(tensors) + len(caches) and all(len(tensor) == rows for tensor in tensors)
    layers = [layer for cache in caches for layer in cache.layers]
    states = [layer.has_previous_state for layer in layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    held = bool(caches) and (all(any(s.values()) for s in states) if states else not model._is_stateful)
    return known and (held or not inputs.get("use_cache"))


def _rows(value: object, kept: Int[Tensor, " kept"]) -> object:
    if isinstance(value, DynamicCache):
        value.reorder_cache(kept)  # takes any rows, fewer as well
    return value[kept] if isinstance(value, Tensor) else value
