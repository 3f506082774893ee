"""Measures a probe: held-out completions under each adapter in turn; and what is new in the weights themselves.

Knows nothing of how an adapter was trained and of rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steer_heal.errors import InputError
from steer_heal.evaluation.probes.figures import Probe
from steer_heal.evaluation.probes.moments import ShiftMoments
from steer_heal.healing import ReferenceStates, reference_states
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.healing.barriers import default_chunk
from steer_heal.model import LM
from steer_heal.model.structure import full_weight
from steer_heal.statistics import paired_difference
from steer_heal.texts.completion import Completion

INTRUDER_COSINE = 0.6
"""A leading direction of the changed weight is new when no direction of the original is nearer than this."""


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
    hidden = {name: states[name].rows_of(heldout) for name in ("base", *names)}
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
        positions=moments.n,
        vocab=vocab,
        cosine=moments.cosine(0, 1),
        rest_cosine=moments.rest_cosine(0, 1),
        mean_share=moments.mean_share(0),
        entropy=moments.entropy(0),
        peak_share=moments.peak_share(0),
        size=math.sqrt(moments.energy(0) / vocab),
        nll={name: sum(rows) / len(rows) for name, rows in by_row.items()},
        gain=paired_difference(by_row["real"], by_row["base"], prompts),
        lead=paired_difference(by_row["real"], by_row["shuffled"], prompts),
        unsteered_cosine=moments.cosine(0, 2) if "unsteered" in names else None,
        weight_cosines=dict(weight_cosines or {}),
    )


@torch.no_grad()
def intruder_directions(
    weight: Float[Tensor, "*expert rows columns"],
    delta: Float[Tensor, "*expert rows columns"],
    top: int = 10,
    limit: float = INTRUDER_COSINE,
) -> int:
    """How many of the `top` left singular vectors of weight + delta (each expert's) are like none of the weight's own.

    Like none: the largest |cosine| with any left singular vector of `weight` is under `limit` (Shuttleworth et al.
    2024, "LoRA vs full fine-tuning: an illusion of equivalence", arXiv 2410.21228, on forgetting). With nearly equal
    singular values the vectors of a weight are arbitrary, so compare adapters of one model only.
    """
    own = torch.linalg.svd(weight.float(), full_matrices=False).U
    new = torch.linalg.svd(weight.float() + delta.to(weight.device).float(), full_matrices=False).U[..., :top]
    nearest = (own.mT @ new).abs().amax(-2)
    return int((nearest < limit).sum())


def intruders(lm: LM, stack: AdapterStack, adapter: Adapter, top: int = 10) -> dict[str, int]:
    """`intruder_directions` of an adapter's modules against the original weights, by module name."""
    with stack.unfolded():
        return {
            name: intruder_directions(full_weight(lm.base, name), adapter.delta(name), top) for name in adapter.modules
        }
