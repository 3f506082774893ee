"""The hooks that add dose * vector to the outputs of decoder blocks, and which positions they reach.

Knows nothing of where a vector comes from.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from steer_heal.errors import InputError
from steer_heal.model.structure import STEERED, block_states, find_backbone, find_blocks, unwrap

SCOPES = ("all", "generated", "prompt")
OPERATORS = ("add", "project_out")


def refuse_steered(model: nn.Module, what: str) -> None:
    """Raises InputError inside `applied()`: what is to be read of a model there would be the steering's."""
    if unwrap(model) in STEERED:
        raise InputError(f"{what} inside applied() would read the steered model: leave the block first")


@contextmanager
def steered(
    base: nn.Module,
    vectors: Mapping[int, Float[Tensor, " width"]],
    dose: float | Sequence[float] | Float[Tensor, " batch"],
    scope: str,
    prompt_lengths: Sequence[int] | None,
    operator: str = "add",
    positions: Int[Tensor, "batch position"] | Bool[Tensor, "batch position"] | None = None,
    min_token: int = 0,
) -> Iterator[Steering]:
    """Hooks on an unwrapped transformers model for the time of the block; see `SteeringVector.applied`."""
    if scope not in SCOPES:
        raise InputError(f"scope {scope!r} is unknown: use {', '.join(SCOPES)}")
    if operator not in OPERATORS:
        raise InputError(f"operator {operator!r} is unknown: use {' or '.join(OPERATORS)}")
    if type(min_token) is not int or min_token < 0:
        raise InputError(f"min_token {min_token!r}: give the index of a token, 0 for the first")
    if base in STEERED:
        raise InputError("this model is steered already: leave the outer applied() first, doses would add up")
    injector = Steering(vectors, base, dose, scope, prompt_lengths, operator, positions, min_token)
    blocks = base.get_submodule(find_blocks(base))
    with ExitStack() as hooks:
        # A forward pass that was compiled before does not notice new hooks: it would silently go on unsteered.
        hooks.enter_context(torch.compiler.set_stance("force_eager"))
        # The backbone sees every call, whether it comes through the whole model, generate() or directly.
        before = find_backbone(base).register_forward_pre_hook(injector.before_forward, with_kwargs=True)
        hooks.callback(before.remove)
        for i in sorted(vectors):
            hooks.callback(blocks[i].register_forward_hook(injector.block_hook(i), prepend=True).remove)
        STEERED[base] = threading.get_ident()
        hooks.callback(STEERED.pop, base)
        yield injector


