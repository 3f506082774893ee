"""`--dry-run`: what a run would do, without doing it: options, number of generations, rough time and memory.

Knows nothing of how a stage works; it counts what the configuration asks for and multiplies.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil

import torch
from rich.console import Console

from steer_heal.commands.options import console, shown
from steer_heal.config import RunConfig, idle_options
from steer_heal.config.presets import PRESETS, UNTRIED, Shape
from steer_heal.errors import InputError
from steer_heal.evaluation.anchors import Halves
from steer_heal.healing.barriers.chunked import loss_bytes
from steer_heal.healing.plan import Fit, fit
from steer_heal.ledger.clock import duration
from steer_heal.loop.gate import anchors_of
from steer_heal.model.loading import read_config, resolve_device, usable
from steer_heal.model.memory import PACKED, LoadIn, free_memory
from steer_heal.model.names import EMBEDDED
from steer_heal.pocket import WEIGHTS
from steer_heal.reading import reachable
from steer_heal.report.printing import table
from steer_heal.trait import Trait, default_trait

PROMPT_TOKENS = 100
"""Tokens of a rendered prompt, roughly."""
VLLM_PAYS = 400_000
"""Tokens without a dose from which on `--engine vllm` has paid for its start: two cores (docs/how-to/scale.md)."""
LONG = 48 * 3600.0
"""Seconds from which on the plan says that it is not meant for this machine."""
CHECKPOINTED = 4 / 3
"""Work of a training pass that recomputes its blocks, relative to one that does not."""


@dataclass(frozen=True)
class Speed:
    """A rough machine: bytes read and multiply-adds done per second, and seconds of overhead per block and pass."""

    bytes: float
    flops: float
    overhead: float


SPEEDS = {"cpu": Speed(2e10, 5e10, 1e-3), "mps": Speed(1e11, 3e12, 1e-3), "cuda": Speed(1e12, 4e13, 7e-4)}
"""Two cores of a server; a laptop's accelerator; a data-centre card, all far from their limits as this code is."""


@dataclass(frozen=True)
class Work:
    """Replies of one stage, at least and at most over the whole run, and their longest length in tokens."""

    stage: str
    least: int
    most: int
    tokens: int


def count(config: RunConfig, trait: Trait, tasks: Halves) -> list[Work]:
    """What a resolved run samples, stage by stage; controls repeat all but the baselines three times."""
    runs = 4 if config.controls == "all" else 1
    rounds, length = config.n_rounds * runs, config.max_new_tokens
    enough = ceil(config.n_min / config.walk_batch) * config.walk_batch
    replayed = ceil(config.replay / max(1e-9, 1 - config.replay - config.replay_anchors) * config.n_min)
    measured = 2 + 2 * rounds
    anchors = len(tasks.counted) * (1 + rounds) + len(tasks.replayed)
    anchors += len(tasks.not_replayed(trait.anchors)) * measured
    work = [
        Work("calibrate the filter", *[24 if config.fast_dev_run else 192] * 2, length),
        Work("find the dose", *[(8 if config.fast_dev_run else 32) * rounds if config.target_kl else 0] * 2, length),
        Work("walk-C, steered", enough * rounds, config.walk_batches * config.walk_batch * rounds, length),
        Work("replay rows", replayed * rounds, replayed * rounds, length),
        Work(f"evaluate, {measured} models", *[config.eval_replies * measured] * 2, length),
        Work("anchors", *[anchors] * 2, min(length, 16)),
    ]
    return [one for one in work if one.most]


