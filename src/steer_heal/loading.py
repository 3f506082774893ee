"""Reading a pretrained model from disk or the hub, with one clear line for everything that can be wrong.

Knows nothing of steering and training; `lm.load` is its only caller.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from steer_heal.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str) -> torch.device:
    """`auto` picks cuda, then mps, then cpu; an accelerator that is not there is an InputError."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device(next((d for d in ("cuda", "mps") if available[d]), "cpu"))
    kind = device.split(":")[0]
    if kind not in available:
        raise InputError(f"device {device!r} is unknown: use cpu, cuda, mps or auto")
    if not available[kind]:
        raise InputError(f"device {device!r} is not available on this machine: use --device cpu or auto")
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device, embedded: bool) -> torch.dtype | str:
    """`auto` is float32 for embedded models and on a CPU, else the dtype of the checkpoint."""
    if dtype == "auto":
        return torch.float32 if embedded or device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown: use {', '.join(DTYPES)} or auto")
    return DTYPES[dtype]


def load_pretrained(source, name: str, dtype, device: torch.device, attn: str | None, trust_remote_code: bool):
    """(model, tokenizer) of a folder or hub id, in evaluation mode on `device`; only safetensors are read."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    local = Path(source).is_dir()
    if not local and (isinstance(source, Path) or str(source).startswith((".", "/", "~")) or not _is_hub_id(name)):
        raise InputError(
            f"model {name!r} is neither embedded (pocket, tiny-random), nor a folder, nor a hub id: check the spelling"
        )
    if local and not (Path(source) / "config.json").is_file():
        raise InputError(f"model folder {name!r} has no config.json: point to a folder saved by transformers")
    shared = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **shared)
        tokenizer = AutoTokenizer.from_pretrained(source, **shared)
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, attn_implementation=attn, use_safetensors=True, **shared
        )
    except (OSError, ValueError, ImportError, KeyError) as problem:
        raise InputError(_explain(name, local, problem)) from problem
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"model {name!r} is an encoder-decoder: use a decoder-only causal language model")
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"model {name!r}: its tokenizer has {len(tokenizer)} entries but the model only {rows}: "
            "the tokenizer belongs to another model"
        )
    return model.to(device).eval(), tokenizer


def set_sampling(model, temperature: float | None, top_p: float | None) -> None:
    """Put a temperature (above 0) and a top-p (0 to 1) into the model's generation config; None keeps its own."""
    if temperature is not None and not 0 < temperature < math.inf:
        raise InputError(f"temperature {temperature}: give a number above 0, such as 0.8")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p}: give a number above 0 and at most 1, such as 0.95")
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if value is not None:
            model.generation_config.do_sample = True  # a temperature without it is refused by transformers
            setattr(model.generation_config, name, value)


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _explain(name: str, local: bool, problem: Exception) -> str:
    first = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    if local:
        return f"model folder {name!r} cannot be loaded ({first[:200]}): it needs config, safetensors and tokenizer"
    return (
        f"model {name!r} cannot be loaded from the hub ({first[:200]}): check the id and the network, or use a local "
        "folder or an embedded model (pocket, tiny-random)"
    )
