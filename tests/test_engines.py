"""Engines for sampling: what vLLM is asked, that it has the weights as they are, and what goes through transformers."""

import json
import sys

import fake_vllm
import pytest
import resume_runs
import torch

from steer_heal.commands.main import main
from steer_heal.errors import InputError
from steer_heal.healing.bake import AdapterStack
from steer_heal.loop import steps
from steer_heal.loop.gate import must_block_adapter
from steer_heal.texts import engines
from steer_heal.texts.engines import Row
from steer_heal.texts.engines.vllm import VllmEngine, parameters
from steer_heal.texts.generation import Interrupted, derive_seed, generate
from steer_heal.texts.sampling import Sampling

PROMPTS = ["what should we do when it rains all day ?", "hi", "the gate"]


def _interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.fixture
def vllm(monkeypatch):
    """An engine on the stand-in."""
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    engines.engine.cache_clear()
    yield engines.engine("vllm")
    engines.engine.cache_clear()


def asked_of(lm, seed=0, **options):
    return parameters(lm, Row(lm.chat_ids("hi"), 0.0, seed), 5, Sampling(**options))


def test_ids_and_seeds_go_in_by_row_and_ids_come_back_in_the_order_of_the_prompts(tiny, vllm):
    done = generate(tiny, PROMPTS, max_new_tokens=6, seed=3, engine=vllm)
    (llm,) = fake_vllm.LLM.made
    (call,) = llm.calls
    by_length = sorted(range(3), key=lambda i: len(tiny.chat_ids(PROMPTS[i])))
    assert [one["prompt_token_ids"] for one in call[0]] == [list(tiny.chat_ids(PROMPTS[i])) for i in by_length]
    assert [one.seed for one in call[1]] == [derive_seed("row", 3, i) for i in by_length]
    assert [c.prompt for c in done] == PROMPTS and [c.seed for c in done] == [
        derive_seed("row", 3, i) for i in range(3)
    ]
    for completion, i in zip([done[i] for i in by_length], range(3), strict=True):
        (reply,) = llm._reply(call[0][i]["prompt_token_ids"], call[1][i]).outputs
        assert list(completion.token_ids) == reply.token_ids and completion.text == tiny.decode(reply.token_ids)
        assert completion.finished == (reply.token_ids[-1] in tiny.eos_ids)


def test_vllm_is_asked_for_what_transformers_would_do(tiny):
    fixed = {"max_tokens": 5, "stop_token_ids": sorted(tiny.eos_ids), "detokenize": False}
    own = {"temperature": 0.9, "top_k": 0, "top_p": 0.95, "min_p": 0.0}  # the model's generation config
    assert asked_of(tiny) == {**own, **fixed}
    every = {"temperature": 1.2, "top_k": 7, "top_p": 0.5, "min_p": 0.25}
    assert asked_of(tiny, **every) == {**every, **fixed}
    assert asked_of(tiny, seed=None, **every) == {**own, "temperature": 0.0, "top_p": 1.0, **fixed}


def test_what_vllm_does_not_have_by_the_same_name_is_refused(lm):
    lm.base.generation_config.typical_p = 0.5
    with pytest.raises(InputError, match=r"no TypicalLogitsWarper.*--engine transformers"):
        asked_of(lm)


def test_greedy_replies_are_those_of_the_weights_as_they_are_now_without_a_restart(lm, vllm):
    def same():
        ours, theirs = (generate(lm, PROMPTS, max_new_tokens=6, greedy=True, **by) for by in ({}, {"engine": vllm}))
        assert [c.token_ids for c in theirs] == [c.token_ids for c in ours]
        return [c.token_ids for c in ours]

    stack, base = AdapterStack(lm.model), same()
    stack.push(must_block_adapter(lm))
    student = same()
    with stack.unfolded():
        assert same() == base
    assert same() == student != base
    (llm,) = fake_vllm.LLM.made
    assert llm.reloaded == 3
    same()
    assert llm.reloaded == 3  # nothing changed


def test_another_model_gets_a_vllm_of_its_own(lm, tiny, vllm):
    for one in (lm, tiny):
        generate(one, PROMPTS[:1], max_new_tokens=2, engine=vllm)
    assert len(fake_vllm.LLM.made) == 2


