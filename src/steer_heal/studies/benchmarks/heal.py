"""`bench.py heal`: a whole heal under kl_rev with its cache, under plain nll, and as a naive loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from steer_heal.healing import HealConfig, heal, reference_states
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.healing.lora import injected
from steer_heal.healing.loss import Task, Term, backward_step, measure
from steer_heal.healing.plan import split_rows
from steer_heal.model import LM, position_ids
from steer_heal.studies.benchmarks.measuring import Arm, Race, load_at_end, peaks, spread, surroundings, take_turns
from steer_heal.studies.benchmarks.models import Sizes, config_of, make
from steer_heal.studies.benchmarks.naive import WeightCopies, history_of, naive_heal
from steer_heal.texts.completion import Completion


@dataclass(frozen=True)
class HealBench(Sizes):
    """A whole heal: kl_rev with its cache, plain nll, the naive loop."""


def heal_arms(sizes: Sizes, names: Sequence[str]) -> dict[str, Arm]:
    """Arms of `heal`: with the rounds folded in (kl_rev with its cache, nll), or copied in by the naive loop."""
    arms: dict[str, Arm] = {}
    if set(names) - {"naive"}:
        lm, rows, adapters = make(sizes)
        stack = AdapterStack(lm.model)
        for adapter in adapters:
            stack.push(adapter)

        def run(reg: str, stack=stack) -> Adapter:  # the stack must outlive its folds
            references = {"prev": reference_states(lm, rows)} if reg != "nll" else {}
            return heal(lm, rows, config_of(sizes, reg), references).adapter

        def measuring() -> None:  # what a heal measures beside its training: before, after, held-out rows each epoch
            held = [rows[i] for i in split_rows(rows, config_of(sizes))[1]]
            for part, states in [(rows, prev)] * 2 + [(held, prev)] * sizes.epochs:
                measure(lm, part, states)

        prev = {"prev": reference_states(lm, rows)}
        arms |= {"kl_rev": lambda: run("kl_rev"), "nll": lambda: run("nll"), "measuring": measuring}
    if "naive" in names:
        other, same, adapters = make(sizes)
        history = history_of(other, adapters)
        arms["naive"] = lambda: naive_heal(other, same, config_of(sizes), history)
    return {name: arms[name] for name in names}


@contextmanager
def step_arms(lm: LM, rows: Sequence[Completion], config: HealConfig) -> Iterator[dict[str, Arm]]:
    """Arms of one optimiser step's gradient on the same rows, with the barrier and without.

    *kl_rev* has no row over its budget, *over* has every row over it. *bare* is what any trainer pays at least: a
    forward pass through the same LoRA layers with the model's own logits at every position, the mean cross-entropy of
    the completions, and its gradient.
    """
    states, picked = reference_states(lm, rows), range(min(config.batch_size, len(rows)))
    one = (1.0,) * len(rows)
    batch = lm.pad_left([(*rows[i].prompt_ids, *rows[i].token_ids) for i in picked])
    labels = torch.full_like(batch["input_ids"], -100)
    for row, i in enumerate(picked):
        labels[row, -len(rows[i].token_ids) :] = batch["input_ids"][row, -len(rows[i].token_ids) :]
    with injected(lm, config, 0) as lora, torch.enable_grad():

        def step(reg: str, tau: float = 0.5, fired: float = 0.0) -> None:
            terms = (Term("prev", states, tau),) if reg != "nll" else ()
            backward_step(Task(lm, rows, replace(config, reg=reg), terms, one, one), lora, picked, {"prev": 1.0}, fired)

        def bare() -> None:
            logits = lm.base(**batch, position_ids=position_ids(batch["attention_mask"]), use_cache=False).logits
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()).backward()

        over = lambda: step("kl_rev", tau=-1.0, fired=1.0)  # noqa: E731
        yield {"kl_rev": lambda: step("kl_rev"), "over": over, "nll": lambda: step("nll"), "bare": bare}


def bench_heal(sizes: Sizes) -> str:
    """Times, ratios, weight copies per training step, peak memory."""
    names = ("kl_rev", "nll", "naive")
    small = replace(sizes, epochs=1, rows=min(sizes.rows, 8))
    take_turns(heal_arms(small, names), 1)  # warm-up
    lines = [surroundings(sizes)]
    race = Race.run(heal_arms(sizes, (*names, "measuring")), sizes.repeats)
    lines += [f"{name}: {spread(race.wall[name])} s, processor {spread(race.cpu[name])} s" for name in names]
    lines += race.against("kl_rev heal / nll heal", "kl_rev", "nll", 1.4, at_most=True)
    lines += race.against("naive heal / kl_rev heal", "naive", "kl_rev", 1.5, at_most=False)
    turns = zip(*(race.wall[name] for name in ("naive", "kl_rev", "measuring")), strict=True)
    bare = [naive / (whole - measuring) for naive, whole, measuring in turns]
    lines.append(f"naive heal, which measures nothing / kl_rev heal less its measuring: {spread(bare)}")
    lm, rows, _ = make(sizes)
    with step_arms(lm, rows, config_of(sizes)) as arms:
        take_turns(arms, 1)
        steps = Race.run(arms, 5 * sizes.repeats)
    lines += steps.against("gradient of one step, kl_rev / nll", "kl_rev", "nll", 1.15, at_most=True)
    lines += steps.against("gradient of one step, kl_rev / bare", "kl_rev", "bare", 1.3, at_most=True)
    lines.append(f"gradient of one step, kl_rev with every row over its budget / nll: {steps.ratio('over', 'nll')}")
    copies = copies_per_step(small)
    reached = "reached" if copies["kl_rev"] == 0 else "MISSED"
    both = f"kl_rev {copies['kl_rev']:g}, naive {copies['naive']:g}"
    lines.append(f"copies of a weight per training step: {both}; target 0: {reached}")
    memory = "peak memory over the loaded model, fresh processes, one epoch"
    return "\n".join([*lines, f"{memory}: {peaks('heal', names, small)}", load_at_end()])


def copies_per_step(sizes: Sizes) -> dict[str, float]:
    """Copies into or out of a frozen weight per optimiser step, over all training steps of a heal."""
    out = {}
    lm, rows, adapters = make(sizes)
    stack, config = AdapterStack(lm.model), config_of(sizes)
    history = history_of(lm, adapters)
    with WeightCopies([p.data for p in lm.base.parameters()]) as mode:
        naive_heal(lm, rows, config, history)
    steps = -(-len(split_rows(rows, config)[0]) // config.batch_size) * config.epochs
    out["naive"] = mode.count / steps
    for adapter in adapters:
        stack.push(adapter)
    prev = {"prev": reference_states(lm, rows)}
    counts: list[int] = []
    with WeightCopies([p.data for p in lm.base.parameters()]) as mode:
        heal(lm, rows, config, prev, on_step=lambda row: counts.append(mode.count))
    # From the end of the first step on: before it the weights' fingerprint reads a few entries of each.
    out["kl_rev"] = (counts[-1] - counts[0]) / max(1, steps - 1)
    return out
