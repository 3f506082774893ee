"""Reading decoder-block outputs of a batch, with own hooks, stopping after the last wanted block.

Knows nothing of personas and vectors. transformers' `output_hidden_states` is not used: it leaves hooks behind and its
last entry is after the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steer_heal.errors import InputError
from steer_heal.lm import LM, position_ids


class _LastBlockReached(Exception):
    """Ends a forward pass once nothing more is wanted from it."""


@torch.no_grad()
def record(
    lm: LM, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]], blocks: Sequence[int]
) -> dict[int, Float[Tensor, "row width"]]:
    """Mean output of each wanted block over one span per row, float64 on the CPU.

    Args:
        rows: token ids; they are left-padded into one batch.
        spans: (a, b) per row: positions from `a` tokens before the right end up to `b` before it, a > b >= 0.
        blocks: block indices; the pass ends after the largest.
    """
    batch = lm.pad_left(rows)
    length = batch["input_ids"].shape[1]
    out: dict[int, Tensor] = {}
    last = max(blocks)

    def hook_for(i: int):
        def read(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            means = [hidden[j, length - a : length - b].double().mean(0) for j, (a, b) in enumerate(spans)]
            out[i] = torch.stack(means).cpu()
            if i == last:
                raise _LastBlockReached

        return read

    handles = [lm.blocks[i].register_forward_hook(hook_for(i)) for i in blocks]
    try:
        lm.backbone(**batch, position_ids=position_ids(batch["attention_mask"]), use_cache=False)
    except _LastBlockReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return out


def template_suffix(lm: LM) -> int:
    """Tokens that the chat template puts after the user's words (0 for a model without template)."""
    one, two = lm.chat_ids("one"), lm.chat_ids("two")
    same = 0
    while same < min(len(one), len(two)) and one[-1 - same] == two[-1 - same]:
        same += 1
    if same == min(len(one), len(two)):
        raise InputError(f"{lm.name}: the chat template does not show the user's words")
    return same