class Steering:
    """The hooks of one `applied()`: what to add is worked out once per forward pass, each block makes one addition.

    No tensor's value is read during decoding: on an accelerator that would wait for the device at every token.
    """

    def __init__(
        self,
        vectors: Mapping[int, Tensor],
        base: nn.Module,
        dose,
        scope,
        prompt_lengths,
        operator,
        positions,
        min_token,
    ):
        like = next(base.parameters())
        self.positions = None if positions is None else torch.as_tensor(positions, device=like.device).long()
        self.min_token = min_token
        self.scope, self.prompt_lengths = scope, prompt_lengths
        self.projects = operator == "project_out"
        if self.projects:
            vectors = {i: vector / vector.norm().clamp_min(1e-30) for i, vector in vectors.items()}
        self.vectors = {i: vector.to(like.device) for i, vector in vectors.items()}
        self.dose = torch.as_tensor(dose, dtype=torch.float32, device=like.device)
        if self.dose.ndim > 1 or not bool(torch.isfinite(self.dose).all()):
            raise InputError("a dose is a finite number or one finite number per row")
        self.deltas: dict[tuple[int, int], Tensor] = {}
        self.mask: Tensor | None = None
        self.cache: Callable[[], object | None] = lambda: None

    def keep_rows(self, kept: Int[Tensor, " kept"]) -> None:
        """From the next forward pass on the batch holds these of its rows alone, in this order."""
        if self.dose.ndim:
            self.dose = self.dose[kept.to(self.dose.device)]
        if self.prompt_lengths is not None:
            self.prompt_lengths = [self.prompt_lengths[i] for i in kept.tolist()]
        self.deltas.clear()

    def before_forward(self, module: nn.Module, args, kwargs) -> None:
        """Work out which positions of this call are steered; None stands for all of them."""
        inputs = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        if inputs is None and args:
            inputs = args[0]
        attention, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        decoding = self._is_decoding(inputs.shape[1], cache)
        if decoding:
            self.mask = None if self.scope != "prompt" else torch.zeros_like(inputs[:, :1])
        else:
            self.mask = _real_tokens(attention, inputs.shape[1], cache)
        if self.scope != "all" and not decoding:
            self.mask = self._prompt_or_reply(_every(inputs) if self.mask is None else self.mask)
        if self.positions is not None and not decoding:
            self.mask = self._at_positions(_every(inputs) if self.mask is None else self.mask)
        if self.min_token:
            late = (_order(attention, inputs.shape[1], cache, inputs.device) >= self.min_token).long()
            self.mask = late.expand(inputs.shape[:2]) if self.mask is None else self.mask * late

    def _is_decoding(self, n_new: int, cache: object | None) -> bool:
        """One new token behind a filled cache. The cache of the last call is known to be filled without asking it."""
        if cache is None:
            return False
        known = self.cache() is cache
        self.cache = weakref.ref(cache)
        return n_new == 1 and (known or int(cache.get_seq_length()) > 0)

    def _prompt_or_reply(self, real: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
        order = real.cumsum(-1)  # 1 for a row's first real token
        given = self.prompt_lengths
        length = order[:, -1:] if given is None else torch.tensor(given, device=real.device)[:, None]
        if length.shape[0] != real.shape[0]:
            raise InputError(f"{length.shape[0]} prompt lengths for a batch of {real.shape[0]} rows: give one per row")
        return real * (order >= length if self.scope == "generated" else order <= length)

    def _at_positions(self, mask: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
        given, (rows, length) = self.positions, mask.shape
        if given.ndim != 2 or given.shape[1] != length or rows % len(given):
            raise InputError(
                f"positions {tuple(given.shape)} for tokens ({rows}, {length}): give a row and column each"
            )
        return mask * given.repeat_interleave(rows // len(given), dim=0)

    def block_hook(self, layer: int) -> Callable:
        def add(module: nn.Module, args, output):
            hidden = block_states(output)
            delta = self.deltas.get((layer, hidden.shape[0]))
            if delta is None:
                delta = self._delta(layer, hidden)
            if self.projects:  # the delta is dose * u; here it becomes -(h . u) dose * u
                delta = -(hidden @ self.vectors[layer].to(hidden.device, hidden.dtype))[..., None] * delta
            if self.mask is None:
                hidden = hidden + delta
            else:
                hidden = torch.addcmul(hidden, delta, self.mask[:, :, None].to(hidden.device, hidden.dtype))
            return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden

        return add

    def _delta(self, layer: int, hidden: Tensor) -> Tensor:
        """dose * vector in the model's dtype: [width], or [batch, 1, width] for a dose per row; kept per batch size."""
        rows, vector = hidden.shape[0], self.vectors[layer]
        if self.dose.ndim == 0:
            delta = self.dose * vector
        else:
            if rows % len(self.dose):
                raise InputError(f"{len(self.dose)} doses for a batch of {rows} rows: give one dose or one per row")
            delta = (self.dose.repeat_interleave(rows // len(self.dose))[:, None] * vector)[:, None, :]
        self.deltas[layer, rows] = delta.to(hidden.device, hidden.dtype)
        return self.deltas[layer, rows]


def _every(inputs: Tensor) -> Int[Tensor, "batch position"]:
    return torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)


def _order(attention: object, n_new: int, cache: object | None, device) -> Int[Tensor, "batch position"]:
    """Index of the new positions among their row's real tokens, from 0; one row for all where there are no pads."""
    attention = _one_mask(attention)
    if attention is None:
        filled = 0 if cache is None else int(cache.get_seq_length())
        return torch.arange(filled, filled + n_new, device=device)[None]
    if attention.ndim == 2:
        return attention.long().cumsum(-1)[:, -n_new:] - 1
    return _seen(attention[:, 0]).sum(-1) - 1


def _one_mask(attention: object) -> Tensor | None:
    """The mask itself, or that of full attention among one per kind of attention; None when there is none."""
    if isinstance(attention, Mapping):
        attention = attention.get("full_attention", next(iter(attention.values()), None))
    return attention if isinstance(attention, Tensor) else None


def _seen(mask: Tensor) -> Tensor:
    """1 where a mask of either kind, of truth values or of what is added to scores, lets a query see a key."""
    return (mask if mask.dtype == torch.bool else mask == 0).long()


def _real_tokens(attention: object, n_new: int, cache: object | None) -> Int[Tensor, "batch position"] | None:
    """1 for a token and 0 for a pad among the new positions; None when the call says nothing of pads.

    Behind a static cache transformers passes a mask of [batch, 1, query, key], or one per kind of attention: a token
    sees itself, a pad sees nothing.
    """
    attention = _one_mask(attention)
    if attention is None:
        return None
    if attention.ndim == 2:
        return attention[:, -n_new:]
    filled = 0 if cache is None else int(cache.get_seq_length())
    return _seen(attention[:, 0].diagonal(offset=filled, dim1=-2, dim2=-1)[:, :n_new])
