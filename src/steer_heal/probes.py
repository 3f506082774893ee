"""What kind of shift an adapter is: content that depends on the text, or one constant shift of the logits.

Knows nothing of how an adapter was trained and of rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steer_heal.adapter import Adapter
from steer_heal.bake import AdapterStack
from steer_heal.barriers import default_chunk
from steer_heal.completion import Completion
from steer_heal.errors import InputError
from steer_heal.healing import ReferenceStates, reference_states
from steer_heal.lm import LM
from steer_heal.statistics import Estimate, paired_difference

SAME_SHIFT = 0.98
"""Cosine from which two adapters count as one shift: under 4 % of either's energy is its own (1 - .98^2)."""
OTHER_SHIFT = 0.90
"""Cosine up to which they count as two: at least 19 % of the energy is not shared."""
CONSTANT_SHARE = 0.90
"""Share of the shift (of its energy, of its peakedness) from which its mean over positions is nearly all of it."""
VARIED_SHARE = 0.50
"""Share up to which at least half of the shift depends on the text."""
SAME_GAIN = 0.05
"""Part of the real pairs' gain in nll that shuffled pairs may miss and still count as equal to them."""
INTRUDER_COSINE = 0.6
"""A leading direction of the changed weight is new when no direction of the original is nearer than this."""


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


@dataclass(frozen=True)
class Sign:
    """One figure's word on the question: `constant`, `content` or `open`, and the figure in plain words."""

    says: str
    text: str


@dataclass(frozen=True)
class Probe:
    """Figures of a real adapter beside one trained on shuffled pairs, on held-out completions of real pairs.

    Attributes:
        positions, vocab: completion positions measured, size of the vocabulary.
        cosine: between the two adapters' logit shifts, all positions together.
        rest_cosine: the same without the shifts' means; None where a shift is all mean.
        mean_share: share of the real adapter's shift (energy) that its mean over positions explains.
        entropy: of softmax(mean shift) in nats, to be read against log(vocab).
        peak_share: how much of the single positions' peakedness the mean shift keeps.
        size: root mean square of the real adapter's shift per token, in logits.
        nll: token-mean nll of the held-out completions by state (`base`, `real`, `shuffled`, `unsteered`), nats.
        gain: nll base - real, `lead`: nll shuffled - real; nats, paired, clustered by prompt.
        unsteered_cosine: between the shifts of the real adapter and of one trained on unsteered text; None without.
        weight_cosines: cosine of the adapters' deltas with the real one's, by name; empty for states without adapters.
    """

    positions: int
    vocab: int
    cosine: float
    rest_cosine: float | None
    mean_share: float
    entropy: float
    peak_share: float
    size: float
    nll: Mapping[str, float]
    gain: Estimate
    lead: Estimate
    unsteered_cosine: float | None
    weight_cosines: Mapping[str, float]

    @property
    def log_vocab(self) -> float:
        """log V, nats: the entropy of a mean shift that favours no token."""
        return math.log(self.vocab)

    @property
    def signs(self) -> tuple[Sign, ...]:
        """What each figure says."""
        found = [
            Sign(_high(self.cosine, SAME_SHIFT, OTHER_SHIFT), f"cosine to the shuffled-pairs shift {self.cosine:+.3f}"),
            Sign(
                _high(self.mean_share, CONSTANT_SHARE, VARIED_SHARE),
                f"the mean over positions explains {self.mean_share:.0%} of the shift",
            ),
            Sign(
                _high(self.peak_share, CONSTANT_SHARE, VARIED_SHARE),
                f"entropy of softmax(mean shift) {self.entropy:.3f} of {self.log_vocab:.3f} nats: the mean keeps "
                f"{self.peak_share:.0%} of the single positions' peakedness",
            ),
            Sign(self._nll_says(), f"held-out nll: real better than base by {self.gain}, than shuffled by {self.lead}"),
        ]
        if self.unsteered_cosine is not None:
            says = _high(self.unsteered_cosine, SAME_SHIFT, OTHER_SHIFT)
            found.append(Sign(says, f"cosine to the unsteered run's shift {self.unsteered_cosine:+.3f}"))
        return tuple(found)

    def _nll_says(self) -> str:
        if not self.gain.low > 0:
            return "open"  # nothing was learnt that held-out text could show
        allowed = SAME_GAIN * self.gain.value
        if self.lead.high <= allowed:
            return "constant"
        return "content" if self.lead.low > 0 and self.lead.value > allowed else "open"

    @property
    def verdict(self) -> str:
        """`content-free` when every figure says constant; `content` when nll says content and none constant."""
        says = [sign.says for sign in self.signs]
        if all(word == "constant" for word in says):
            return "content-free"
        return "content" if self._nll_says() == "content" and "constant" not in says else "mixed"

    @property
    def text(self) -> str:
        """The verdict in one paragraph, every figure with what it says."""
        meaning = {
            "content-free": "one constant shift of the logits: shuffled pairs give the same",
            "content": "the effect depends on the text, and real pairs teach what shuffled ones cannot",
            "mixed": "the figures do not agree",
        }[self.verdict]
        parts = "; ".join(f"{sign.text} ({sign.says})" for sign in self.signs)
        missing = "" if self.unsteered_cosine is not None else " No unsteered run was compared."
        return f"{self.verdict}: {meaning}. {parts}.{missing}"


