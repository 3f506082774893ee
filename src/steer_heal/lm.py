"""A causal language model with its tokenizer: loading, chat rendering, padding, text blocks, output head, log-probs.

Knows nothing of steering and training. Nothing here changes the user's tokenizer or model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steer_heal.errors import InputError, TooLongError
from steer_heal.persona import fill_persona

UNKNOWN_LIMIT = 0.5
"""Share of unknown tokens in a user turn from which on a prompt is refused."""


@dataclass(frozen=True)
class Head:
    """The output head as a function: logits = cap * tanh(scale * (W h + b) / cap), in float32.

    `scale` and `cap` are those of the model's configuration (Cohere's `logit_scale`, Granite's `logits_scaling`,
    Gemma's `final_logit_softcapping`); 1 and None for the common case.
    """

    linear: nn.Module
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, hidden: Float[Tensor, "*position width"]) -> Float[Tensor, "*position vocab"]:
        logits = self.linear(hidden.to(self.linear.weight.dtype)).float()
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


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
        config = text_config(self.base)
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        if divisor := getattr(config, "logits_scaling", None):
            scale /= float(divisor)
        cap = getattr(config, "final_logit_softcapping", None)
        return Head(self.base.get_output_embeddings(), scale, None if cap is None else float(cap))

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

    def chat_ids(self, user: str, system: str | None = None) -> tuple[int, ...]:
        """Token ids of one rendered chat prompt, up to and including the assistant tag; exactly one BOS at most.

        Templates that refuse a system role get the system text in front of the user turn; a base model without
        a chat template gets BOS and the plain text; a prompt with a `{persona}` slot gets it there. Raises
        InputError for an empty prompt, one of which the tokenizer knows almost nothing, and one longer than the
        model's context.
        """
        if not user.strip():
            raise InputError("a prompt is empty: give every prompt at least one word")
        user, system = fill_persona(user, system)
        ids = _render(self.tokenizer, user, system)
        self._check_known(user)
        if len(ids) >= self.context_length:
            raise TooLongError(
                f"prompt of {len(ids)} tokens does not fit the context of {self.name} ({self.context_length}): "
                f"shorten it ({user[:60]!r}...)"
            )
        return ids

    def _check_known(self, user: str) -> None:
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return
        ids = self.tokenizer.encode(user, add_special_tokens=False)
        share = sum(i == unknown for i in ids) / max(1, len(ids))
        if not ids or share > UNKNOWN_LIMIT:
            raise InputError(
                f"{self.name} knows almost nothing of the prompt {user[:60]!r} ({share:.0%} unknown tokens): "
                "write prompts in the model's own vocabulary or use another model"
            )

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


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: nn.Module):
    """Configuration of the text part: of a multimodal model its decoder's."""
    return model.config.get_text_config(decoder=True)


def find_blocks(model: nn.Module) -> str:
    """Dotted path of the text decoder's block list.

    It is the one `ModuleList` with as many entries as the text configuration has layers that lies outside any
    vision or audio part and inside no other block. Raises InputError when there is none or more than one.
    """
    n_layers = text_config(model).num_hidden_layers
    foreign = ("vision", "visual", "audio", "speech", "encoder")
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and not any(word in part for part in name.split(".") for word in foreign)
    ]
    found = [name for name in found if not any(name.startswith(other + ".") for other in found)]
    if len(found) != 1:
        raise InputError(
            f"{type(model).__name__}: expected one list of {n_layers} decoder blocks, found {found or 'none'}: "
            "use a decoder-only causal language model"
        )
    return found[0]


@torch.no_grad()
def completion_logprobs(
    lm: LM, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], batch_tokens: int = 8192
) -> list[Float[Tensor, " position"]]:
    """Log-probability (nats, float32, on the CPU) of every reply token given its prompt, row by row.

    Rows are batched by length; the head is applied to the reply positions only. Raises InputError for an empty reply.
    """
    if any(len(reply) == 0 for reply in replies):
        raise InputError("a completion has no tokens: its log-probability is undefined")
    out: list[Tensor | None] = [None] * len(prompts)
    for rows in length_batches([len(p) + len(r) for p, r in zip(prompts, replies, strict=True)], batch_tokens):
        batch = lm.pad_left([[*prompts[i], *replies[i]] for i in rows])
        hidden = lm.hidden_states(batch)
        for j, i in enumerate(rows):
            n = len(replies[i])
            target = batch["input_ids"][j, -n:]
            logp = lm.head(hidden[j, -n - 1 : -1]).log_softmax(-1)
            out[i] = logp.gather(1, target[:, None])[:, 0].cpu()
    return out


def length_batches(lengths: Sequence[int], batch_tokens: int, max_rows: int = 256) -> Iterator[list[int]]:
    """Row indices sorted by length and cut into batches of at most `batch_tokens` padded tokens."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (lengths[i] * (len(batch) + 1) > batch_tokens or len(batch) >= max_rows):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _render(tokenizer, user: str, system: str | None) -> tuple[int, ...]:
    if not getattr(tokenizer, "chat_template", None):
        text = f"{system}\n{user}" if system else user
        ids = tokenizer.encode(text, add_special_tokens=False)
        return (tokenizer.bos_token_id, *ids) if tokenizer.bos_token_id is not None else tuple(ids)
    turns = [{"role": "user", "content": user}]
    if system:
        turns = (
            [{"role": "system", "content": system}, *turns]
            if takes_system(tokenizer)
            else [{"role": "user", "content": f"{system}\n\n{user}"}]
        )
    # The template writes the BOS itself, so tokenising must not add a second one.
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def takes_system(tokenizer) -> bool:
    """Whether the chat template accepts a system role and shows its text."""
    from jinja2.exceptions import TemplateError

    turns = [{"role": "system", "content": "qzx"}, {"role": "user", "content": "a"}]
    try:
        return "qzx" in tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        return False


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    temperature: float | None = None,
    top_p: float | None = None,
) -> LM:
    """Load a causal model by name.

    Args:
        name: `pocket` (embedded), `tiny-random` (built in memory), a folder, or a hub id.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 for embedded models and on a CPU, else as stored.
        device: `cpu`, `cuda`, `mps`, or `auto`: the accelerator when there is one.
        attn_implementation: passed to transformers (`sdpa`, `eager`, `flash_attention_2`); None is its default.
        trust_remote_code: run Python code that comes with a hub model. Off unless asked for.
        temperature, top_p: of sampling, instead of those of the model's own generation config.

    Raises:
        InputError: unknown name, missing accelerator, unreachable hub, not a causal language model, no tokenizer,
            an impossible temperature or top_p.
    """
    from steer_heal.loading import load_pretrained, resolve_device, resolve_dtype, set_sampling

    where = resolve_device(device)
    if name == "tiny-random":
        from steer_heal.tiny import tiny_random

        model, tokenizer = tiny_random()
        set_sampling(model, temperature, top_p)
        return LM(model.to(where, resolve_dtype(dtype, where, embedded=True)).eval(), tokenizer, name)
    if name == "pocket":
        from steer_heal.pocket import WEIGHTS

        source, embedded = WEIGHTS, True
    else:
        source, embedded = name, False
    model, tokenizer = load_pretrained(
        source, name, resolve_dtype(dtype, where, embedded), where, attn_implementation, trust_remote_code
    )
    set_sampling(model, temperature, top_p)
    lm = LM(model, tokenizer, name)
    _ = lm.blocks_path  # an unsupported layout is an error here, not in the middle of a run
    return lm
