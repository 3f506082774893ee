"""A stack on disk: its rounds as one PEFT adapter, or the baked model; each checked by the logits of what was written.

Knows nothing of how adapters are folded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steer_heal.healing.adapter import Adapter, written_whole
from steer_heal.healing.bake.guards import preserved
from steer_heal.model import LM, evaluating

LOGIT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative error of logits, by dtype, between folded weights and the same adapters computed beside the weights."""


CARD = "README.md"
"""File of a folder's model card, where the hub looks for it."""


def write_peft(
    adapter: Adapter,
    folder: str | Path,
    model: nn.Module,
    unfolded: Callable[[], AbstractContextManager[None]],
    tokenizer: object = None,
    card: str | None = None,
) -> None:
    """Write a PEFT adapter; the folder counts as written only after plain `peft` computed the baked model's logits.

    Args:
        model: with the adapter's delta folded in.
        unfolded: a block inside which it has its original weights.
        tokenizer, card: what lies beside the adapter, where given.
    """
    from peft import PeftModel

    weight = next(model.parameters())
    baked, tolerance = _logits(model), LOGIT_TOLERANCE[weight.dtype]
    cards = [weight.device] if weight.is_cuda else []
    with written_whole(folder) as partial:
        adapter.save(partial)
        _write_beside(partial, tokenizer, card)
        # peft draws the factors that it then overwrites, and the caller's draws are not to hang on that.
        with unfolded(), preserved(model), torch.random.fork_rng(cards):
            beside = _logits(PeftModel.from_pretrained(model, str(partial)))
        _compare_logits(baked, beside, tolerance, f"adapter {folder}")


def write_merged(lm: LM, folder: str | Path, card: str | None = None) -> None:
    """Write a model with its tokenizer; the folder counts as written only when it has the same logits, loaded again."""
    with written_whole(folder) as partial:
        lm.base.save_pretrained(partial)
        _write_beside(partial, lm.tokenizer, card)
        again = type(lm.base).from_pretrained(partial, dtype=lm.dtype).to(lm.device)
        _compare_logits(_logits(lm.base), _logits(again), 1e-5, f"merged model {folder}")


def _write_beside(folder: Path, tokenizer: object, card: str | None) -> None:
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if card is not None:
        (folder / CARD).write_text(card, "utf-8")


@torch.no_grad()
def _logits(model: nn.Module) -> Float[Tensor, "batch position vocab"]:
    """Logits on a fixed batch of random token ids, float32 on the CPU."""
    rows, device = model.get_input_embeddings().weight.shape[0], next(model.parameters()).device
    ids = torch.randint(rows, (2, 12), generator=torch.Generator().manual_seed(0)).to(device)
    with evaluating(model):
        return model(input_ids=ids, use_cache=False).logits.float().cpu()


def _compare_logits(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    both = ours.isfinite() & theirs.isfinite()
    error = ((ours - theirs)[both].norm() / ours[both].norm()).item()
    if ours.shape != theirs.shape or not error <= tolerance:
        raise OSError(f"{what} was written and loaded again, but its logits are off by {error:.2g} (limit {tolerance})")