def seconds(config: RunConfig, work: list[Work], shape: Shape, speed: Speed, fit: Fit, most: bool) -> float:
    """Rough duration: passes of decoding, and training on as many rows as the walk has to bank."""
    decoding = 0.0
    for one in work:
        replies, batch = (one.most if most else one.least), 128
        full = ceil(replies / batch)
        per_pass = max(shape.parameters * _item(config) / speed.bytes, shape.blocks * speed.overhead)
        arithmetic = 2 * shape.parameters * replies / max(full, 1) / speed.flops
        decoding += full * one.tokens * (per_pass + arithmetic)
    rounds = config.n_rounds * (4 if config.controls == "all" else 1)
    rows = config.n_min * (2 if most else 1) + config.accumulate
    tokens = rows * (PROMPT_TOKENS + config.max_new_tokens)
    factor = CHECKPOINTED if fit.checkpointing else 1
    passes = rows * config.epochs / fit.rows * 3 * shape.blocks * speed.overhead
    training = tokens * shape.parameters * (6 * config.epochs * factor + 4) / speed.flops + passes
    return decoding + rounds * training


def memory(config: RunConfig, shape: Shape, free: float) -> tuple[dict[str, float], Fit]:
    """Rough bytes: weights, adapter with its optimiser, training activations, and the cache of 8 replies.

    Beside them how a heal's steps fit what is free.
    """
    item, length = _item(config), PROMPT_TOKENS + config.max_new_tokens
    weights = stored_weights(shape, item, config.load_in)
    adapted = shape.blocks * (config.lora_layers[1] - config.lora_layers[0]) + 1
    block = length * shape.width * 34 * item / 2  # Korthikanti et al. 2022 (2205.05198), attention scores not kept
    kept, recomputed = shape.blocks * block, shape.blocks * block / 17 + block
    parts = {
        "weights": weights,
        "original weights of adapted blocks": 0 if config.load_in else weights * min(1.0, adapted / shape.blocks),
        "adapter and optimiser": 4 * 4 * config.rank * 21 * shape.width * adapted,
        "sampling 8 replies": 8 * 2 * shape.blocks * shape.kv_width * item * length + 8 * 8 * shape.vocabulary,
    }
    held = sum(parts.values()) - parts["sampling 8 replies"]
    chosen = fit(config, kept, recomputed, free - held, shape.vocabulary)
    per_row = recomputed if chosen.checkpointing else kept
    return parts | {"training": chosen.rows * per_row + loss_bytes(chosen.chunk, shape.vocabulary)}, chosen


