"""What heal and bake cost, as ratios within one run: `uv run python scripts/bench.py heal` (or `bake`, `loss-memory`).

    uv run python scripts/bench.py heal                    # kl_rev against plain nll and against a naive loop
    uv run python scripts/bench.py bake                    # a forward pass with three rounds baked in, or copied in
    uv run python scripts/bench.py loss-memory --positions 256 1024

Arms take turns (A B C A B C ...); a ratio is that of neighbours, shown as median (min to max). Peak memory is read in
a fresh process per arm. A target that is missed is said to be missed. Models are random and built in memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal

import torch
import tyro
from torch import Tensor, nn

from steer_heal.adapter import Adapter
from steer_heal.bake import AdapterStack
from steer_heal.barriers import DIVERGENCES, default_chunk, position_losses
from steer_heal.benchmarks.naive import WeightCopies, copied_in, history_of, naive_heal
from steer_heal.completion import Completion
from steer_heal.healing import HealConfig, heal, reference_states
from steer_heal.healing.lora import linear_names
from steer_heal.healing.loss import measure
from steer_heal.healing.plan import split_rows
from steer_heal.lm import LM, Head
from steer_heal.tiny import tiny_tokenizer


@dataclass(frozen=True)
class Sizes:
    """Model and data; the defaults are those the targets are stated for."""

    family: Literal["qwen3", "llama"] = "qwen3"
    """Architecture of the random model, float32."""
    layers: int = 12
    """Decoder blocks."""
    width: int = 512
    """Hidden width; the feed-forward part is 2.75 times as wide."""
    vocab: int = 32_000
    """Vocabulary of the model."""
    rows: int = 16
    """Completions; an eighth is held out, as by default."""
    prompt: int = 32
    """Prompt tokens."""
    reply: int = 96
    """Longest completion in tokens; lengths are spread evenly from a third of it."""
    rounds: int = 3
    """Rounds baked in before."""
    epochs: int = 6
    """Epochs of a heal."""
    repeats: int = 3
    """Turns of every arm."""
    threads: int = 2
    """CPU threads of torch."""


def config_of(sizes: Sizes, reg: str = "kl_rev") -> HealConfig:
    """Defaults, with tau 0 so that the barrier acts at every step."""
    return HealConfig(reg=reg, tau=0.0, epochs=sizes.epochs)


def make(sizes: Sizes) -> tuple[LM, list[Completion], list[Adapter]]:
    """A random model, completions of random tokens, and the adapters of the rounds before; always the same."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.set_num_threads(sizes.threads)
    torch.manual_seed(0)
    config = CONFIG_MAPPING[sizes.family](
        vocab_size=sizes.vocab, hidden_size=sizes.width, intermediate_size=11 * sizes.width // 4,
        num_hidden_layers=sizes.layers, num_attention_heads=8, num_key_value_heads=8, head_dim=sizes.width // 8,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    lm = LM(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), tiny_tokenizer(), sizes.family)
    rows = []
    for i in range(sizes.rows):
        n = max(2, round(sizes.reply * (1 + 2 * i / max(1, sizes.rows - 1)) / 3))
        ids = torch.randint(4, sizes.vocab, (sizes.prompt + n,)).tolist()
        rows.append(Completion(f"{i}", None, tuple(ids[: sizes.prompt]), tuple(ids[sizes.prompt :]), "", True))
    return lm, rows, [random_adapter(lm) for _ in range(sizes.rounds)]


def random_adapter(lm: LM) -> Adapter:
    """An adapter of the default shape whose delta is about a hundredth of the weights."""
    config, a, b = HealConfig(), {}, {}
    for name in linear_names(lm, config.lora_layers):
        out, width = lm.base.get_submodule(name).weight.shape
        a[name] = (torch.rand(config.rank, width) * 2 - 1) / width**0.5
        b[name] = torch.randn(out, config.rank) * 2e-4
    return Adapter(a, b, config.rank, config.alpha, lm.name)


# ---------------------------------------------------------------- what runs, by arm

Arm = Callable[[], object]


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
            for part, states in [(rows, prev)] * 2 + [(held, {})] * sizes.epochs:
                measure(lm, part, states)

        prev = {"prev": reference_states(lm, rows)}
        arms |= {"kl_rev": lambda: run("kl_rev"), "nll": lambda: run("nll"), "measuring": measuring}
    if "naive" in names:
        other, same, adapters = make(sizes)
        history = history_of(other, adapters)
        arms["naive"] = lambda: naive_heal(other, same, config_of(sizes), history)
    return {name: arms[name] for name in names}


def bake_arms(sizes: Sizes, names: Sequence[str]) -> dict[str, Arm]:
    """Arms of `bake`: twelve forward passes of one completion, plain, with baked rounds, and with copied-in rounds."""
    arms: dict[str, Arm] = {}
    for name in names:
        lm, rows, adapters = make(sizes)
        ids = torch.tensor([[*rows[-1].prompt_ids, *rows[-1].token_ids]])
        stack = AdapterStack(lm.model)
        for adapter in adapters if name == "baked" else ():
            stack.push(adapter)
        history = history_of(lm, adapters) if name == "copied" else {}

        @torch.no_grad()
        def run(lm=lm, ids=ids, history=history, stack=stack) -> None:
            for _ in range(12):
                with copied_in(lm, history):
                    lm.base(input_ids=ids, use_cache=False)

        arms[name] = run
    return arms


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


# ---------------------------------------------------------------- measuring


def status(key: str) -> float:
    """A line of /proc/self/status in MiB (VmRSS: resident now, VmHWM: peak)."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))


def peak_here(arm: Arm) -> dict[str, float]:
    """Extra resident memory at the peak of one run of the arm, in MiB, and its seconds."""
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # the peak is from now on
    started = time.perf_counter()
    arm()
    return {"mib": status("VmHWM") - before, "seconds": time.perf_counter() - started}


def peak_fresh(kind: str, name: str, options: Mapping) -> dict[str, float]:
    """`peak_here` of one arm in a process of its own."""
    command = [sys.executable, __file__, "--peak", kind, name, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind} {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


Seconds = dict[str, list[float]]


def take_turns(arms: Mapping[str, Arm], repeats: int) -> tuple[Seconds, Seconds]:
    """Seconds of each arm by the wall clock and of the processor (all threads), in turns."""
    wall, cpu = ({name: [] for name in arms} for _ in range(2))
    for _ in range(repeats):
        for name, arm in arms.items():
            started = time.perf_counter(), time.process_time()
            arm()
            wall[name].append(time.perf_counter() - started[0])
            cpu[name].append(time.process_time() - started[1])
    return wall, cpu


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median (min to max)."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratio(seconds: Seconds, top: str, bottom: str) -> list[float]:
    """Ratios of neighbours."""
    return [a / b for a, b in zip(seconds[top], seconds[bottom], strict=True)]


def against(what: str, values: Sequence[float], target: float, at_most: bool) -> str:
    """One line: the ratio, its target, and whether the median reaches it."""
    reached = median(values) <= target if at_most else median(values) >= target
    side = "at most" if at_most else "at least"
    return f"{what}: {spread(values)}; target {side} {target}: {'reached' if reached else 'MISSED'}"


def surroundings(sizes: object) -> str:
    """What the figures were measured on; other processes' load shows in the load average."""
    where = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}"
    return f"{sizes}\n{where}, torch {torch.__version__}"


