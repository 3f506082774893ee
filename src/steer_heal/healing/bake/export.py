"""A stack on disk: its rounds as one PEFT adapter, or the baked model; each checked by the logits of what was written.

Knows nothing of how adapters are folded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steer_heal.errors import InputError
from steer_heal.healing.adapter import Adapter, written_whole
from steer_heal.healing.bake.guards import preserved
from steer_heal.model import LM

LOGIT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative error of logits, by dtype, between folded weights and the same adapters computed beside the weights."""


def concatenated(rounds: Sequence[tuple[Adapter, float]]) -> Adapter:
    """One adapter whose delta is the sum of the rounds' doses times deltas, its rank the sum of the ranks.

    InputError without rounds.
    """
    if not rounds:
        raise InputError("the stack is empty: there is no adapter to export")
    adapters = tuple(adapter for adapter, _ in rounds)
    rank = sum(adapter.rank for adapter in adapters)
    a, b = {}, {}
    for name in sorted({name for adapter in adapters for name in adapter.modules}):
        shape = next((x.a[name].shape[1], x.b[name].shape[0]) for x in adapters if name in x.a)
        rows, columns = [], []
        for adapter, dose in rounds:
            # A module that a round did not train gets zeros, so that one rank serves every module.
            rows.append(adapter.a.get(name, torch.zeros(adapter.rank, shape[0])))
            factor = adapter.b.get(name, torch.zeros(shape[1], adapter.rank))
            columns.append((dose * adapter.scaling * factor.double()).float())
        a[name], b[name] = torch.cat(rows), torch.cat(columns, dim=1)
    first = adapters[0]
    return Adapter(a, b, rank, float(rank), first.base_model, first.fan_in_fan_out)


def write_peft(
    adapter: Adapter, folder: str | Path, model: nn.Module, unfolded: Callable[[], AbstractContextManager[None]]
) -> None:
    """Write a PEFT adapter; the folder counts as written only after plain `peft` computed the baked model's logits.

    Args:
        model: with the adapter's delta folded in.
        unfolded: a block inside which it has its original weights.
    """
    with written_whole(folder) as partial:
        adapter.save(partial)
        _check_peft(partial, model, unfolded)


def _check_peft(folder: Path, model: nn.Module, unfolded: Callable[[], AbstractContextManager[None]]) -> None:
    from peft import PeftModel

    baked = _logits(model)
    with unfolded(), preserved(model):
        beside = _logits(PeftModel.from_pretrained(model, str(folder)).eval())
    dtype = next(model.parameters()).dtype
    _compare_logits(baked, beside, LOGIT_TOLERANCE[dtype], f"adapter {folder}")


def write_merged(lm: LM, folder: str | Path) -> None:
    """Write a model with its tokenizer; the folder counts as written only when it has the same logits, loaded again."""
    from transformers import AutoModelForCausalLM

    with written_whole(folder) as partial:
        lm.base.save_pretrained(partial)
        lm.tokenizer.save_pretrained(partial)
        again = AutoModelForCausalLM.from_pretrained(partial, dtype=lm.dtype).to(lm.device).eval()
        _compare_logits(_logits(lm.base), _logits(again), 1e-5, f"merged model {folder}")


@torch.no_grad()
def _logits(model: nn.Module) -> Float[Tensor, "batch position vocab"]:
    """Logits on a fixed batch of random token ids, float32 on the CPU."""
    return model(input_ids=_probe_ids(model), use_cache=False).logits.float().cpu()


def _probe_ids(model: nn.Module) -> Int[Tensor, "batch position"]:
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(rows, (2, 12), generator=torch.Generator().manual_seed(0))
    return ids.to(next(model.parameters()).device)


def _compare_logits(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    both = ours.isfinite() & theirs.isfinite()
    error = ((ours - theirs)[both].norm() / ours[both].norm()).item()
    if ours.shape != theirs.shape or not error <= tolerance:
        raise OSError(f"{what} was written and loaded again, but its logits are off by {error:.2g} (limit {tolerance})")
