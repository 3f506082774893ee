"""What a heal learns from at a position: the teacher's distribution, tempered and masked, and how far the student is.

Knows nothing of completions, budgets and LoRA; it sees log-probabilities. Sources: generalised distillation on own
samples (GKD, arXiv 2306.13649), logits beyond the teacher's (ExOPD, arXiv 2602.12125), the plausibility mask of
contrastive decoding (arXiv 2210.15097).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steer_heal.errors import InputError
from steer_heal.healing.barriers.divergences import Divergence, resolve_reg
from steer_heal.healing.config import HealConfig, target_beta
from steer_heal.healing.references import ReferenceStates
from steer_heal.model import Head
from steer_heal.texts.completion import Completion


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher of a heal's rows, and the rule by which its distribution becomes the target.

    Attributes:
        states: of the teacher at every completion position: the student under the vector at the row's dose, the
            original model, or the model under a persona; each row may have another.
        plain: of the student before the heal; the teacher's gain is counted from it. None where nothing is tempered.
        divergence: what is minimised. strength, plausibility: see `tempered`. token_weight: see `mixed`.
        temperature: see `flattened`; above 1 it keeps the entropy that a reverse KL takes.
    """

    states: ReferenceStates
    plain: ReferenceStates | None
    divergence: Divergence
    strength: float = 1.0
    plausibility: float = 0.0
    token_weight: float = 0.0
    temperature: float = 1.0

    def at(self, completions: Sequence[Completion]) -> Target:
        """The target at the positions of some completions, row by row."""
        states = self.states.rows_of(completions)
        plain = self.plain.rows_of(completions) if self.plain else None
        # The original model gives coherence back on rows of its own: it is taught as it is.
        own = [[c.origin != "base"] for c in completions for _ in c.token_ids]
        bent = torch.tensor(own, device=states.device)
        return Target(states, plain, self.divergence, bent, self.strength, self.plausibility, self.temperature)

    def mixed(
        self, nll: Float[Tensor, " completion"], divergence: Float[Tensor, " completion"]
    ) -> Float[Tensor, " completion"]:
        """What a completion costs: token_weight * nll + (1 - token_weight) * divergence from the target, nats."""
        return self.token_weight * nll + (1 - self.token_weight) * divergence


@dataclass(frozen=True)
class Target:
    """The target at the positions of a batch, as `position_losses` asks for it chunk by chunk."""

    states: Float[Tensor, "position width"]
    plain: Float[Tensor, "position width"] | None
    divergence: Divergence
    bent: Bool[Tensor, "position 1"]
    strength: float
    plausibility: float
    temperature: float

    def log_probabilities(self, head: Head, part: slice) -> Float[Tensor, "position vocab"]:
        """log q at some of the positions."""
        logp = bent = head(self.states[part]).log_softmax(-1)
        if self.plain is not None:
            bent = tempered(bent, head(self.plain[part]).log_softmax(-1), self.strength, self.plausibility)
        if self.temperature != 1:
            bent = flattened(bent, self.temperature)
        return logp if bent is logp else torch.where(self.bent[part], bent, logp)


def make_teacher(config: HealConfig, states: ReferenceStates, plain: ReferenceStates | None) -> Teacher:
    """The teacher that a heal's configuration asks for. InputError where tempering lacks the plain model's states."""
    bent = config.target_strength != 1 or config.target_plausibility > 0
    if bent and plain is None:
        raise InputError(
            "target_strength and target_plausibility count the teacher's gain from the student before the heal: pass "
            "references={'prev': reference_states(lm, completions)}"
        )
    return Teacher(
        states,
        plain if bent else None,
        resolve_target(config.target_divergence, int(config.target_top_k)),
        config.target_strength,
        config.target_plausibility,
        config.token_weight,
        config.target_temperature,
    )