# ---------------------------------------------------------------- the three benches


@dataclass(frozen=True)
class HealBench(Sizes):
    """A whole heal: kl_rev with its cache, plain nll, the naive loop."""


@dataclass(frozen=True)
class BakeBench(Sizes):
    """A forward pass: pristine weights, rounds baked in, rounds copied in and out around it; push and pop."""


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


def bench_heal(sizes: Sizes) -> str:
    """Times, ratios, weight copies per training step, peak memory."""
    names = ("kl_rev", "nll", "naive")
    small = Sizes(**{**asdict(sizes), "epochs": 1, "rows": min(sizes.rows, 8)})
    take_turns(heal_arms(small, names), 1)  # warm-up
    start = surroundings(sizes)
    wall, cpu = take_turns(heal_arms(sizes, (*names, "measuring")), sizes.repeats)
    lines = [start, *(f"{name}: {spread(wall[name])} s, processor {spread(cpu[name])} s" for name in names)]
    targets = (("kl_rev", "nll", 1.4, True), ("naive", "kl_rev", 1.5, False))
    for top, bottom, target, at_most in targets:
        lines.append(against(f"{top} heal / {bottom} heal", ratio(wall, top, bottom), target, at_most))
        lines.append(f"  the same in processor seconds: {spread(ratio(cpu, top, bottom))}")
    bare = [n / (k - m) for n, k, m in zip(wall["naive"], wall["kl_rev"], wall["measuring"], strict=True)]
    lines.append(f"naive heal, which measures nothing / kl_rev heal less its measuring: {spread(bare)}")
    copies = copies_per_step(small)
    reached = "reached" if copies["kl_rev"] == 0 else "MISSED"
    both = f"kl_rev {copies['kl_rev']:g}, naive {copies['naive']:g}"
    lines.append(f"copies of a weight per training step: {both}; target 0: {reached}")
    peaks = {name: peak_fresh("heal", name, asdict(small)) for name in names}
    shown = ", ".join(f"{name} {peak['mib']:.0f} MiB" for name, peak in peaks.items())
    lines.append(f"peak memory over the loaded model, fresh processes, one epoch: {shown}")
    return "\n".join([*lines, f"load average at the end {os.getloadavg()[0]:.1f}"])


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


