"""What comes from outside of the files and options: the environment, the terminal, an interpreter's switches."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

import steer_heal as sh
from steer_heal.commands.main import main
from steer_heal.commands.script import guarded
from steer_heal.errors import InputError
from steer_heal.loop.preflight import check_texts
from steer_heal.model import loading
from steer_heal.reading import from_json


@pytest.mark.parametrize(("flags", "environment", "words", "code", "said"), [
    (["-OO"], {}, ["run", "--help"], 2, "without it"),
    ([], {"COLUMNS": "1"}, ["run", "--help"], 0, ""),
    ([], {"COLUMNS": "3"}, ["report", "--help"], 0, ""),
    ([], {"TORCH_LOGS": "nonsense"}, ["chat", "tiny-random", "--prompt", "x"], 2, "torch cannot be imported"),
], ids=["-OO", "one column", "three columns", "torch"])  # fmt: skip
def test_an_odd_environment_is_one_line_and_never_a_hang(flags, environment, words, code, said):
    command = [sys.executable, *flags, "-m", "steer_heal", *words]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines)) == (code, 1 if code else 0), done.stderr[-500:]
    assert said in done.stderr


def test_a_bug_of_our_own_stays_a_traceback():
    with pytest.raises(ValueError, match="our own"):
        guarded(lambda words: (_ for _ in ()).throw(ValueError("our own")), [])


@pytest.mark.parametrize("address", ["::bad::", "http://x:bad"])
def test_an_address_of_the_hub_that_is_none_is_one_line(address, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    loading._hub_answers.cache_clear()
    with pytest.raises(InputError, match="correct HF_ENDPOINT"):
        loading._hub_answers()


def test_a_context_of_no_tokens_is_refused(lm):
    lm.base.config.max_position_embeddings = 0
    with pytest.raises(InputError, match="max_position_embeddings 0"):
        sh.wrap(lm.model, lm.tokenizer)


def test_personas_that_are_the_same_tokens_are_refused_before_a_run(tiny, monkeypatch):
    trait = sh.Trait.load("care-over-authority")
    config = sh.RunConfig(fast_dev_run=True, model="tiny-random").resolved()
    check_texts(tiny, trait, (), config)
    with pytest.raises(InputError, match="both personas are the same tokens"):
        check_texts(tiny, replace(trait, neg=trait.pos), (), config)


def test_a_key_twice_is_refused_where_a_person_wrote_it():
    assert from_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="twice"):
        from_json('{"a": {"b": 1, "b": 2}}', once=True)


BROKEN = {
    "contexts": ('contexts = ["one"]', "", "at least 2 'contexts'"),
    "a class": ('checker = "own:C"', "class C: pass", "takes no arguments"),
    "out of range": ('checker = "own:C"', "from types import SimpleNamespace as S\n"
                     "def C(*given): return S(sentence_ok=17.0, trait=-3, reply_ok=True)", "between 0 and 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_run_would_refuse_is_no_usable_trait(name, tmp_path, capsys):
    line, code, said = BROKEN[name]
    item = {"id": "a", "prompt": "b?", "choices": ["c", "d"], "trait": "c", "category": "e"}
    (tmp_path / "items.jsonl").write_text(json.dumps(item))
    (tmp_path / "own.py").write_text(code)
    contexts = "" if name == "contexts" else 'contexts = ["a", "b"]\n'
    (tmp_path / "own.toml").write_text(
        'name = "own"\ndescription = "x"\npos = "a"\nneg = "b"\nneutral = ""\nprompts = ["p"]\n'
        f'eval_prompts = ["1", "2", "3", "4", "5", "6", "7", "8"]\nitems = "items.jsonl"\n{contexts}{line}\n'
    )
    assert main(["traits", "check", str(tmp_path / "own.toml")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("out", ["/dev/null", "/dev/null/x", __file__])
def test_a_dry_run_refuses_an_output_folder_that_cannot_be(out, capsys):
    assert main(["run", "--model", "tiny-random", "--fast-dev-run", "--dry-run", "--out", out]) == 2
    assert "cannot be written" in capsys.readouterr().err
