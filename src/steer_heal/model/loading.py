"""Reading a pretrained model from disk or the hub, with one clear line for everything that can be wrong.

Knows nothing of steering and training.
"""

from __future__ import annotations

import functools
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch

from steer_heal.arguments import ELSEWHERE, checked, shortened
from steer_heal.errors import InputError
from steer_heal.model.language_model import LM, verified
from steer_heal.model.memory import LoadIn, packing
from steer_heal.model.names import check_name
from steer_heal.model.soundness import RANGES, check_files, check_numbers, check_records
from steer_heal.model.tiny import tiny_random
from steer_heal.pocket import WEIGHTS
from steer_heal.reading import from_json, read_bytes

EMBEDDED = ("pocket", "tiny-random")
HUB_TIMEOUT = 5.0
"""Seconds."""
ENCODERS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@checked
def load(
    name: Annotated[str | Path, ELSEWHERE],
    *,
    dtype: str = "auto",
    load_in: LoadIn | None = None,
    device: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    temperature: float | None = None,
    top_p: float | None = None,
) -> LM:
    """Load a causal model by name.

    Args:
        name: `pocket` (embedded), `tiny-random` (built in memory), a folder, or a hub id.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 for embedded models and on a CPU, else as stored.
        load_in: `4bit` or `8bit`: pack the linear layers with bitsandbytes while they are read (see `packing`).
        device: `cpu`, `cuda`, `mps`, or `auto`: the accelerator when there is one.
        attn_implementation: passed to transformers (`sdpa`, `eager`, `flash_attention_2`); None is its default.
        trust_remote_code: run Python code that comes with a hub model. Off unless asked for.
        temperature, top_p: of sampling, instead of those of the model's own generation config.

    Raises:
        InputError: unknown name, missing accelerator, unreachable hub, not a causal language model, no tokenizer,
            an impossible temperature or top_p, an unknown layout of blocks or head.
    """
    if not isinstance(name, str | Path):
        raise InputError(
            f"load takes a name or a folder, not {type(name).__name__}: wrap(model, tokenizer) takes a model"
        )
    name = str(name)
    where = resolve_device(device)
    dtype = resolve_dtype(dtype, where, embedded=name in EMBEDDED)
    if name == "tiny-random":
        model, tokenizer = tiny_random()
        model = model.to(where, dtype).eval() if load_in is None else _packed(model, load_in, dtype, where)
    else:
        source = WEIGHTS if name == "pocket" else name
        model, tokenizer = load_pretrained(source, name, dtype, where, attn_implementation, trust_remote_code, load_in)
    set_sampling(model, temperature, top_p)
    with usable(name):
        return verified(LM(model, tokenizer, name))  # an unsupported layout is an error here, not in a run


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
    try:
        found = torch.device(device)
    except RuntimeError as problem:
        raise InputError(f"device {device!r} is unknown: use cpu, cuda, cuda:0 and so on, mps or auto") from problem
    if kind == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r}: this machine has cuda devices 0 to {torch.cuda.device_count() - 1}")
    return found


def resolve_dtype(dtype: str, device: torch.device, embedded: bool) -> torch.dtype | str:
    """`auto` is float32 for embedded models and on a CPU, else the dtype of the checkpoint."""
    if dtype == "auto":
        return torch.float32 if embedded or device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown: use {', '.join(DTYPES)} or auto")
    return DTYPES[dtype]


def read_config(source, name: str, trust_remote_code: bool):
    """The transformers configuration of a folder or hub id.

    Raises InputError for a name that is neither, a configuration that cannot be used, and a hub out of reach.
    """
    from transformers import AutoConfig

    check_name(name)
    if Path(source).is_dir():
        check_records(Path(source), name)
    with usable(name), _without_warnings():
        config = AutoConfig.from_pretrained(_reachable(source), trust_remote_code=trust_remote_code)
    for part in (config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", ()))):
        _check_attention(getattr(part, "_attn_implementation", None), f"model {name!r}: its config.json")
    return config


def _packed(model, load_in: LoadIn, dtype, device: torch.device):
    """A model in memory with its linear layers packed, which happens only as weights are read."""
    how = packing(load_in, dtype)
    with TemporaryDirectory() as folder, _without_warnings():
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder, dtype=dtype, quantization_config=how, device_map={"": device}).eval()


