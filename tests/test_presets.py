"""Every preset end to end on a tiny random model of its model's family, tokenizer and template; and its resume."""

import json
from pathlib import Path

import published
import pytest
import torch
from resume_runs import mini_trait

from steer_heal.commands.run import main, parsed
from steer_heal.config.presets import PRESETS
from steer_heal.healing.adapter import Adapter
from steer_heal.ledger import Ledger, plain
from steer_heal.loop import steps
from steer_heal.model import LM
from steer_heal.model.depth import pick_layers
from steer_heal.steering import SteeringVector

pytestmark = pytest.mark.usefixtures("undrawn")

FAST = ["--fast-dev-run", "--n-rounds", "1", "--filter", "none", "--gate", "watch", "--quiet"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with the stand-in of each preset's model."""
    folder = tmp_path_factory.mktemp("models")
    for name in PRESETS:
        published.save(name, folder / name)
    return folder


def words(name: str, models: Path, out: Path) -> list[str]:
    given = ["--preset", name, "--model", str(models / name), "--trait", str(mini_trait(out)), "--out", str(out)]
    return [*given, *FAST]


def folder_of(out: Path) -> Path:
    (folder,) = [path.parent for path in out.glob("*/config.json")]
    return folder


OTHERS = [name for name in PRESETS if name != "llama-3.1-8b"]  # the one with accumulated gradients and checkpoints


@pytest.mark.parametrize("name", ["llama-3.1-8b", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_preset_runs_through_every_stage(name, models, tmp_path, monkeypatch):
    seen, real = [], steps.heal_rows

    def watched(run, number, vector, walk, rows):
        healed = real(run, number, vector, walk, rows)
        seen.append((run.lm, len(rows), healed))
        return healed

    monkeypatch.setattr(steps, "heal_rows", watched)
    assert main([*words(name, models, tmp_path), "--max-new-tokens", "8", "--walk-batch", "8"]) in (0, 3)
    ((lm, rows, healed),) = seen
    ledger, options = Ledger.open(folder_of(tmp_path)), PRESETS[name].options
    as_they_are = options.keys() - {"model", "max_new_tokens", "walk_batch"}  # sizes are cut down
    assert {key: ledger.config[key] for key in as_they_are} == plain({key: options[key] for key in as_they_are})
    assert lm.dtype == torch.bfloat16 and len(lm.blocks) == 6
    vector = SteeringVector.load(ledger.folder / "rounds" / "00" / "vector.safetensors")
    assert vector.layers == pick_layers(options["layers"], 6)
    per_step = options["batch_size"] * options.get("grad_accum", 1)
    assert healed.figures["steps"] == -(-(rows - rows // 8) // per_step) * ledger.config["epochs"]
    adapter = Adapter.load(ledger.folder / "rounds" / "00" / "adapter")
    assert all(lm.blocks_path in target and "vision" not in target for target in adapter.b)
    assert all(b.abs().max() > 0 for b in adapter.b.values())


@pytest.mark.parametrize("name", PRESETS)
def test_the_stand_in_has_what_is_peculiar_to_the_published_model(name, models):
    import steer_heal.model

    lm: LM = steer_heal.model.load(str(models / name))
    shown = lm.tokenizer.decode(lm.chat_ids("Hi there.", "Be kind."))
    begins, user = {
        "gemma-3-4b": ("<bos><start_of_turn>user\nBe kind.\n\nHi there.<end_of_turn>", "<start_of_turn>model\n"),
        "qwen3-0.6b": ("<|im_start|>system\nBe kind.<|im_end|>", "<|im_start|>assistant\n"),
        "llama-3.1-8b": ("<|begin_of_text|><|start_header_id|>system", "assistant<|end_header_id|>\n\n"),
    }[name]
    assert shown.startswith(begins) and shown.endswith(user) and shown.count(lm.tokenizer.bos_token or "\0") <= 1
    assert (
        len(lm.eos_ids) >= 2 and json.loads((models / name / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"
    )


def test_a_preset_is_what_the_command_line_resolves_to(models, tmp_path):
    for name, preset in PRESETS.items():
        config = parsed(["--preset", name], "steer-heal run").config()
        assert {key: getattr(config, key) for key in preset.options} == dict(preset.options)


def test_a_run_goes_on_with_its_own_preset_and_no_other(models, tmp_path, capsys, monkeypatch):
    given = words("qwen3-0.6b", models, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "heal_rows", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(given) == 130
    capsys.readouterr()
    folder = folder_of(tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    for other, expected in (
        (["--preset", "gemma-3-4b", "--model", str(models / "qwen3-0.6b")], "--preset gemma-3-4b (--batch-size 4)"),
        (["--preset", "qwen3-0.6b"], "--preset qwen3-0.6b (--model Qwen/Qwen3-0.6B)"),
        (["--preset", "qwen3-0.6b", "--model", str(models / "qwen3-0.6b"), "--batch-size", "3"], "--batch-size 3"),
    ):
        assert main(["--resume", str(folder), *other]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and expected in said and "was started with" in said
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    assert after == before
    assert main(
        ["--resume", str(folder), "--preset", "qwen3-0.6b", "--model", str(models / "qwen3-0.6b"), "--quiet"]
    ) in (0, 3)