def bench_bake(sizes: Sizes) -> str:
    """Times and ratios of forward passes, peak memory, and what push and pop take."""
    names = ("plain", "baked", "copied")
    arms = bake_arms(sizes, names)
    take_turns(arms, 1)
    start = surroundings(sizes)
    wall, cpu = take_turns(arms, sizes.repeats)
    lines = [start, *(f"{name}, 12 forward passes: {spread(wall[name])} s" for name in names)]
    for top, bottom, what in (("baked", "plain", "1 is free"), ("copied", "baked", "copied in and out around each")):
        values, cpus = spread(ratio(wall, top, bottom)), spread(ratio(cpu, top, bottom))
        lines.append(f"{top} / {bottom} ({what}): {values}; in processor seconds {cpus}")
    lm, _, adapters = make(sizes)
    before = {name: p.detach().clone() for name, p in lm.base.named_parameters()}
    stack = AdapterStack(lm.model)
    left = iter(adapters)
    pushes = take_turns({"": lambda: stack.push(next(left))}, len(adapters))[0][""]
    pops = take_turns({"": stack.pop}, len(adapters))[0][""]
    same = all(torch.equal(before[name], p) for name, p in lm.base.named_parameters())
    lines.append(
        f"push {spread(pushes)} s, pop {spread(pops)} s; original weights back bit for bit: {'yes' if same else 'NO'}"
    )
    peaks = {name: peak_fresh("bake", name, asdict(sizes)) for name in names}
    shown = ", ".join(f"{name} {peak['mib']:.0f} MiB" for name, peak in peaks.items())
    lines.append(f"peak memory over the prepared model, fresh processes: {shown}")
    return "\n".join([*lines, f"load average at the end {os.getloadavg()[0]:.1f}"])


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


LOSS_TARGETS = {256: 0.9, 1024: 0.25}
"""Units at a vocabulary of 262,144, by positions."""


def peak_main(kind: str, name: str, options: str) -> None:
    """The fresh process of `peak_fresh`: prepare one arm, run it once, print its figures."""
    chosen = json.loads(options)
    if kind == "loss":
        torch.set_num_threads(chosen.pop("threads"))
        arms = loss_arms(**chosen, names=[name])
    else:
        arms = {"heal": heal_arms, "bake": bake_arms}[kind](Sizes(**chosen), [name])
    print(json.dumps(peak_here(arms[name])))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and print one bench."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["--peak"]:
        return peak_main(*argv[1:])
    benches = {"heal": HealBench, "bake": BakeBench, "loss-memory": LossBench}
    chosen = tyro.extras.subcommand_cli_from_dict(benches, args=argv)
    run = {HealBench: bench_heal, BakeBench: bench_bake, LossBench: bench_loss}[type(chosen)]
    print(run(chosen), flush=True)


if __name__ == "__main__":
    main()
