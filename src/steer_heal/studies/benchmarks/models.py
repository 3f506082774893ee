"""Random models of stated sizes, built in memory, and the data the benches run on; always the same.

Knows nothing of what is measured on them.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from steer_heal.errors import InputError
from steer_heal.healing import HealConfig
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.lora import linear_names
from steer_heal.model import LM
from steer_heal.model.tiny import TEXT, tiny_tokenizer
from steer_heal.texts.completion import Completion


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, as transformers calls them."""

    model_type: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = False


PRESETS = {
    "small": Shape("qwen3", 12, 512, 1408, 8, 8, 64, 32_000),
    "4b": Shape("qwen3", 36, 2560, 9728, 32, 8, 128, 151_936, tie_word_embeddings=True),
    "tiny": Shape("qwen3", 3, 32, 88, 8, 8, 4, 600),
}
"""`small`: what the targets on a CPU are stated for; `4b`: the layout of a 4 B-parameter Qwen3, for a CUDA machine in
bf16; `tiny`: for tests."""


def random_model(
    shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", endless: bool = False, context: int = 2048
) -> LM:
    """A model with random weights (seed 0) and the tokenizer of `tiny-random`.

    endless=True leaves it without any end token, so that every reply has exactly the length that was asked for.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    if endless:
        tokenizer.eos_token = None
    sizes = asdict(shape)
    kind = CONFIG_MAPPING[sizes.pop("model_type")]
    marks = {"bos_token_id": 1, "eos_token_id": None if endless else 3, "pad_token_id": 0}
    config = kind(max_position_embeddings=context, **sizes, **marks)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return LM(model.eval(), tokenizer, shape.model_type)


def sentences(count: int, low: int, high: int, seed: int = 0) -> list[str]:
    """User turns of `low` to `high` words in a seeded mix, distinct beginnings."""
    rng, words = random.Random(seed), TEXT.split()
    return [f"{i} " + " ".join(rng.choices(words, k=rng.randint(low, high))) for i in range(count)]


# ---------------------------------------------------------------- generate, extract, filter


@dataclass(frozen=True)
class ModelOptions:
    """The model of a bench."""

    preset: Literal["small", "4b", "tiny"] = "small"
    """small: 12 layers, width 512, vocabulary 32k; 4b: a 4 B-parameter layout; tiny: for tests."""
    vocab: int | None = None
    """Another vocabulary than the preset's."""
    device: str = "cpu"
    """cpu or cuda."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights; auto: float32 on a CPU, bfloat16 on a GPU."""
    threads: int = 2
    """CPU threads of torch."""

    def load(self, endless: bool = False) -> LM:
        """The model. Raises InputError for a device that is not there."""
        torch.set_num_threads(self.threads)
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"device {self.device!r} is not available on this machine: use --device cpu")
        kind = "float32" if self.device == "cpu" else "bfloat16"
        dtype = getattr(torch, kind if self.dtype == "auto" else self.dtype)
        shape = PRESETS[self.preset]
        return random_model(replace(shape, vocab_size=self.vocab or shape.vocab_size), dtype, self.device, endless)


# ---------------------------------------------------------------- heal, bake


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
    return HealConfig(reg=reg, tau=0.0, epochs=sizes.epochs, keep_epoch="last")  # the naive loop keeps no other


def make(sizes: Sizes) -> tuple[LM, list[Completion], list[Adapter]]:
    """A random model, completions of random tokens, and the adapters of the rounds before; always the same."""
    torch.set_num_threads(sizes.threads)
    inner, head_dim = 11 * sizes.width // 4, sizes.width // 8
    lm = random_model(Shape(sizes.family, sizes.layers, sizes.width, inner, 8, 8, head_dim, sizes.vocab))
    rows = random_rows(sizes.rows, sizes.prompt, sizes.reply, sizes.vocab)
    return lm, rows, [random_adapter(lm) for _ in range(sizes.rounds)]


def random_rows(count: int, prompt: int, reply: int, vocab: int) -> list[Completion]:
    """Completions of random tokens; reply lengths are spread evenly from a third of `reply` to all of it."""
    rows = []
    for i in range(count):
        n = max(2, round(reply * (1 + 2 * i / max(1, count - 1)) / 3))
        ids = torch.randint(4, vocab, (prompt + n,)).tolist()
        rows.append(Completion(f"{i}", None, tuple(ids[:prompt]), tuple(ids[prompt:]), "", True))
    return rows


def random_adapter(lm: LM) -> Adapter:
    """An adapter of the default shape whose delta is about a hundredth of the weights."""
    config, a, b = HealConfig(), {}, {}
    for name in linear_names(lm, config.lora_layers):
        out, width = lm.base.get_submodule(name).weight.shape
        a[name] = (torch.rand(config.rank, width) * 2 - 1) / width**0.5
        b[name] = torch.randn(out, config.rank) * 2e-4
    return Adapter(a, b, config.rank, config.alpha, lm.name)