def test_rows_under_a_dose_go_through_transformers(tiny, vllm):
    from steer_heal.steering import extract

    vector = extract(tiny, "you are kind .", "you are strict .", PROMPTS)
    steered = {"vector": vector, "doses": (1.0,), "max_new_tokens": 4}
    assert generate(tiny, PROMPTS, engine=vllm, **steered) == generate(tiny, PROMPTS, **steered)
    assert not fake_vllm.LLM.made
    with pytest.raises(InputError, match="under a dose"):
        vllm.sample(tiny, [Row((1, 2), 1.0, 0)], vector, 2, Sampling(), print)


def test_a_reply_for_which_vllm_has_no_room_is_refused(tiny, vllm, monkeypatch):
    monkeypatch.setattr(engines.vllm, "CPU_CONTEXT", 40)
    generate(tiny, ["hi"], max_new_tokens=2, engine=vllm)
    with pytest.raises(InputError, match=r"takes 40 tokens here.*--max-new-tokens"):
        generate(tiny, ["hi"], max_new_tokens=40, engine=vllm)


def test_a_model_that_is_not_plain_weights_is_refused(lm, vllm):
    lm.base.config.quantization_config = {"bits": 4}
    with pytest.raises(InputError, match="quantised"):
        generate(lm, PROMPTS, max_new_tokens=2, engine=vllm)
    del lm.base.config.quantization_config
    lm.blocks[0].register_parameter("lora_a", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(InputError, match="merge it first"):
        generate(lm, PROMPTS, max_new_tokens=2, engine=vllm)


def test_an_interrupted_vllm_is_started_anew_and_one_that_does_not_start_says_so(tiny, vllm, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(fake_vllm.LLM, "generate", _interrupt)
        generate(tiny, PROMPTS, max_new_tokens=2, engine=vllm)
    assert caught.value.finished == caught.value.ended == []
    assert len(generate(tiny, PROMPTS, max_new_tokens=2, engine=vllm)) == 3 and len(fake_vllm.LLM.made) == 2

    def broken(*args, **kwargs):
        raise RuntimeError("no such architecture\nat all")

    monkeypatch.setattr(fake_vllm.LLM, "__init__", broken)
    with pytest.raises(InputError, match=r"does not start with tiny-random \(no such architecture\)"):
        generate(tiny, PROMPTS, max_new_tokens=2, engine=VllmEngine())


def test_without_the_package_a_run_is_refused_in_one_line_before_it_has_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert main(["run", "--engine", "vllm", "--fast-dev-run", "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "pip install 'steer-heal[vllm]'" in printed
    assert not (tmp_path / "out").exists()


def test_a_run_samples_all_but_steered_rows_through_vllm_and_goes_on_under_no_other_engine(
    tmp_path, tiny, vllm, capsys, monkeypatch
):
    monkeypatch.setattr(steps.training, "heal", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        resume_runs.go(tmp_path, engine="vllm", n_rounds=1, **{"filter": "repetition"})
    folder = resume_runs.folder_of(tmp_path)
    (llm,) = fake_vllm.LLM.made
    measured = [json.loads((folder / f"{name}.json").read_text())["replies"] for name in ("base", "prompted")]
    own = [json.loads(path.read_bytes().split(b"\n", 1)[1]) for path in folder.glob("units/0.walk.*batch-*.unit")]
    texts = [row["text"] for rows in (*measured, *own) for row in rows]
    assert measured and own and set(texts) <= {tiny.decode(ids) for ids in llm.said}
    assert list(json.loads((folder / "environment.json").read_text())["engine"]) == ["vllm"]
    assert main(["run", "--resume", str(folder), "--engine", "transformers"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "--engine transformers is not what" in printed


@pytest.mark.parametrize("rounds, options, told", [(3, (), False), (60, (), True), (60, ("--engine", "vllm"), False)])
def test_a_plan_of_many_tokens_without_a_dose_names_the_faster_engine(rounds, options, told, capsys):
    assert main(["run", "--dry-run", "--n-rounds", str(rounds), *options]) == 0
    assert ("--engine vllm pays from about" in capsys.readouterr().out) == told
