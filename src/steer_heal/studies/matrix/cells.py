"""The heals of a matrix: within a seed all share the kept rows, the held-out prompts and the initial adapter.

Knows nothing of tables. Held-out nll is measured on REAL pairs, whatever a cell trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from steer_heal.evaluation.probes import Probe, probe
from steer_heal.healing import HealConfig, heal, reference_states
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.loss import measure
from steer_heal.loop.steps import shuffled_pairs
from steer_heal.studies.material import Material, split_by_prompt
from steer_heal.texts.generation import derive_seed, generate

PAIRS = ("real", "shuffled", "unsteered")


@dataclass(frozen=True)
class Cell:
    """One heal, measured on held-out real pairs.

    Attributes:
        nll, kl: per completion, nats per token; kl is KL(student||base).
        fired: share of training rows over the budget, None without a barrier.
        replies: (prompt, greedy reply) of held-out prompts, for reading.
    """

    pairs: str
    barrier: str
    seed: int
    nll: Sequence[float]
    kl: Sequence[float]
    fired: float | None
    adapter: Adapter
    replies: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Column:
    """One seed: its held-out prompts, nll before any heal, and the cells by (pairs, barrier)."""

    seed: int
    n_train: int
    prompts: Sequence[object]
    base: Sequence[float]
    cells: Mapping[tuple[str, str], Cell]
    probes: Mapping[str, Probe]


def barriers(config: HealConfig, reg: str, tau: float, lams: Sequence[float]) -> dict[str, HealConfig]:
    """Heal settings by name: off, then one per lam. No rows are held out by the heal: the study has its own."""
    config = replace(config, heldout=0.0, tau_rel=None, reference="prev", lam_mode="constant")
    named = {"off": replace(config, reg="nll")}
    for lam in lams:
        named[f"lam {lam:g}"] = replace(config, reg=reg, lam=lam, tau=tau)
    return named


def column(
    material: Material, seed: int, *, reg: str, tau: float, lams: Sequence[float], heldout_share: float, show: int
) -> Column:
    """All heals of one seed and the probes between them.

    Args:
        seed: of split, shuffle and initial adapter.
        reg, tau, lams: the barrier where it is on, its budget in nats, its weights.
        heldout_share: of the rows, by whole prompts, that no cell trains on.
        show: held-out prompts that every cell answers greedily.
    """
    lm, config = material.lm, material.config
    same = {"system": material.trait.neutral, "max_new_tokens": config.max_new_tokens}
    train, heldout = split_by_prompt(material.rows, heldout_share, derive_seed(seed, "split"))
    prompts = [row.prompt for row in train]
    unsteered = generate(lm, prompts, seed=derive_seed(seed, "unsteered"), origin="control", **same)
    data = {"real": train, "shuffled": shuffled_pairs(train, derive_seed(seed, "pairs")), "unsteered": unsteered}
    seeded = config.heal_config(derive_seed(seed, "heal") % 2**31)
    settings = barriers(replace(seeded, targets="tokens"), reg, tau, lams)  # pairs are torn in the tokens
    states = reference_states(lm, heldout)
    base = measure(lm, heldout, {})["nll"]
    shown = list(dict.fromkeys(row.prompt for row in heldout))[:show]

    def cell(pairs: str, barrier: str) -> Cell:
        """Heal, measure on the held-out pairs, take the adapter out again."""
        rows = data[pairs]
        healed = heal(lm, rows, settings[barrier], {"prev": reference_states(lm, rows)})
        material.stack.push(healed.adapter)
        try:
            found = measure(lm, heldout, {"prev": states})
            replies = generate(lm, shown, greedy=True, **same) if shown else []
        finally:
            material.stack.pop()
        said = tuple((reply.prompt, reply.text) for reply in replies)
        fired = healed.figures.get("prev_fired")
        return Cell(pairs, barrier, seed, found["nll"], found["prev"], fired, healed.adapter, said)

    cells = {(pairs, barrier): cell(pairs, barrier) for barrier in settings for pairs in PAIRS}
    probes = {
        name: probe(lm, material.stack, heldout, *(cells[pairs, name].adapter for pairs in PAIRS)) for name in settings
    }
    return Column(seed, len(train), [row.prompt_ids for row in heldout], base, cells, probes)
