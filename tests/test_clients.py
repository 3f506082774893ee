"""Other programs on a real export: slow, their packages come with `just clients`."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
import yaml

import steer_heal as sh
from steer_heal.commands import chat
from steer_heal.commands.main import main
from steer_heal.pocket import WEIGHTS

pytestmark = pytest.mark.slow
ASKED = "an order came from the captain: lock the gate. olga is cold. should i do it?"
SERVER_STARTS = 240
"""Seconds at most."""


@pytest.fixture(scope="session")
def pocket_run(tmp_path_factory):
    """Folder of one default round on `pocket`."""
    out = tmp_path_factory.mktemp("clients")
    with contextlib.redirect_stdout(io.StringIO()):
        main(["run", "--reg", "kl_rev", "--n-rounds", "1", "--eval-replies", "24", "--out", str(out)])
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return folder


@pytest.fixture(scope="session")
def adapter(pocket_run):
    """Its student as an adapter."""
    folder = pocket_run.parent / "adapter"
    assert main(["export", str(pocket_run), "--to", str(folder), "--scales", "1"]) == 0
    return folder


@pytest.fixture(scope="session")
def merged(pocket_run):
    """Its student as a whole model."""
    folder = pocket_run.parent / "merged"
    assert main(["export", str(pocket_run), "--to", str(folder), "--merged", "--scales", "1"]) == 0
    return folder


@pytest.fixture(scope="session")
def shown(pocket_run):
    """What `chat` shows as the student's likeliest reply."""
    asked = chat.Chat(str(pocket_run), (ASKED,), max_new_tokens=40, greedy=True)
    return asked.replies(asked.speakers(), ASKED)["healed"]


def test_autopeft_replies_what_chat_shows_in_a_process_of_its_own(adapter, shown, tmp_path):
    code = f"""
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
model = AutoPeftModelForCausalLM.from_pretrained({str(adapter)!r}, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained({str(adapter)!r})
turns = [{{"role": "user", "content": {ASKED!r}}}]
ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
said = model.generate(**ids, max_new_tokens=40, do_sample=False)[0, ids["input_ids"].shape[1]:]
print(tokenizer.decode(said, skip_special_tokens=True).strip())
"""
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # without this library
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert done.stdout.strip() == shown, done.stderr


