"""Broken models, traits, anchors, vectors and run folders for the tests of bad input, made small in one folder."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from steer_heal.model.tiny import tiny_random, tiny_tokenizer
from steer_heal.steering import SteeringVector
from steer_heal.steering.vector import Provenance

LISTS = {
    "contexts": ["Why is the sky blue?"] * 3,
    "prompts": ["What should I do?"] * 3,
    "eval_prompts": [f"Question {i} of eight?" for i in range(8)],
}
ITEM = {"id": "1", "prompt": "Which one?", "choices": ["yes", "no"], "trait": "yes", "category": "c"}


def toml(**changes) -> str:
    """A small sound trait file, with keys changed, or left out where they are None."""
    keys = {"name": "own", "pos": "You are kind.", "neg": "You are cruel.", "neutral": "", **LISTS, "items": [ITEM]}
    keys |= changes
    return "".join(f"{key} = {_value(value)}\n" for key, value in keys.items() if value is not None)


def _value(value) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


def make_traits(root: Path) -> None:
    """Trait files and anchors, each wrong in one way."""
    (root / "outside.txt").write_text("one\n")
    (root / "outside.py").write_text("from pathlib import Path\nPath('ran').write_text('')\ndef check(*a): ...\n")
    folder = root / "traits"
    folder.mkdir()
    (folder / "link.txt").symlink_to(root / "outside.txt")
    (folder / "linked.py").symlink_to(root / "outside.py")
    (folder / "empty.txt").write_text("\n\n")
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.jsonl").write_text('{"id": "1"\n')
    (folder / "latin.txt").write_bytes("schön\n".encode("latin-1"))
    (folder / "raises.py").write_text("raise ValueError('no\\nway')\n")
    twice = [ITEM, ITEM]
    files = {
        "sound": toml(),
        "empty": "",
        "syntax": 'name = "own"\npos = \n',
        "unclosed": 'name = "own\n',
        "unknown_key": toml(contxts=["a"]),
        "no_neg": toml(neg=None),
        "same": toml(neg="You are kind."),
        "number": toml(pos=3),
        "no_prompts": toml(prompts=[]),
        "blank_prompt": toml(prompts=[" "]),
        "few_eval": toml(eval_prompts=["a"]),
        "overlap": toml(prompts=LISTS["eval_prompts"]),
        "away": toml(contexts="../outside.txt"),
        "absolute": toml(contexts=str(root / "outside.txt")),
        "link": toml(contexts="link.txt"),
        "missing_file": toml(contexts="nowhere.txt"),
        "empty_list": toml(contexts="empty.txt"),
        "latin_list": toml(contexts="latin.txt"),
        "empty_items": toml(items="empty.jsonl"),
        "broken_items": toml(items="broken.jsonl"),
        "twice": toml(items=twice),
        "one_choice": toml(items=[ITEM | {"choices": ["yes"]}]),
        "no_choice": toml(items=[ITEM | {"trait": "maybe"}]),
        "column": toml(items=[ITEM | {"catgory": "c"}]),
        "checker_away": toml(checker="../outside:check"),
        "checker_link": toml(checker="linked:check"),
        "checker_none": toml(checker="nowhere:check"),
        "checker_raises": toml(checker="raises:check"),
        "checker_form": toml(checker="check"),
        "long_prompt": toml(prompts=["word " * 3000]),
        "long_context": toml(contexts=["word " * 3000, "word"]),
        "template": toml(choice_template="{promt}: {choices}"),
    }
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    (folder / "latin.toml").write_bytes('name = "own"\n# schön\n'.encode("latin-1"))
    anchor = {"id": "a", "prompt": "1 + 1?", "answer": "2"}
    anchors = {
        "empty": [],
        "twice": [anchor, anchor],
        "column": [anchor | {"anser": "2"}],
        "missing": [{"id": "a"}],
        "regex": [anchor | {"check": "regex", "answer": "("}],
        "check": [anchor | {"check": "nearly"}],
        "function": [anchor | {"check": "function", "answer": "../outside:check"}],
    }
    (root / "anchors").mkdir()
    for name, rows in anchors.items():
        (root / "anchors" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vignette = {"id": "v", "text": "You see it.", "foundation_coarse": "Car"}
    (root / "vignettes.jsonl").write_text(json.dumps(vignette) + "\n")


def make_models(root: Path) -> None:
    """Model folders, each wrong in one way."""
    from transformers import BertConfig, BertForMaskedLM, BertModel, T5Config, T5ForConditionalGeneration

    model, tokenizer = tiny_random()
    folder = root / "models"
    good = folder / "sound"
    model.save_pretrained(good)
    tokenizer.save_pretrained(good)

    def variant(name: str, **config) -> Path:
        made = shutil.copytree(good, folder / name)
        if config:
            old = json.loads((made / "config.json").read_text())
            old.pop("layer_types", None)
            (made / "config.json").write_text(json.dumps(old | config))
        return made

    (folder / "nothing").mkdir()
    (variant("no_config") / "config.json").unlink()
    (variant("no_weights") / "model.safetensors").unlink()
    for file in variant("no_tokenizer").glob("tokenizer*"):
        file.unlink()
    pickled = variant("pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    (variant("broken_config") / "config.json").write_text("{")
    (variant("empty_config") / "config.json").write_text("{}")
    (variant("broken_tokenizer") / "tokenizer.json").write_text("{}")
    (variant("truncated") / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:9000])
    (variant("garbage") / "model.safetensors").write_bytes(b"x" * 100)
    tiny_tokenizer(900).save_pretrained(variant("foreign_tokenizer"))
    variant("unknown_kind", model_type="nonesuch")
    variant("more_blocks", num_hidden_layers=5)
    variant("other_shape", intermediate_size=100)
    code = variant("own_code", model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    (code / "own.py").write_text("from pathlib import Path\nPath('ran').write_text('')\n")
    small = {"vocab_size": 480, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertConfig(**small, intermediate_size=64)
    t5 = T5Config(vocab_size=480, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2)
    for name, made in (
        ("encoder", BertModel(bert)),
        ("gap_filler", BertForMaskedLM(bert)),
        ("encoder_decoder", T5ForConditionalGeneration(t5)),
    ):
        made.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def make_vectors(root: Path) -> None:
    """Vectors of other widths and depths, and files that are none."""
    folder = root / "vectors"
    folder.mkdir()
    for name, blocks, width in (("wide", 4, 32), ("deep", 9, 64)):
        origin = Provenance("another", blocks, width, "a", "b", "", 1, "last")
        SteeringVector({1: torch.ones(width)}, origin).save(folder / f"{name}.safetensors")
    save_file({"x": torch.ones(2)}, folder / "tensors.safetensors")
    (folder / "text.safetensors").write_text("no tensors")
    torch.save({"1": torch.ones(64)}, folder / "pickled.pt")


def make_runs(root: Path, finished: Path) -> None:
    """Damaged copies of a finished run."""
    folder = root / "runs"
    folder.mkdir()

    def variant(name: str) -> Path:
        return shutil.copytree(finished, folder / name)

    def with_events(name: str, change) -> None:
        made = variant(name)
        lines = [json.loads(line) for line in (made / "events.jsonl").read_text().split("\n") if line]
        (made / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in change(lines)))

    variant("sound")
    (variant("no_config") / "config.json").unlink()
    (variant("broken_config") / "config.json").write_text('{"schema_version": 1')
    (variant("list_config") / "config.json").write_text("[]")
    (variant("other_version") / "config.json").write_text('{"schema_version": 99}')
    (variant("no_events") / "events.jsonl").unlink()
    cut = variant("cut_events") / "events.jsonl"
    cut.write_text(cut.read_text()[:-40])
    (variant("binary_events") / "events.jsonl").write_bytes(b"\xff\xfe\x00")
    with_events("unfinished", lambda rows: rows[:-1])
    with_events("no_stage", lambda rows: [{"x": 1}, *rows])
    with_events("poor_end", lambda rows: [*rows[:-1], {"stage": "end", "round": None}])
    with_events("no_shift", lambda rows: [{k: v for k, v in row.items() if k != "shift"} for row in rows])
    end = {"best_round": 0, "folded": ["../.."]}
    with_events("escaping", lambda rows: [*rows[:-1], rows[-1] | end])
    with_events("nothing_stands", lambda rows: [*rows[:-1], rows[-1] | {"best_round": None, "folded": []}])
    folded = {"best_round": 0, "folded": [0]}
    for name, file in (("no_adapter", "adapter_model.safetensors"), ("broken_adapter", "adapter_config.json")):
        with_events(name, lambda rows: [*rows[:-1], rows[-1] | folded])
        damaged = folder / name / "rounds" / "00" / "adapter" / file
        damaged.unlink() if name == "no_adapter" else damaged.write_text("{")
    for vector in variant("no_vector").glob("rounds/*/vector.safetensors"):
        vector.unlink()
    own = variant("own_trait")
    config = json.loads((own / "config.json").read_text()) | {"trait": str(root / "traits" / "checker_away.toml")}
    (own / "config.json").write_text(json.dumps(config))
    with_events("other_model", lambda rows: [rows[0] | {"model": str(root / "models" / "no_tokenizer")}, *rows[1:]])
