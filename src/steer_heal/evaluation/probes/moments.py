"""Moments of logit shifts over positions: how alike several adapters' shifts are, and how much of one is its mean.

Knows nothing of models and of what the figures are held against.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


class ShiftMoments:
    """Streaming moments of the logit shifts of several adapters, fed in chunks of positions.

    A shift is logits(with) - logits(without), mean-centred over the vocabulary, since softmax ignores a constant; for
    adapter i at position t: s_it. Only sums over positions are kept, in float64: [adapter, vocab] and
    [adapter, adapter].
    """

    def __init__(self, adapters: int, vocab: int) -> None:
        self.n, self.vocab = 0, vocab
        self.sums = torch.zeros(adapters, vocab, dtype=torch.float64)
        self.products = torch.zeros(adapters, adapters, dtype=torch.float64)
        self.deficits = torch.zeros(adapters, dtype=torch.float64)

    def add(self, shifts: Float[Tensor, "adapter position vocab"]) -> None:
        """Take in one chunk. Entries that are not finite (tokens a model forbids) count as unshifted."""
        shifts = shifts.float()
        known = shifts.isfinite()
        shifts = torch.where(known, shifts, 0.0)
        shifts = torch.where(known, shifts - shifts.sum(-1, keepdim=True) / known.sum(-1, keepdim=True), 0.0)
        self.n += shifts.shape[1]
        self.sums += shifts.sum(1).double().cpu()
        flat = shifts.flatten(1)
        self.products += (flat @ flat.T).double().cpu()
        self.deficits += entropy_deficit(shifts).sum(-1).double().cpu()

    def energy(self, i: int) -> float:
        """mean_t |s_it|^2, squared logits."""
        return self.products[i, i].item() / self.n

    def mean(self, i: int) -> Float[Tensor, " vocab"]:
        """mean_t s_it, in logits."""
        return self.sums[i] / self.n

    def cosine(self, i: int, j: int) -> float:
        """sum_t <s_it, s_jt> / sqrt(sum_t |s_it|^2 sum_t |s_jt|^2): one cosine over all positions together."""
        return (self.products[i, j] / (self.products[i, i] * self.products[j, j]).sqrt()).item()

    def rest_cosine(self, i: int, j: int) -> float | None:
        """The same after each shift's mean over positions is taken out; None where almost nothing is left."""
        means = self.sums / self.n
        rest = self.products - self.n * (means @ means.T)
        if any(rest[k, k] <= 1e-6 * self.products[k, k] for k in (i, j)):
            return None
        return (rest[i, j] / (rest[i, i] * rest[j, j]).sqrt()).item()

    def mean_share(self, i: int) -> float:
        """|mean_t s_it|^2 / mean_t |s_it|^2: 1 for a constant shift, about 1 / positions for an unrelated one."""
        return self.mean(i).square().sum().item() / self.energy(i)

    def entropy(self, i: int) -> float:
        """Entropy of softmax(mean_t s_it), nats; log(vocab) when the mean favours no token."""
        return math.log(self.vocab) - entropy_deficit(self.mean(i)).item()

    def peak_share(self, i: int) -> float:
        """(log V - H(softmax(mean shift))) / mean_t (log V - H(softmax(s_it))): 1 for a constant shift.

        The raw entropy says little: any small shift is near log V. Against the single positions' it says how much
        of their preference for particular tokens survives averaging.
        """
        own = self.deficits[i].item() / self.n
        return entropy_deficit(self.mean(i)).item() / own if own > 0 else 0.0


def entropy_deficit(shift: Float[Tensor, "*position vocab"]) -> Float[Tensor, "*position"]:
    """log V - H(softmax(shift)) = KL(softmax(shift) || uniform), nats."""
    logp = shift.log_softmax(-1)
    return math.log(shift.shape[-1]) + (logp.exp() * logp).sum(-1)