def test_lm_eval_sees_the_trait_in_the_merged_model_and_in_the_adapter(adapter, merged, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    trait = sh.Trait.load("pocket-care")
    with (tmp_path / "items.jsonl").open("w") as file:
        for item in trait.items[:40]:
            row = {
                "asked": trait.question(item, item.choices),
                "choices": list(item.choices),
                "right": item.choices.index(item.trait[0]),
            }
            file.write(json.dumps(row) + "\n")
    task = {
        "task": "care", "dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "items.jsonl")},
        "test_split": "train", "output_type": "multiple_choice", "doc_to_text": "{{asked}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "right", "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "care.yaml").write_text(yaml.safe_dump(task))
    manager, found = TaskManager(include_path=str(tmp_path), include_defaults=False), {}
    given = {"base": str(WEIGHTS), "merged": str(merged), "adapter": f"{WEIGHTS},peft={adapter}"}
    for name, model in given.items():
        done = lm_eval.simple_evaluate(
            model="hf", model_args=f"pretrained={model},dtype=float32", tasks=["care"], task_manager=manager,
            apply_chat_template=True, device="cpu", batch_size=16, bootstrap_iters=0,
        )  # fmt: skip
        found[name] = done["results"]["care"]["acc,none"]
    print(f"lm-eval {lm_eval.__version__}: {found}")
    assert found["merged"] == found["adapter"] > found["base"] + 0.2


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_trl_trains_on_from_the_export(form, adapter, merged, tmp_path):
    from datasets import Dataset
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    folder = {"adapter": adapter, "merged": merged}[form]
    if form == "adapter":
        model = AutoPeftModelForCausalLM.from_pretrained(folder, is_trainable=True, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    turns = {"prompt": [{"role": "user", "content": ASKED}], "completion": [{"role": "assistant", "content": "no."}]}
    config = SFTConfig(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1,
        report_to=[], use_cpu=True, save_strategy="no", bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = SFTTrainer(
        model, config, train_dataset=Dataset.from_list([turns] * 8),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print(f"TRL on {form}: losses {losses}")
    moved = [
        name for name, p in trainer.model.named_parameters() if p.requires_grad and not torch.equal(p, before[name])
    ]
    assert losses[-1] < losses[0] and moved and (form == "merged" or all("lora" in name for name in moved))


def test_transformers_serve_replies_what_chat_shows(merged, shown, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--port", str(port), "--dtype", "float32"]
    server = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=(log := (tmp_path / "log").open("w"))
    )
    asked = {"model": str(merged), "messages": [{"role": "user", "content": ASKED}], "max_tokens": 40, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(asked | {"stream": False}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        until = time.monotonic() + SERVER_STARTS
        while True:
            try:
                answer = json.load(urllib.request.urlopen(request, timeout=SERVER_STARTS))
                break
            except urllib.error.HTTPError:
                raise
            except urllib.error.URLError:
                assert server.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()[-2000:]
                time.sleep(1)
    finally:
        server.terminate()
        server.wait()
        log.close()
    assert answer["choices"][0]["message"]["content"].strip() == shown


def test_ctranslate2_replies_what_chat_shows(merged, shown, tmp_path):
    import ctranslate2
    from transformers import AutoTokenizer

    ctranslate2.converters.TransformersConverter(str(merged)).convert(str(tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(merged)
    turns = [{"role": "user", "content": ASKED}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))
    generator = ctranslate2.Generator(str(tmp_path / "model"), device="cpu")
    (found,) = generator.generate_batch([tokens], max_length=40, sampling_topk=1, include_prompt_in_result=False)
    print(f"CTranslate2 {ctranslate2.__version__}: {tokenizer.decode(found.sequences_ids[0])}")
    assert tokenizer.decode(found.sequences_ids[0], skip_special_tokens=True).strip() == shown


def test_the_reader_of_gguf_finds_the_control_vector(pocket_run, tmp_path):
    from gguf import GGUFReader

    words = ["export", str(pocket_run), "--to", str(tmp_path / "new" / "care.gguf"), "--gguf-vector", "--c", "0.5"]
    assert main(words) == 0
    read = GGUFReader(tmp_path / "new" / "care.gguf")
    vector = sh.SteeringVector.load(pocket_run / "rounds" / "00" / "vector.safetensors")
    found = {tensor.name: torch.tensor(tensor.data) for tensor in read.tensors}
    assert found.keys() == {f"direction.{i}" for i in vector.layers}
    for i in vector.layers:
        torch.testing.assert_close(found[f"direction.{i}"], 0.5 * vector.vectors[i])
    architecture = read.fields["general.architecture"]
    assert bytes(architecture.parts[architecture.data[0]]).decode() == "controlvector"


def test_llama_cpp_computes_the_merged_models_logits_and_steers_by_the_control_vector(pocket_run, merged, tmp_path):
    import llama_cpp

    lm = sh.load(merged)
    llama_cpp.write_model(lm.base, tmp_path / "merged.gguf")
    vector = sh.SteeringVector.load(pocket_run / "rounds" / "00" / "vector.safetensors")
    vector.to_gguf(tmp_path / "vector.gguf")
    ids = lm.chat_ids(ASKED)

    def ours():
        with torch.no_grad():
            return lm.model(torch.tensor([ids])).logits[0]

    plain = ours()
    with vector.applied(lm):
        steered = ours()
    for expected, given in ((plain, None), (steered, tmp_path / "vector.gguf")):
        found = torch.tensor(llama_cpp.logits(tmp_path / "merged.gguf", ids, lm.base.config.vocab_size, given))
        off = (found - expected).norm() / expected.norm()
        print(f"llama.cpp is off by {off:.1e}; the vector moves {(steered - plain).norm() / plain.norm():.1e}")
        assert off < 0.01 < (steered - plain).norm() / plain.norm()  # it keeps keys and values in float16
