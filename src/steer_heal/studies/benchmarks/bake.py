"""`bench.py bake`: a forward pass with rounds baked in, copied in around it or exported; what push and pop take."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.studies.benchmarks.measuring import Arm, Race, load_at_end, peaks, spread, surroundings, take_turns
from steer_heal.studies.benchmarks.models import Sizes, make
from steer_heal.studies.benchmarks.naive import copied_in, history_of


@dataclass(frozen=True)
class BakeBench(Sizes):
    """A forward pass: pristine weights, rounds baked in, copied in and out around it, exported; push and pop."""


def bake_arms(sizes: Sizes, names: Sequence[str]) -> dict[str, Arm]:
    """Arms of `bake`: twelve forward passes of one completion, plain or with rounds baked, copied in or exported."""
    from peft import PeftModel

    arms: dict[str, Arm] = {}
    for name in names:
        lm, rows, adapters = make(sizes)
        ids = torch.tensor([[*rows[-1].prompt_ids, *rows[-1].token_ids]])
        stack = AdapterStack(lm.model)
        if name in ("baked", "exported"):
            stack.push(joined(adapters))
        if name == "exported":
            with tempfile.TemporaryDirectory() as folder:
                whole = stack.concatenated()
                while len(stack):
                    stack.pop()
                whole.save(folder)
                PeftModel.from_pretrained(lm.base, folder)  # puts its layers into the model that it is given
        history = history_of(lm, [joined(adapters)]) if name == "copied" else {}

        @torch.no_grad()
        def run(lm=lm, ids=ids, history=history, stack=stack) -> None:
            for _ in range(12):
                with copied_in(lm, history):
                    lm.base(input_ids=ids, use_cache=False)

        arms[name] = run
    return arms


def joined(adapters: Sequence[Adapter]) -> Adapter:
    """Rounds as one adapter, whose delta is their sum: to push them one by one takes the square of their number."""
    a = {name: torch.cat([one.a[name] for one in adapters]) for name in adapters[0].a}
    b = {name: torch.cat([one.scaling * one.b[name] for one in adapters], dim=1) for name in adapters[0].b}
    rank = sum(one.rank for one in adapters)
    return Adapter(a, b, rank, float(rank), adapters[0].base_model)


def bench_bake(sizes: Sizes) -> str:
    """Times and ratios of forward passes, peak memory, and what push and pop take."""
    names = ("plain", "baked", "copied", "exported")
    arms = bake_arms(sizes, names)
    take_turns(arms, 1)
    lines = [surroundings(sizes)]
    race = Race.run(arms, sizes.repeats)
    lines += [f"{name}, 12 forward passes: {spread(race.wall[name])} s" for name in names]
    lines.append(f"baked / plain (1 is free): {race.ratio('baked', 'plain')}")
    lines.append(f"copied / baked (copied in and out around each): {race.ratio('copied', 'baked')}")
    lines += race.against(f"exported adapter of {sizes.rounds} rounds / baked", "exported", "baked", 2.0, at_most=True)
    lm, _, adapters = make(sizes)
    before = {name: p.detach().clone() for name, p in lm.base.named_parameters()}
    stack = AdapterStack(lm.model)
    left, some = iter(adapters), min(3, len(adapters))
    pushes = take_turns({"": lambda: stack.push(next(left))}, some)[0][""]
    pops = take_turns({"": stack.pop}, some)[0][""]
    same = all(torch.equal(before[name], p) for name, p in lm.base.named_parameters())
    back = f"original weights back bit for bit: {'yes' if same else 'NO'}"
    lines.append(f"the first {some} rounds: push {spread(pushes)} s, pop {spread(pops)} s; {back}")
    lines.append(f"peak memory over the prepared model, fresh processes: {peaks('bake', names, sizes)}")
    return "\n".join([*lines, load_at_end()])