def tempered(
    logp_teacher: Float[Tensor, "position vocab"],
    logp_plain: Float[Tensor, "position vocab"],
    strength: Float[Tensor, "position 1"] | float = 1.0,
    plausibility: float = 0.0,
) -> Float[Tensor, "position vocab"]:
    """Log-probabilities of the target q, with log q = log p_0 + strength * (log p_T - log p_0), normalised.

    Args:
        logp_teacher: of the steered (or prompted) model, log p_T. logp_plain: of the same model left alone, log p_0.
        strength: lam_T; 0 is the plain model, 1 the teacher, between them the teacher's gain in part, above it more.
        plausibility: a in 0..1; a token with p_0 under a times the likeliest one's loses what the teacher adds.

    Tokens that the plain model excludes (log p_0 = -inf) have the teacher's probability and no gain to temper.
    """
    gain = torch.nan_to_num(logp_teacher - logp_plain, nan=0.0, posinf=0.0, neginf=-math.inf)
    if plausibility:
        least = logp_plain.amax(-1, keepdim=True) + math.log(plausibility)
        gain = torch.where(logp_plain < least, gain.clamp(max=0.0), gain)
    start = torch.where(logp_plain.isfinite(), logp_plain, logp_teacher)
    return (start + strength * gain).log_softmax(-1)


PLAUSIBLE = 0.05
"""A token with this share of the likeliest one's probability is an alternative to it; below, it may be noise."""


def flattened(logp: Float[Tensor, "position vocab"], temperature: float) -> Float[Tensor, "position vocab"]:
    """Log-probabilities divided by a temperature among the plausible tokens, whose mass they share anew.

    The others keep theirs: a flatter tail is what makes hot text unsound, and a token that cannot come yet, the end of
    the reply among them, must not come because of it (the rule of min-p sampling, arXiv 2407.01082, at `PLAUSIBLE`).
    """
    inside = logp >= logp.amax(-1, keepdim=True) + math.log(PLAUSIBLE)
    mass = logp.masked_fill(~inside, -math.inf).logsumexp(-1, keepdim=True)
    flat = (logp / temperature).masked_fill(~inside, -math.inf).log_softmax(-1) + mass
    return torch.where(inside, flat, logp)


def jensen_shannon(beta: float) -> Divergence:
    """beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p; p the student, q the teacher; nats.

    At most -beta log beta - (1 - beta) log(1 - beta) nats, however far apart the two are. beta near 0 behaves like
    beta KL(teacher || student), near 1 like (1 - beta) KL(student || teacher) (GKD, section 3).
    """
    log_beta, log_rest = math.log(beta), math.log1p(-beta)

    def parts(logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        middle = torch.logaddexp(logq + log_beta, logp + log_rest)
        ours, theirs = (torch.nan_to_num(x - middle, nan=0.0, neginf=0.0) for x in (logp, logq))
        return ours, beta * (logq.exp() * theirs).sum(-1) + (1 - beta) * (logp.exp() * ours).sum(-1)

    def value(logp: Tensor, logq: Tensor) -> Tensor:
        return parts(logp, logq)[1]

    def gradient(logp: Tensor, p: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
        """d / d logit_v = (1 - beta) p_v (log p_v / m_v - KL(p || m)): what m changes cancels in the sum."""
        ours, values = parts(logp, logq)
        inner = ours - (p * ours).sum(-1, keepdim=True)
        return values, (1 - beta) * p * inner

    return Divergence(f"jsd:{beta:g}", value, gradient)


def resolve_target(name: str, top_k: int = 0) -> Divergence:
    """The divergence between student and target that a heal minimises.

    Args:
        name: `reverse` = KL(student || target), `forward` = KL(target || student), `jsd:BETA` with 0 < BETA < 1.
        top_k: the target's k likeliest tokens and one bucket for all others (reverse and forward); 0: all tokens.

    Raises InputError for an unknown name, a BETA outside 0..1, and top-k of a Jensen-Shannon divergence.
    """
    beta = target_beta(name)
    if beta is None:
        return resolve_reg({"reverse": "kl_rev", "forward": "kl_fwd"}[name], top_k)
    if top_k:
        raise InputError(f"target divergence {name!r} cannot be truncated: set the target's top-k to 0")
    return jensen_shannon(beta)
