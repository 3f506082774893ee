"""`bench.py loss-memory`: peak memory of the chunked loss and of the naive one, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steer_heal.healing.barriers import DIVERGENCES, default_chunk, position_losses
from steer_heal.model import Head
from steer_heal.studies.benchmarks.measuring import Arm, peak_fresh, surroundings

LOSS_TARGETS = {256: 0.9, 1024: 0.25}
"""Units at a vocabulary of 262,144, by positions."""


@dataclass(frozen=True)
class LossBench:
    """Peak memory of the loss, forward and backward, in units of one float32 [positions, vocabulary] tensor."""

    positions: tuple[int, ...] = (256, 1024)
    """Completion positions."""
    vocab: int = 262_144
    """Vocabulary."""
    width: int = 512
    """Hidden width."""
    naive_up_to: int = 256
    """The naive losses run up to so many positions (at 1,024 they need 11 GB)."""
    threads: int = 2
    """CPU threads of torch."""


def loss_arms(positions: int, vocab: int, width: int, cap: float | None, names: Sequence[str]) -> dict[str, Arm]:
    """Arms of `loss-memory`: chunked, naive over completion positions, naive over these and .75 times as many more."""
    torch.manual_seed(0)
    head = Head(nn.Linear(width, vocab, bias=False).requires_grad_(False), cap=cap)
    everything = positions + 3 * positions // 4
    hidden, reference = torch.randn(everything, width), torch.randn(everything, width)
    targets = torch.randint(vocab, (everything,))

    def run(name: str) -> Tensor:
        n = everything if name == "naive, all positions" else positions
        leaf = hidden[:n].clone().requires_grad_()
        if name == "chunked":
            losses = position_losses(head, leaf, targets[:n], [reference[:n]], DIVERGENCES["kl_rev"])
            nll, kl = losses.nll, losses.divergence[0]
        else:
            logp = head(leaf).log_softmax(-1)
            with torch.no_grad():
                logq = head(reference[:n]).log_softmax(-1)
            kl, nll = (logp.exp() * (logp - logq)).sum(-1), -logp.gather(-1, targets[:n, None])[:, 0]
        (nll[:positions].mean() + 0.3 * kl[:positions].mean()).backward()
        return leaf.grad

    return {name: (lambda name=name: run(name)) for name in names}


def bench_loss(sizes: LossBench) -> str:
    """Peak memory by loss and number of positions."""
    torch.set_num_threads(sizes.threads)
    lines = [surroundings(sizes), f"chunk: {default_chunk(sizes.vocab)} positions (the default, as in `heal`)"]
    for n in sizes.positions:
        unit = n * sizes.vocab * 4 / 2**20
        lines.append(f"{n} positions, unit {unit:.0f} MiB:")
        for name, cap in (("chunked", None), ("chunked", 30.0), ("naive", None), ("naive, all positions", None)):
            if name != "chunked" and n > sizes.naive_up_to:
                continue
            options = {"positions": n, "vocab": sizes.vocab, "width": sizes.width, "cap": cap, "threads": sizes.threads}
            peak = peak_fresh("loss", name, options)
            line = (
                f"  {name}{' with a soft cap' if cap else ''}: {peak['mib'] / unit:.2f} units, {peak['seconds']:.1f} s"
            )
            target = LOSS_TARGETS.get(n) if name == "chunked" and cap is None else None
            if target is not None:
                line += f"; target at most {target}: {'reached' if peak['mib'] / unit <= target else 'MISSED'}"
            lines.append(line)
    return "\n".join(lines)
