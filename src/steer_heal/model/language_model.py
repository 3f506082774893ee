"""`LM`: a causal model with its tokenizer, and what the library asks of the two.

Knows nothing of steering and training. Nothing here changes the user's tokenizer or model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steer_heal.arguments import ELSEWHERE, checked
from steer_heal.errors import InputError, TooLongError
from steer_heal.model.chat import check_known, fill_persona, render, templated
from steer_heal.model.soundness import check_model
from steer_heal.model.structure import (
    ONE_AT_A_TIME,
    Head,
    block_states,
    evaluating,
    find_backbone,
    find_blocks,
    find_head,
    is_quantised,
    text_config,
    unwrap,
)
from steer_heal.shown import brief


@dataclass(frozen=True)
class LM:
    """A causal model, its tokenizer and the name it was loaded by; `load` and `wrap` make one and check it."""

    model: nn.Module
    tokenizer: object
    name: str

    __repr__ = brief

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def base(self) -> nn.Module:
        """The transformers model, also when `model` is wrapped by PEFT or compiled."""
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
        return find_backbone(self.base)

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
        given = getattr(text_config(self.base), "max_position_embeddings", None)
        if given is not None and given < 1:
            raise InputError(f"{self.name}: its config has max_position_embeddings {given}: give its context in tokens")
        return int(given or 1 << 30)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end a reply: the generation config's and the tokenizer's."""
        ids = getattr(self.base.generation_config, "eos_token_id", None)
        found = set(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
        if self.tokenizer.eos_token_id is not None:
            found.add(self.tokenizer.eos_token_id)
        return frozenset(found)

    @cached_property
    def end_id(self) -> int | None:
        """Token id with which the chat template ends a reply; without a template the tokenizer's; None if it has none.

        A base model's end of text is not always what its chat template writes.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            return self.tokenizer.eos_token_id
        turns = [{"role": role, "content": "a"} for role in ("user", "assistant")]
        shown = templated(self.tokenizer, turns)
        ends = [i for i in self.tokenizer.encode(shown, add_special_tokens=False) if i in self.eos_ids]
        return ends[-1] if ends else self.tokenizer.eos_token_id

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

    @checked
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
        if not ids:
            raise InputError(f"{self.name} makes no token of the prompt {user[:60]!r}: use another model")
        if len(ids) >= self.context_length:
            raise TooLongError(
                f"prompt of {len(ids)} tokens does not fit the context of {self.name} ({self.context_length}): "
                f"shorten it ({user[:60]!r}...)"
            )
        return ids

    @checked
    def encode_chat(self, users: Sequence[str], system: str | None = None) -> dict[str, Int[Tensor, "batch position"]]:
        """Left-padded `input_ids` and `attention_mask` of rendered chat prompts, ready for `model.generate`."""
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
        Without gradients, that is wherever something is measured, the model runs in evaluation mode.
        """
        positions = position_ids(batch["attention_mask"])
        if torch.is_grad_enabled():
            return self.backbone(**batch, position_ids=positions, use_cache=False).last_hidden_state
        with ONE_AT_A_TIME, evaluating(self.base):
            return self.backbone(**batch, position_ids=positions, use_cache=False).last_hidden_state

    def decode(self, ids: Sequence[int] | Int[Tensor, " position"]) -> str:
        """Text of token ids without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def position_ids(mask: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """Positions counted from each row's first real token; pads get 0."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


GivenLM = Annotated[LM | tuple[nn.Module, object], ELSEWHERE]
"""What stages take for a model: an `LM`, or a transformers model with its tokenizer."""


def as_lm(given: GivenLM) -> LM:
    """An `LM` as it is, a pair of model and tokenizer wrapped. Raises InputError for anything else."""
    if isinstance(given, LM):
        return given
    if isinstance(given, tuple | list) and len(given) == 2:
        return wrap(*given)
    raise InputError(
        f"a model is needed here, not {type(given).__name__}: give what load() or wrap() returns, or (model, tokenizer)"
    )


def wrap(model: nn.Module, tokenizer: object, name: str | None = None) -> LM:
    """A transformers model that is in memory already, with its tokenizer; neither is changed.

    Args:
        model: a causal language model, compiled, PEFT-wrapped or plain.
        tokenizer: its own.
        name: what vectors, run folders and exports call it; default: what it was loaded by, else its class.

    Raises:
        InputError: no transformers model or tokenizer, unknown layout of blocks or head, modules compiled one by one.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    base = model if isinstance(model, LM) else unwrap(model)
    if not isinstance(base, PreTrainedModel):
        raise InputError(f"wrap takes a causal language model of transformers, not {type(base).__name__}")
    if any(weight.is_meta for weight in base.parameters()):
        raise InputError("the model's weights are on the meta device, which holds no numbers: load them first")
    if not (name is None or isinstance(name, str)):
        raise InputError(f"name {name!r}: give a string, or None for the model's own")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(f"wrap takes the model's tokenizer, not {type(tokenizer).__name__}: AutoTokenizer loads it")
    if any("_orig_mod" in part for part, _ in base.named_modules()):
        raise InputError("modules inside the model are compiled: wrap it first, or compile the model as a whole")
    return verified(LM(model, tokenizer, str(name or base.config.name_or_path or type(base).__name__)))


def verified(lm: LM) -> LM:
    """The same, once its blocks, head and padding were found to be what the library knows. Raises InputError if not."""
    check_model(lm.base, lm.tokenizer, lm.name)
    check_blocks(lm)
    check_head(lm)
    check_padding(lm)
    return lm


@torch.no_grad()
def check_blocks(lm: LM) -> None:
    """Raises InputError unless every block hands on one hidden state per position, once in a forward pass."""
    seen: list[tuple[int, ...]] = []
    with ExitStack() as hooks:
        for block in lm.blocks:
            hook = block.register_forward_hook(lambda module, given, output: seen.append(block_states(output).shape))
            hooks.callback(hook.remove)
        lm.hidden_states(lm.pad_left([[lm.pad_id] * 3] * 2))
    if set(seen) != {(2, 3, lm.width)} or len(seen) != len(lm.blocks):
        shapes = " and ".join(sorted({str(tuple(shape)) for shape in seen}))
        raise InputError(
            f"{lm.name}: {len(seen)} outputs of its {len(lm.blocks)} blocks in a pass, shaped {shapes} and not "
            f"(2, 3, {lm.width}): steering does not know this layout, use another model"
        )


@torch.no_grad()
def check_padding(lm: LM) -> None:
    """Raises InputError when pads before a row change what it predicts: a reply would hang on its batch."""
    vocabulary = lm.base.get_input_embeddings().weight.shape[0]
    row = torch.randint(vocabulary, (6,), generator=torch.Generator().manual_seed(0)).tolist()
    if lm.context_length < 10:
        return
    alone, padded = (lm.hidden_states(lm.pad_left(rows))[0, -1].float() for rows in ([row], [row, row[:4] + row]))
    difference, scale = (alone - padded).abs().max().item(), alone.abs().max().item()
    tolerance = {torch.bfloat16: 5e-2, torch.float16: 1e-2}.get(lm.dtype, 1e-3)
    if any(map(is_quantised, lm.base.modules())):
        tolerance = max(tolerance, 5e-2)  # 8 bits round the activations too, and a last digit may tip one over
    if difference > tolerance * max(scale, 1e-6):
        raise InputError(
            f"{lm.name}: pads before a row change its last hidden state by {difference:.3g} (largest entry "
            f"{scale:.3g}): a row in a batch is not what it is alone here; use another model"
        )


@torch.no_grad()
def check_head(lm: LM, positions: int = 24) -> float:
    """Largest difference between `lm.head` on the last hidden states and the model's own logits, in logits.

    Guards whatever is computed from hidden states against heads that do more than `Head` knows (an unknown scale or
    cap, an adapter, a quantised weight). Raises InputError when the two differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    rows = lm.base.get_input_embeddings().weight.shape[0]
    ids = torch.randint(rows, (2, min(positions, lm.context_length)), generator=generator)
    batch = {"input_ids": ids.to(lm.device), "attention_mask": torch.ones_like(ids).to(lm.device)}
    with evaluating(lm.model):
        own = lm.base(**batch, use_cache=False).logits.float()
        ours = lm.head(lm.hidden_states(batch))
    if bool((own == own.flatten()[0]).all()):
        raise InputError(f"{lm.name} gives every token the same logit: its weights are zero, use a trained model")
    if own.shape != ours.shape:
        raise InputError(f"{lm.name}: the output head gives {tuple(ours.shape)} logits, the model {tuple(own.shape)}")
    finite = own.isfinite()
    if not finite.any():
        raise InputError(f"{lm.name} gives no finite logits: its weights or its dtype ({lm.dtype}) are broken")
    difference, scale = (own - ours)[finite & ours.isfinite()].abs().max().item(), own[finite].abs().max().item()
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 4e-3}.get(lm.dtype, 1e-4)
    if not bool((finite == ours.isfinite()).all()) or difference > tolerance * max(scale, 1e-6):
        raise InputError(
            f"{lm.name}: logits of the bare output head differ from the model's own by {difference:.3g} (largest logit "
            f"{scale:.3g}): this head does something that is not known here, so the model cannot be used"
        )
    return difference
