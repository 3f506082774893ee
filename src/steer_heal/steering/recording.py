"""Reading decoder-block outputs of a batch, with own hooks, stopping after the last wanted block.

Knows nothing of personas and vectors. transformers' `output_hidden_states` is not used: it leaves hooks behind and its
last entry is after the final norm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from steer_heal.errors import InputError
from steer_heal.model.language_model import LM
from steer_heal.model.structure import block_states, evaluating, text_config


class _LastBlockReached(Exception):
    """Ends a forward pass once nothing more is wanted from it."""


@dataclass(frozen=True)
class Prefix:
    """Tokens that all rows begin with, and their keys and values, computed once for the blocks that are read."""

    ids: tuple[int, ...]
    cache: DynamicCache | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, n: int) -> DynamicCache | None:
        """A copy of the cache for n rows, free to be written to."""
        if self.cache is None:
            return None
        out = copy.deepcopy(self.cache)
        out.batch_repeat_interleave(n)
        return out


@torch.no_grad()
def read_prefix(lm: LM, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]], last_block: int) -> Prefix:
    """The longest common beginning of the rows that ends before every span, run once up to `last_block`.

    Empty for models whose cache is more than keys and values per block (recurrent states) or that fill none.
    """
    room = min(len(row) - a for row, (a, _) in zip(rows, spans, strict=True))
    first, last = min(rows), max(rows)  # in dictionary order these two differ earliest
    n = next((i for i, (x, y) in enumerate(zip(first, last, strict=False)) if x != y), min(len(first), len(last)))
    ids = tuple(rows[0][: max(0, min(n, room))])
    cache = DynamicCache(config=text_config(lm.base))
    if not ids or not _keys_and_values(cache):
        return Prefix(())
    tokens = torch.tensor([ids], device=lm.device)
    _run_up_to(lm, {}, last_block, input_ids=tokens, past_key_values=cache, use_cache=True)
    # A model that keeps its state elsewhere leaves the cache empty: the rows would lose their beginning.
    return Prefix(ids, cache) if _keys_and_values(cache) and cache.get_seq_length() == len(ids) else Prefix(())


def _keys_and_values(cache: DynamicCache) -> bool:
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


@torch.no_grad()
def record(
    lm: LM,
    rows: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]],
    blocks: Sequence[int],
    prefix: Prefix = Prefix(()),
) -> dict[int, Float[Tensor, "row width"]]:
    """Mean output of each wanted block over one span per row, float64 on the CPU.

    Rows are padded on the right: in a causal model nothing before a pad depends on it, so no mask is needed and every
    token keeps its own position.

    Args:
        rows: token ids.
        spans: (a, b) per row: positions from `a` tokens before the row's end up to `b` before it, a > b >= 0.
        blocks: block indices; the pass ends after the largest.
        prefix: tokens that every row begins with, from `read_prefix` with the largest block; they are not run again.
    """
    rest = [row[len(prefix) :] for row in rows]
    longest = max(map(len, rest))
    ids = torch.tensor([[*row, *[lm.pad_id] * (longest - len(row))] for row in rest], device=lm.device)
    positions = torch.arange(len(prefix), len(prefix) + longest, device=lm.device)[None].expand(len(rows), -1)
    lengths = [a - b for a, b in spans]
    row_of = torch.tensor([j for j, n in enumerate(lengths) for _ in range(n)], device=lm.device)
    column = [t for row, (a, b) in zip(rest, spans, strict=True) for t in range(len(row) - a, len(row) - b)]
    column = torch.tensor(column, device=lm.device)
    out: dict[int, Tensor] = {}

    def reader(i: int) -> Callable[[Tensor], None]:
        def read(hidden: Tensor) -> None:
            states = hidden[row_of, column].double()
            if max(lengths) > 1:
                total = torch.zeros(len(rows), states.shape[1], dtype=states.dtype, device=states.device)
                states = total.index_add_(0, row_of, states) / torch.tensor(lengths, device=states.device)[:, None]
            out[i] = states.cpu()

        return read

    inputs = {"input_ids": ids, "position_ids": positions, "past_key_values": prefix.rows(len(rows))}
    _run_up_to(lm, {i: reader(i) for i in blocks}, max(blocks), use_cache=prefix.cache is not None, **inputs)
    return out


def _run_up_to(lm: LM, readers: dict[int, Callable[[Tensor], None]], last: int, **inputs) -> None:
    """A forward pass of the backbone that hands block outputs to their readers and ends after block `last`."""

    def hook_for(i: int):
        def read(module, args, output):
            if i in readers:
                readers[i](block_states(output))
            if i == last:
                raise _LastBlockReached

        return read

    with ExitStack() as hooks:
        for i in {*readers, last}:
            hooks.callback(lm.blocks[i].register_forward_hook(hook_for(i)).remove)
        with suppress(_LastBlockReached), evaluating(lm.base):
            lm.backbone(**inputs)


def template_suffix(lm: LM) -> int:
    """Tokens that the chat template puts after the user's words (0 for a model without template)."""
    one, two = lm.chat_ids("one"), lm.chat_ids("two")
    same = 0
    while same < min(len(one), len(two)) and one[-1 - same] == two[-1 - same]:
        same += 1
    if same == min(len(one), len(two)):
        raise InputError(f"{lm.name}: the chat template does not show the user's words")
    return same
