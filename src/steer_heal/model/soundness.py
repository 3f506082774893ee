"""What may be wrong with a model: its files, and where transformers took them, weights, settings and chat template.

Knows nothing of steering and training. Every complaint is an InputError with the model's name.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import nn

from steer_heal.arguments import fits, shortened
from steer_heal.errors import InputError
from steer_heal.model.chat import render, shown_turns
from steer_heal.model.structure import is_quantised, unpacked
from steer_heal.reading import from_json, read_bytes

RANGES = {
    "temperature": (lambda x: 0 < x <= 1e6, "a number above 0 such as 0.8"),
    "top_p": (lambda x: 0 < x <= 1, "a share above 0 and at most 1"),
    "top_k": (lambda x: x >= 0 and float(x).is_integer(), "a number of tokens"),
    "min_p": (lambda x: 0 <= x < 1, "a share from 0 to below 1"),
}
SET_HERE = ("repetition_penalty", "max_length", "max_new_tokens", "do_sample")
"""Settings of a generation config that sampling sets itself."""
HARMLESS = ("cache", "compile", "transformers_version", "_from_model_config")
"""Parts of the names of settings that change no token."""
ALWAYS = ("max_time", "stop_strings", "prompt_lookup_num_tokens", "penalty_alpha")
"""Settings that change replies whatever their value; others do nothing at 0 and 1."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "tekken.json")
VOCABULARIES = ("tokenizer.json", "vocab.json")
"""Large files, which the tokenizer reads strictly itself."""
SAID = "qzx"
"""A word that no chat template says of itself."""


def check_model(model: nn.Module, tokenizer: object, name: str) -> None:
    """Raises InputError for weights that are no finite numbers, and an unfit generation config or chat template."""
    packed = {id(m.weight): m for m in model.modules() if is_quantised(m)}
    for weight, values in model.named_parameters():
        layer = packed.get(id(values))  # whole numbers are always finite, their scales may not be
        if not bool((values if layer is None else unpacked(layer)).isfinite().all()):
            raise InputError(f"model {name!r}: its weight {weight} is not finite (nan or inf): save a sound one")
    check_generation(model, name)
    try:
        model.config.validate()
    except Exception as problem:  # whatever class of error its validators raise
        raise InputError(f"model {name!r}: its config.json does not hold together ({problem}): correct it") from problem
    if shown_turns_differ(tokenizer):
        raise InputError(f"model {name!r}: its chat template writes another prompt each time: take out what is random")
    if not render(tokenizer, SAID, None):
        raise InputError(f"model {name!r}: its tokenizer makes nothing of a word: use the model's own")
    if getattr(tokenizer, "chat_template", None) is not None:
        asked = shown_turns(tokenizer, [{"role": "user", "content": SAID}])
        if SAID not in asked:
            raise InputError(f"model {name!r}: its chat template does not show what the user says: correct it")


def shown_turns_differ(tokenizer: object) -> bool:
    """Whether a chat template writes the same turns otherwise when it is asked again."""
    if getattr(tokenizer, "chat_template", None) is None:
        return False
    return len({shown_turns(tokenizer, [{"role": "user", "content": SAID}]) for _ in range(4)}) > 1


def check_generation(model: nn.Module, name: str) -> None:
    """Raises InputError for a setting that cannot be, or that would sample in another way than the method knows."""
    from transformers import GenerationConfig

    known = vars(GenerationConfig())
    config, rows = model.generation_config, model.get_input_embeddings().num_embeddings
    where, remedy = f"model {name!r}: its generation config has", "change it in generation_config.json"
    for key, value in vars(config).items():
        if value is None or value is False:
            continue
        if key in RANGES:
            good, wanted = RANGES[key]
            sampled = key != "temperature" or isinstance(value, float) or value == 1  # transformers takes no other 2
            if not (fits(value, float) and good(value) and sampled):
                raise InputError(f"{where} {key} {shortened(value)} and not {wanted}: {remedy}")
        elif key in ("eos_token_id", "pad_token_id", "bos_token_id"):
            tokens = value if isinstance(value, (list, tuple)) else [value]
            if not all(fits(token, int) and -1 <= token < rows for token in tokens):
                raise InputError(f"{where} {key} {shortened(value)}, tokens are 0 to {rows - 1}: {remedy}")
        elif key in known and key not in SET_HERE and not any(part in key for part in HARMLESS):
            idle = key not in ALWAYS and not isinstance(value, bool) and value in (0, 1)
            if not idle:
                raise InputError(f"{where} {key} {shortened(value)}, and replies are sampled without it: {remedy}")


def check_records(folder: Path, name: str) -> None:
    """What describes a model is whole: transformers would pass over a damaged file, or wait on a pipe. InputError."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".jinja", ".safetensors"):
            continue
        if not path.is_file():
            raise InputError(f"model folder {name!r}: {path.name!r} is no file: take it out, or save the model again")
        if path.suffix == ".json" and path.name not in VOCABULARIES:
            try:
                whole = isinstance(from_json(read_bytes(path)), dict)
            except ValueError:
                whole = False
            if not whole:
                raise InputError(f"model folder {name!r}: {path.name} is not a valid JSON object: save the model again")


def check_files(folder: Path, name: str) -> None:
    """A folder has weights in safetensors and a tokenizer. Raises InputError."""
    if not any(folder.glob("*.safetensors")):
        pickled = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLED]
        found = f"only {pickled[0]}, and pickled weights are never read" if pickled else "no weights"
        raise InputError(f"model folder {name!r} holds {found}: save the model as safetensors")
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise InputError(
            f"model folder {name!r} has no tokenizer (none of {', '.join(TOKENIZERS)}): save it beside the model"
        )


def check_numbers(folder: Path, name: str) -> None:
    """Raises InputError for weights stored as whole numbers, which would be read as others."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                kind = tensors.get_slice(key).get_dtype()
                if key.endswith("weight") and "F" not in kind:
                    raise InputError(f"model folder {name!r}: its weight {key} is of {kind}, no floating point numbers")