def _high(value: float, constant: float, content: float) -> str:
    return "constant" if value >= constant else "content" if value <= content else "open"


def probe(
    lm: LM,
    stack: AdapterStack,
    heldout: Sequence[Completion],
    real: Adapter,
    shuffled: Adapter,
    unsteered: Adapter | None = None,
) -> Probe:
    """Compare adapters of one student on held-out completions, teacher-forced; the stack is afterwards as it was.

    Args:
        stack: the student's stack as it stood before these adapters.
        heldout: completions behind their own prompts; none of them trained any of the adapters.
        real, shuffled: trained on the pairs as they were, and on replies behind other rows' prompts.
        unsteered: trained on the model's own unsteered text: what self-training does anyway.
    """
    adapters = {"real": real, "shuffled": shuffled, **({"unsteered": unsteered} if unsteered is not None else {})}
    states = {"base": reference_states(lm, heldout)}
    for name, adapter in adapters.items():
        stack.push(adapter)
        try:
            states[name] = reference_states(lm, heldout)
        finally:
            stack.pop()
    cosines = {name: real.cosine(adapter) for name, adapter in adapters.items() if name != "real"}
    return probe_states(lm, heldout, states, cosines)


@torch.no_grad()
def probe_states(
    lm: LM,
    heldout: Sequence[Completion],
    states: Mapping[str, ReferenceStates],
    weight_cosines: Mapping[str, float] | None = None,
    chunk: int | None = None,
) -> Probe:
    """The same from hidden states by name: `base`, `real`, `shuffled`, and `unsteered` if there is one.

    The head runs over `chunk` positions at a time; no [positions, vocab] tensor of all positions exists. Raises
    InputError when a state is missing or leaves every logit as it was.
    """
    names = [name for name in ("real", "shuffled", "unsteered") if name in states]
    if "base" not in states or names[:2] != ["real", "shuffled"]:
        raise InputError("a probe needs the states of base, real and shuffled: compute them with reference_states")
    vocab = lm.head.linear.weight.shape[0]
    hidden = {name: torch.cat([states[name].of(c) for c in heldout]) for name in ("base", *names)}
    targets = torch.tensor([t for c in heldout for t in c.token_ids], device=hidden["base"].device)
    moments = ShiftMoments(len(names), vocab)
    nll = {name: torch.empty(len(targets)) for name in hidden}
    chunk = chunk or default_chunk(vocab * len(hidden))
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        logits = {name: lm.head(rows[part]) for name, rows in hidden.items()}
        moments.add(torch.stack([logits[name] - logits["base"] for name in names]))
        for name, values in logits.items():
            logp = values.gather(-1, targets[part, None])[:, 0] - values.logsumexp(-1)
            nll[name][part] = -logp.cpu()
    for i, name in enumerate(names):
        if moments.energy(i) == 0:
            raise InputError(f"the {name} adapter changes no logit on the held-out completions: there is no shift")
    lengths = [len(c.token_ids) for c in heldout]
    by_row = {name: [row.mean().item() for row in values.split(lengths)] for name, values in nll.items()}
    prompts = [c.prompt_ids for c in heldout]
    return Probe(
        positions=moments.n, vocab=vocab, cosine=moments.cosine(0, 1), rest_cosine=moments.rest_cosine(0, 1),
        mean_share=moments.mean_share(0), entropy=moments.entropy(0), peak_share=moments.peak_share(0),
        size=math.sqrt(moments.energy(0) / vocab),
        nll={name: sum(rows) / len(rows) for name, rows in by_row.items()},
        gain=paired_difference(by_row["real"], by_row["base"], prompts),
        lead=paired_difference(by_row["real"], by_row["shuffled"], prompts),
        unsteered_cosine=moments.cosine(0, 2) if "unsteered" in names else None,
        weight_cosines=dict(weight_cosines or {}),
    )  # fmt: skip


@torch.no_grad()
def intruder_directions(
    weight: Float[Tensor, "rows columns"],
    delta: Float[Tensor, "rows columns"],
    top: int = 10,
    limit: float = INTRUDER_COSINE,
) -> int:
    """How many of the `top` left singular vectors of weight + delta are like none of the weight's own.

    Like none: the largest |cosine| with any left singular vector of `weight` is under `limit` (Shuttleworth et al.
    2024, "LoRA vs full fine-tuning: an illusion of equivalence", arXiv 2410.21228, on forgetting). With nearly equal
    singular values the vectors of a weight are arbitrary, so compare adapters of one model only.
    """
    own = torch.linalg.svd(weight.float(), full_matrices=False).U
    new = torch.linalg.svd(weight.float() + delta.to(weight.device).float(), full_matrices=False).U[:, :top]
    nearest = (own.T @ new).abs().amax(0)
    return int((nearest < limit).sum())


def intruders(lm: LM, stack: AdapterStack, adapter: Adapter, top: int = 10) -> dict[str, int]:
    """`intruder_directions` of an adapter's modules against the original weights, by module name."""
    with stack.unfolded():
        return {
            name: intruder_directions(lm.base.get_submodule(name).weight, adapter.delta(name), top)
            for name in adapter.modules
        }
