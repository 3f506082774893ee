"""`LM`: a causal model with its tokenizer, and what the library asks of the two.

Knows nothing of steering and training. Nothing here changes the user's tokenizer or model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steer_heal.errors import InputError, TooLongError
from steer_heal.model.chat import check_known, fill_persona, render
from steer_heal.model.structure import Head, find_blocks, find_head, text_config, unwrap


@dataclass(frozen=True)
class LM:
    """A causal model, its tokenizer and the name it was loaded by."""

    model: nn.Module
    tokenizer: object
    name: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def base(self) -> nn.Module:
        """The transformers model, also when `model` is wrapped by PEFT."""
        return unwrap(self.model)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks of the text model, in order."""
        return self.base.get_submodule(self.blocks_path)

    @cached_property
    def blocks_path(self) -> str:
        return find_blocks(self.base)

    @property
    def backbone(self) -> nn.Module:
        """The model without its output head; its last hidden state is what the head reads."""
        return self.base.base_model

    @cached_property
    def head(self) -> Head:
        """The output head with the configuration's scale and soft cap (see `Head`)."""
        return find_head(self.base)

    @property
    def width(self) -> int:
        return text_config(self.base).hidden_size

    @property
    def context_length(self) -> int:
        """Positions the model was made for, in tokens."""
        return int(getattr(text_config(self.base), "max_position_embeddings", 0) or 1 << 30)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end a reply: the generation config's and the tokenizer's."""
        ids = getattr(self.base.generation_config, "eos_token_id", None)
        found = set(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
        if self.tokenizer.eos_token_id is not None:
            found.add(self.tokenizer.eos_token_id)
        return frozenset(found)

    @property
    def pad_id(self) -> int:
        """Id used to fill left padding; masked everywhere, so a model without a pad token may use its EOS."""
        if self.tokenizer.pad_token_id is not None:
            return self.tokenizer.pad_token_id
        return min(self.eos_ids, default=0)

    def rows_that_fit(self, tokens_per_row: int, limit: int = 128) -> int:
        """Rows whose key-value cache and logits fit half of the free memory, at most `limit`."""
        if self.device.type != "cuda":
            return limit
        config = text_config(self.base)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        item = torch.finfo(self.dtype).bits // 8
        per_row = 2 * config.num_hidden_layers * heads * head_dim * item * tokens_per_row + 8 * config.vocab_size
        free, _ = torch.cuda.mem_get_info(self.device)
        return max(1, min(limit, int(free * 0.5 / per_row)))

    def chat_ids(self, user: str, system: str | None = None) -> tuple[int, ...]:
        """Token ids of one rendered chat prompt, up to and including the assistant tag; exactly one BOS at most.

        Templates that refuse a system role get the system text in front of the user turn; a base model without
        a chat template gets BOS and the plain text; a prompt with a `{persona}` slot gets it there. Raises
        InputError for an empty prompt, one of which the tokenizer knows almost nothing, and one longer than the
        model's context.
        """
        if not user.strip():
            raise InputError("a prompt is empty: give every prompt at least one word")
        key = user, system, getattr(self.tokenizer, "chat_template", None)
        if (ids := self._rendered.get(key)) is None:
            ids = self._rendered[key] = self._render(*fill_persona(user, system))
        return ids

    @cached_property
    def _rendered(self) -> dict[tuple[str | None, ...], tuple[int, ...]]:
        """Prompts rendered before: an evaluation asks the same ones of every state of the model."""
        return {}

    def _render(self, user: str, system: str | None) -> tuple[int, ...]:
        ids = render(self.tokenizer, user, system)
        check_known(self.tokenizer, user, self.name)
        if len(ids) >= self.context_length:
            raise TooLongError(
                f"prompt of {len(ids)} tokens does not fit the context of {self.name} ({self.context_length}): "
                f"shorten it ({user[:60]!r}...)"
            )
        return ids

    def encode_chat(self, users: Sequence[str], system: str | None = None) -> dict[str, Int[Tensor, "batch position"]]:
        """Left-padded `input_ids` and `attention_mask` of rendered chat prompts, ready for `model.generate`."""
        if isinstance(users, str):
            raise InputError("encode_chat takes a list of prompts, not one string: wrap it in [ ]")
        if not users:
            raise InputError("no prompts were given: pass at least one")
        return self.pad_left([self.chat_ids(user, system) for user in users])

    def pad_left(self, rows: Sequence[Sequence[int]]) -> dict[str, Int[Tensor, "batch position"]]:
        """Rows of token ids as one left-padded batch on the model's device."""
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :] = torch.tensor(row, dtype=torch.long)
            mask[i, longest - len(row) :] = 1
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def hidden_states(self, batch: dict[str, Int[Tensor, "batch position"]]) -> Float[Tensor, "batch position width"]:
        """Last hidden states (after the final norm, what the head reads) of a left-padded batch.

        Position ids are passed explicitly: models with learned positions are wrong under left padding without them.
        """
        positions = position_ids(batch["attention_mask"])
        return self.backbone(**batch, position_ids=positions, use_cache=False).last_hidden_state

    def decode(self, ids: Sequence[int] | Int[Tensor, " position"]) -> str:
        """Text of token ids without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def position_ids(mask: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """Positions counted from each row's first real token; pads get 0."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