def load_pretrained(
    source,
    name: str,
    dtype,
    device: torch.device,
    attn: str | None,
    trust_remote_code: bool,
    load_in: LoadIn | None = None,
):
    """(model, tokenizer) of a folder or hub id, in evaluation mode on `device`; only safetensors are read.

    Raises InputError for a model that is incomplete, of another kind, or whose tokenizer is another model's.
    """
    from transformers import AutoTokenizer

    config = read_config(source, name, trust_remote_code)
    _check_attention(attn, "--attn-implementation")
    packed = {} if load_in is None else {"quantization_config": packing(load_in, dtype), "device_map": {"": device}}
    if packed and getattr(config, "quantization_config", None) is not None:
        raise InputError(f"model {name!r} is quantised already: leave --load-in out")
    source = _reachable(source)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"model {name!r} is an encoder-decoder: use a decoder-only causal language model")
    made_as = getattr(config, "architectures", None) or ()
    if not isinstance(made_as, list | tuple):
        raise InputError(f"model {name!r}: its config has architectures {shortened(made_as)}: give a list of names")
    if made_as and all(str(kind).endswith(ENCODERS) for kind in made_as):
        raise InputError(f"model {name!r} is an encoder ({made_as[0]}): use a decoder-only causal language model")
    if Path(source).is_dir():
        check_files(Path(source), name)
        if getattr(config, "quantization_config", None) is None:
            with usable(name):
                check_numbers(Path(source), name)
    _check_plain_weights(source, name, config)
    with usable(name, attn), _without_warnings():
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        model, found = _kind(config).from_pretrained(
            source,
            config=config,
            dtype=dtype,
            attn_implementation=attn,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **packed,
        )
    if other := sorted(found["mismatched_keys"]):
        raise InputError(
            f"model {name!r}: {len(other)} weights have another shape than its config.json says (such as "
            f"{other[0][0]}): use a model and a config that belong together"
        )
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"model {name!r}: {len(missing)} weights are not in its files (such as {missing[0]}), they would be "
            "random: use a complete decoder-only causal language model"
        )
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"model {name!r}: its tokenizer has {len(tokenizer)} entries but the model only {rows}: "
            "the tokenizer belongs to another model"
        )
    return (model if packed else model.to(device)).eval(), tokenizer


def _kind(config) -> type:
    """The automatic class of a causal language model, or of one that reads pictures too, whose text part is used."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def set_sampling(model, temperature: float | None, top_p: float | None) -> None:
    """Put a temperature (above 0) and a top-p (0 to 1) into the model's generation config; None keeps its own."""
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if value is not None:
            good, wanted = RANGES[name]
            if not good(value):
                raise InputError(f"{name} {value}: give {wanted}")
            model.generation_config.do_sample = True  # a temperature without it is refused by transformers
            setattr(model.generation_config, name, float(value))


@functools.cache
def _hub_answers() -> bool:
    """Whether the hub can be reached: one request of a few seconds; its own client tries for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as problem:
        return isinstance(problem.reason, ssl.SSLError)  # somebody answered; the hub's own client knows more
    except OSError:
        return False
    except (ValueError, http.client.HTTPException) as problem:
        raise InputError(
            f"the hub cannot be asked at {constants.ENDPOINT!r} ({problem}): correct HF_ENDPOINT or the proxy"
        ) from problem
    return True


def _reachable(source):
    """A folder or hub id as it is; without network the folder that the id is cached in. OSError when it is not."""
    if Path(source).is_dir() or _hub_answers():
        return source
    from huggingface_hub import snapshot_download

    return snapshot_download(source, local_files_only=True)


@contextmanager
def usable(name: str, attn: str | None = None) -> Iterator[None]:
    """Whatever transformers makes of a model's files is an InputError: they may hold anything."""
    try:
        yield
    except InputError:
        raise
    except Exception as problem:
        if attn is not None and "attn" in str(problem):
            raise InputError(
                f"--attn-implementation {attn!r} is none that model {name!r} can use here: give eager, sdpa or, where "
                "it is installed, flash_attention_2, or leave it out"
            ) from problem
        raise InputError(_explain(name, Path(name).is_dir(), problem)) from problem


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without transformers' report of a load: what matters of it is an InputError here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_attention(attn: object, who: str) -> None:
    """A name with a slash is a kernel of the hub: native code, which would be fetched and run. Raises InputError."""
    if "/" in str(attn):
        raise InputError(f"{who} names the attention {attn!r}, which is code of the hub: give eager or sdpa")


def _check_plain_weights(source, name: str, config) -> None:
    """What transformers would read as weights are safetensors of this very model. Raises InputError.

    It would follow an index to any file, by its ending as a pickle, and an adapter's config to another model.
    """
    from transformers.utils import cached_file

    def text(file: str) -> str | None:
        path = cached_file(source, file, _raise_exceptions_for_missing_entries=False)
        return path and read_bytes(path).decode("utf-8")

    try:
        named = [getattr(config, "transformers_weights", None) or "model.safetensors"]
        adapter, index = text("adapter_config.json"), text(f"{named[0].removesuffix('.index.json')}.index.json")
        named += from_json(index)["weight_map"].values() if index else ()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        raise InputError(f"model {name!r}: its index of weights cannot be read ({problem}): save it again") from problem
    if adapter:
        raise InputError(f"model {name!r} is an adapter (adapter_config.json), no model: merge it into its base first")
    for file in named:
        if not str(file).endswith((".safetensors", ".safetensors.index.json")) or Path(file).name != file:
            raise InputError(
                f"model {name!r} names the weights {file!r}, and only safetensors beside its config.json are read: "
                "save the model as safetensors"
            )


def _explain(name: str, local: bool, problem: Exception) -> str:
    first = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
    if local:
        return f"model folder {name!r} cannot be loaded ({first[:200]}): it needs config, safetensors and tokenizer"
    offline = "an embedded model (pocket, tiny-random) or a folder"
    if not _hub_answers():
        return (
            f"model {name!r} is not on this machine and the hub cannot be reached: check the network, or work offline "
            f"with {offline}"
        )
    return f"model {name!r} cannot be loaded from the hub ({first[:200]}): check the id, or use {offline}"