def check_out(out: str) -> None:
    """Raises InputError for an output folder that cannot be made, as far as can be told without making it."""
    path = reachable(out).absolute()
    there = next(one for one in (path, *path.parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"output folder {out!r} cannot be written ({there} stands there): choose another with --out")


def stored_weights(shape: Shape, item: int, load_in: LoadIn | None) -> float:
    """Bytes of a model's weights: packed, all but an embedding of `item` bytes a number are half a byte or one."""
    if load_in is None:
        return shape.parameters * item
    embedding = shape.vocabulary * shape.width
    return embedding * item + (shape.parameters - embedding) * PACKED[load_in]


def show(config: RunConfig, preset: str | None, topics: Mapping[str, Sequence[str]]) -> int:
    """Print the plan of a run; nothing is loaded but the trait and sizes. Raises InputError as the run would.

    `topics` says which options are shown together, by name.
    """
    out = console(120)
    config, device = config.resolved(), resolve_device(config.device).type
    trait = Trait.load(config.trait or default_trait(config.model_name))
    check_out(config.out)
    work = count(config, trait, anchors_of(config, trait))
    shape = shape_of(config.model_name)
    if config.max_new_tokens >= shape.context:
        what = f"the context of {config.model_name} has {shape.context}"
        raise InputError(f"--max-new-tokens {config.max_new_tokens}: {what}, and the prompts need room too: lower it")
    if config.rank > shape.width:
        raise InputError(f"--rank {config.rank}: the model has a width of {shape.width}, give at most that")
    options = {**asdict(config), "model": config.model_name, "trait": trait.name, "reg": config.reg_name}
    for topic, names in topics.items():
        values = [f"{name} {shown(options[name])}" for name in names if options.get(name) is not None]
        if values:
            out.print(f"{topic}: {', '.join(values)}")
    if preset:
        out.print(f"preset {preset}: {UNTRIED}; {PRESETS[preset].note}")
    for line in idle_options(config):
        out.print(f"! {line}", style="yellow")
    columns = ["replies to sample", "at least", "at most", "tokens each, at most"]
    out.print(table("", columns, [[w.stage, str(w.least), str(w.most), str(w.tokens)] for w in work]))
    questions = sum(min(len(some), config.eval_items or len(some)) for some in (trait.items, trait.off_target))
    low, high = (sum(getattr(w, end) for w in work) for end in ("least", "most"))
    out.print(f"In all {low} to {high} generations, and {questions} forced-choice items in each order for every model.")
    plain = sum(w.most * w.tokens for w in work if config.texts == "own" or not w.stage.startswith("walk"))
    if config.engine == "transformers" and plain > VLLM_PAYS:
        out.print(f"Up to {plain:,} tokens are sampled without a dose: --engine vllm pays from about {VLLM_PAYS:,} on.")
    _print_estimate(out, config, work, shape, device)
    out.print("Nothing was run or written.")
    return 0


def _print_estimate(out: Console, config: RunConfig, work: list[Work], shape: Shape, device: str) -> None:
    speed = SPEEDS[device]
    free = free_memory(device)
    parts, chosen = memory(config, shape, free)
    low, high = (seconds(config, work, shape, speed, chosen, most) for most in (False, True))
    if high > LONG:
        out.print(f"That is no job for a {device}: use an accelerator or a smaller model.")
    out.print(
        f"Time on {device}: about {duration(low)} to {duration(high)} for {shape.parameters:.3g} parameters; rough, "
        "wrong by a factor of 3 either way: no machine was measured."
    )
    total = sum(parts.values())
    out.print(
        f"Memory: about {total / 1e9:.2g} GB ("
        + ", ".join(f"{name} {value / 1e9:.2g}" for name, value in parts.items())
        + "); sampling takes more rows where more is free."
    )
    out.print(
        f"A heal will have gradient checkpointing {'on' if chosen.checkpointing else 'off'}, {chosen.rows} rows in a "
        f"pass and {chosen.chunk} positions of its loss at a time, by what is free when it begins."
    )
    stored = {how or "as it is": stored_weights(shape, _item(config), how) for how in (None, *PACKED)}
    out.print(
        "Weights by --load-in: "
        + ", ".join(f"{how} {size / 1e9:.2g} GB" for how, size in stored.items())
        + f"; {free / 1e9:.2g} GB are free here. A run with --load-in keeps its adapters beside the weights, unfolded."
    )
    if total > free:
        less = ["--gradient-checkpointing auto"] if config.gradient_checkpointing == "off" else []
        less += [f"--load-in {how}" for how in PACKED if config.load_in is None]
        out.print(f"! {total / 1e9:.2g} GB do not fit: try {', '.join(less) or 'a smaller model'}.", style="yellow")


def _item(config: RunConfig) -> int:
    """Bytes per weight."""
    embedded = config.model_name in EMBEDDED
    if config.dtype == "auto":
        return 4 if embedded or resolve_device(config.device).type == "cpu" else 2
    return 4 if config.dtype == "float32" else 2


def shape_of(name: str) -> Shape:
    """Sizes of an embedded model, a folder, a preset's model, or a hub id, whose configuration is fetched.

    No weight is read. Raises InputError for a name that cannot be loaded.
    """
    for preset in PRESETS.values():
        if preset.options["model"] == name:
            return preset.shape
    if name == "tiny-random":
        from steer_heal.model.tiny import tiny_random

        return _counted(tiny_random()[0])
    config = read_config(WEIGHTS if name == "pocket" else name, name, trust_remote_code=False)
    from transformers import AutoModelForCausalLM

    with usable(name), torch.device("meta"):
        return _counted(AutoModelForCausalLM.from_config(config))


def _counted(model: torch.nn.Module) -> Shape:
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    parameters = sum(p.numel() for p in model.parameters())
    context = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
    return Shape(parameters, config.num_hidden_layers, config.hidden_size, heads * head_dim, config.vocab_size, context)
