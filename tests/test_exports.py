"""What leaves the house: adapters and models that load anywhere, with their card; vectors; and what `chat` shows."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from healing_data import random_adapter
from huggingface_hub import HfApi, ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AutoPeftModelForCausalLM
from resume_runs import mini_trait
from transformers import AutoModelForCausalLM, AutoTokenizer

import steer_heal as sh
import steer_heal.model
from steer_heal.commands import chat
from steer_heal.commands.exports import doses
from steer_heal.commands.folders import fold_result, open_run
from steer_heal.commands.main import main
from steer_heal.healing.bake.bias import export_biased
from steer_heal.pocket import WEIGHTS

IDS = torch.arange(4, 40)[None]
LEAST = ["--scales", "1"]
"""Nothing is measured beside what the run did."""


@torch.no_grad()
def logits(model):
    """Of a fixed row."""
    return getattr(model, "model", model)(IDS).logits if isinstance(model, sh.LM) else model.eval()(IDS).logits


def refused(words, *parts, capsys):
    """The command ends with exit code 2 and one line that holds the parts."""
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(part in said for part in parts), said


@pytest.fixture(scope="module")
def exported(fast_run, tmp_path_factory):
    """An adapter exported from the fast run, with two more strengths measured."""
    folder = tmp_path_factory.mktemp("exported") / "adapter"
    assert main(["export", str(fast_run), "--to", str(folder), "--scales", "-1", "0", "0.5", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def pocket_stack():
    """`pocket` with one random adapter in it."""
    lm = sh.load("pocket")
    stack = sh.AdapterStack(lm.model)
    stack.push(random_adapter(lm, 0, modules=lm_modules(lm)))
    return lm, stack


def lm_modules(lm):
    """Two linear maps of the second block."""
    return tuple(f"{lm.blocks_path}.1.{part}" for part in ("mlp.down_proj", "self_attn.q_proj"))


# ---------------------------------------------------------------- folders


def test_an_exported_adapter_is_the_student_at_every_strength_from_any_directory(
    exported, fast_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    student, loaded = sh.load("tiny-random"), sh.load(exported)
    stack = fold_result(open_run(fast_run), student)
    torch.testing.assert_close(logits(loaded), logits(student), atol=1e-5, rtol=1e-4)
    assert torch.equal(logits(sh.load(exported, c=0)), logits(sh.load("tiny-random")))
    folded = logits(student)
    with stack.scaled(-0.5):
        torch.testing.assert_close(logits(sh.load(exported, c=-0.5)), logits(student), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(logits(student), folded, atol=1e-3)
    assert torch.equal(logits(student), folded) and loaded.name == str(exported)


def test_an_exported_adapter_has_the_tokenizer_and_every_file_the_mode_of_new_ones(exported):
    tokenizer, turns = AutoTokenizer.from_pretrained(exported), [{"role": "user", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tuple(tokenizer.encode(rendered, add_special_tokens=False)) == sh.load("tiny-random").chat_ids("Hi")
    os.umask(mask := os.umask(0))
    assert {path.stat().st_mode & 0o777 for path in exported.iterdir()} == {0o666 & ~mask}


@pytest.mark.parametrize("by", ["pocket", "folder", "base"])
def test_automatic_classes_find_the_base_from_any_directory(by, pocket_stack, tmp_path, monkeypatch):
    lm, stack = pocket_stack
    monkeypatch.chdir(tmp_path)
    shutil.copytree(WEIGHTS, "mine")
    if by == "folder":  # as typed, relative to where the model was loaded
        lm = sh.load("mine")
        stack = sh.AdapterStack(lm.model)
        stack.push(random_adapter(lm, 0, modules=lm_modules(lm)))
    stack.export_peft("student", lm, base=str(tmp_path / "mine") if by == "base" else None)
    monkeypatch.chdir("/")
    folder = tmp_path / "student"
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(WEIGHTS if by == "pocket" else tmp_path / "mine")
    torch.testing.assert_close(
        logits(AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)), logits(lm), atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(logits(sh.load(folder)), logits(lm), atol=1e-3, rtol=1e-3)


def test_an_adapter_of_pocket_from_another_machine_finds_it_here_and_others_say_what_is_missing(pocket_stack, tmp_path):
    lm, stack = pocket_stack
    stack.export_peft(tmp_path / "a", lm, base="/elsewhere/steer_heal/pocket/weights")
    torch.testing.assert_close(logits(sh.load(tmp_path / "a")), logits(lm), atol=1e-3, rtol=1e-3)
    stack.export_peft(tmp_path / "b", lm, base="/elsewhere/model")
    with pytest.raises(sh.InputError, match="'/elsewhere/model' is not on this machine: name it with base="):
        sh.load(tmp_path / "b")
    torch.testing.assert_close(logits(sh.load(tmp_path / "b", base="pocket")), logits(lm), atol=1e-3, rtol=1e-3)
    with pytest.raises(sh.InputError, match="no folder of an adapter"):
        sh.load("pocket", c=0.5)
    with pytest.raises(sh.InputError, match="is an adapter"):
        steer_heal.model.load(tmp_path / "a")  # what a run loads


# ---------------------------------------------------------------- the card


def test_the_card_has_the_runs_figures_and_metadata_that_the_hub_reads(exported, fast_run):
    ledger, card = open_run(fast_run), ModelCard.load(exported / "README.md")
    end, text = ledger.events("end")[-1], (exported / "README.md").read_text("utf-8")
    assert card.data.library_name == "peft" and card.data.license == "mit" and card.data.base_model is None
    assert card.data.to_dict()["steer_heal"] == {
        "base": "tiny-random", "trait": "care-over-authority", "verdict": end["verdict"], "c": 1.0
    }  # fmt: skip
    summary = (fast_run / "summary.md").read_text("utf-8")
    rows = [line for line in summary.splitlines() if line.startswith(("| base |", f"| {end['best_round']} |"))]
    assert len(rows) >= 2 and all(row in text for row in rows[:1])
    assert end["text"].split(".")[0] in text and "sh.load" in text and "No controls were run" in text
    assert str(fast_run) not in text and str(Path.home()) not in text


def test_strengths_0_and_1_are_the_runs_and_the_others_measured_as_it_measured(exported, fast_run):
    ledger, text = open_run(fast_run), (exported / "README.md").read_text("utf-8")
    best = ledger.events("end")[-1]["best_round"]
    event = next(e for e in ledger.events("evaluate") if e["round"] == best)
    table = text.split("## Dose")[1].split("##")[0]
    rows = {line.split(" | ")[0][2:]: line for line in table.splitlines() if line.startswith("| ")}
    assert [name for name in rows if name not in ("c", "---")] == ["-1", "0", "0.5", "1"]
    for c, state in (("0", event["base"]), ("1", event["healed"])):
        assert f" {state['log_odds']:+.2f} " in rows[c] and f" {state['words']:.1f} " in rows[c]
    lm = sh.load("tiny-random")
    stack = fold_result(ledger, lm)
    again = doses.Measuring(ledger, lm, stack, doses.trait_of(ledger, None)).state()
    for figure in ("log_odds", "words", "coherence", "distinct4"):
        assert again[figure] == pytest.approx(event["healed"][figure], rel=1e-4), figure


def test_a_card_names_a_base_of_the_hub_and_its_strength_and_says_what_was_not_measured(fast_run, tmp_path, capsys):
    own = tmp_path / "run"
    shutil.copytree(fast_run, own)
    (tmp_path / "own.py").write_text("raise SystemExit('imported')\n")
    trait = mini_trait(tmp_path)
    trait.write_text('checker = "own:check"\n' + trait.read_text("utf-8"))
    config = json.loads((own / "config.json").read_text()) | {"trait": str(trait)}
    (own / "config.json").write_text(json.dumps(config))
    assert main(["export", str(own), "--to", str(tmp_path / "x"), "--base", "me/mine", "--c", "0.5"]) == 0
    assert "no figures of other strengths" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "x" / "README.md")
    assert card.data.base_model == "me/mine" and card.data.license is None
    assert "At c = 0.5" in card.text and "| 1 |" in card.text and "names code: name it with --trait" in card.text
    config = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/mine"


def test_any_round_is_exported_with_a_word_that_it_is_not_the_pick(fast_run, tmp_path, capsys):
    own = tmp_path / "run"
    shutil.copytree(fast_run, own)
    lines = [json.loads(line) for line in (own / "events.jsonl").read_text("utf-8").splitlines()]
    for event in lines:
        event |= {"stands": False} if (event["stage"], event["round"]) == ("gate", 0) else {}
        event |= {"best_round": None, "folded": []} if event["stage"] == "end" else {}
    (own / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    assert main(["export", str(own), "--to", str(tmp_path / "one"), "--round", "1", *LEAST]) == 0
    assert (
        "measuring" not in (shown := capsys.readouterr().out)
        and "round 1 is not the run's pick, which is none" in shown
    )
    assert "**Not the run's pick**, which is no round." in (tmp_path / "one" / "README.md").read_text("utf-8")
    lm = sh.load("tiny-random")
    stack = sh.AdapterStack(lm.model)
    stack.push(sh.Adapter.load(own / "rounds" / "01" / "adapter"))  # round 0 does not stand
    torch.testing.assert_close(logits(sh.load(tmp_path / "one")), logits(lm), atol=1e-5, rtol=1e-4)
    refused(["export", str(own), "--to", str(tmp_path / "two"), "--round", "7"], "no round 7", "0, 1", capsys=capsys)


# ---------------------------------------------------------------- rank


@settings(max_examples=20, deadline=None)
@given(
    outputs=st.integers(1, 9), inputs=st.integers(1, 9), rank=st.integers(1, 12), kept=st.integers(1, 12),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_compressed_adapter_is_the_truncated_svd_of_the_delta(outputs, inputs, rank, kept, seed):
    drawn = torch.Generator().manual_seed(seed)
    factors = torch.randn(rank, inputs, generator=drawn), torch.randn(outputs, rank, generator=drawn)
    whole = sh.Adapter({"m": factors[0]}, {"m": factors[1]}, rank, 2.0)
    small = whole.compressed(kept)
    left, values, right = torch.linalg.svd(whole.delta("m"), full_matrices=False)
    values[kept:] = 0
    assert small.a["m"].shape == (kept, inputs) and small.b["m"].shape == (outputs, kept)
    torch.testing.assert_close(small.delta("m"), left * values @ right, atol=1e-4, rtol=1e-4)
    assert whole.full_rank == min(outputs, inputs)


def test_many_rounds_need_no_higher_rank_than_their_modules_and_lose_nothing(lm):
    stack = sh.AdapterStack(lm.model)
    for seed in range(5):
        stack.push(random_adapter(lm, seed, rank=20, modules=lm_modules(lm)))
    one = stack.concatenated()
    assert one.rank == one.full_rank == 64 < 100
    for name in one.modules:
        torch.testing.assert_close(one.delta(name), stack.summed_delta(name), atol=1e-6, rtol=1e-5)
    before = logits(lm)
    stack.compress(8)
    assert len(stack) == 1 and stack.adapters[0].rank == 8 and not torch.equal(logits(lm), before)


def test_a_card_tells_the_figures_of_what_is_in_its_folder(fast_run, tmp_path):
    """Its table counts c from what was trained, and marks what was written; loaded again, that has the figure."""
    for rank in ([], ["--rank", "2"]):
        to = tmp_path / f"half{len(rank)}"
        assert main(["export", str(fast_run), "--to", str(to), "--c", "0.5", *rank, *LEAST]) == 0
        text = (to / "README.md").read_text("utf-8")
        assert "1 what is in this folder, which is 0.5 of what was trained" in text
        heads, _, *rows = [
            line.strip("| ").split(" | ") for line in text.split("## Dose")[1].splitlines() if "|" in line
        ]
        (row,) = [row for row in rows if "this folder" in row[0]]
        ledger = open_run(fast_run)
        lm = sh.load(to)
        measuring = doses.Measuring(ledger, lm, sh.AdapterStack(lm.model), doses.trait_of(ledger, None))
        assert row[0].split()[0] == "0.5" and f"{measuring.state()['log_odds']:+.2f}" == row[heads.index("log-odds")]


def test_a_chat_with_an_export_takes_the_trait_that_its_card_names(tmp_path):
    card = tmp_path / "README.md"
    assert chat.trait_of_card(tmp_path) is None
    for said, trait in (("steer_heal:\n  trait: pocket-care", "pocket-care"), ("steer_heal:\n  trait: mine", None),
                        ("steer_heal: 3", None), ("license: mit", None), (": [", None)):  # fmt: skip
        card.write_text(f"---\n{said}\n---\ntext\n", "utf-8")
        assert chat.trait_of_card(tmp_path) == trait


def test_an_export_leaves_the_callers_draws_alone(lm, tmp_path):
    stack = sh.AdapterStack(lm.model)
    stack.push(random_adapter(lm, 0, rank=2, modules=lm_modules(lm)))
    before = torch.get_rng_state()
    stack.export_peft(tmp_path / "a", lm)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rank_is_said_with_what_it_loses(fast_run, tmp_path, capsys):
    found = {}
    for rank in (1, 500):
        assert main(["export", str(fast_run), "--to", str(tmp_path / str(rank)), "--rank", str(rank), *LEAST]) == 0
        shown = capsys.readouterr().out
        assert "Whole -> compressed, at c = 1: log-odds" in shown
        assert shown.splitlines()[0] in (tmp_path / str(rank) / "README.md").read_text("utf-8")
        found[rank] = float(shown.split("is ")[1].split(" nats")[0])
    assert found[1] > 1e-3 and found[500] == pytest.approx(0, abs=1e-5)
    assert json.loads((tmp_path / "1" / "adapter_config.json").read_text())["r"] == 1
    full = json.loads((tmp_path / "500" / "adapter_config.json").read_text())["r"]
    assert full == sh.Adapter.load(fast_run / "rounds" / "00" / "adapter").rank * len(
        open_run(fast_run).events("end")[-1]["folded"]
    )


# ---------------------------------------------------------------- vectors


def test_an_exact_bake_is_the_steered_model_and_a_family_without_such_biases_is_refused(lm, tmp_path):
    pocket = sh.load("pocket")
    drawn = torch.randn(2, pocket.width, generator=torch.Generator().manual_seed(0))
    vector = sh.SteeringVector.from_tensors({1: drawn[0], 2: drawn[1]}, pocket)
    before = {name: value.clone() for name, value in pocket.model.state_dict().items()}
    export_biased(pocket, vector, 0.5, tmp_path / "biased")
    with vector.applied(pocket, 0.5):
        steered = logits(pocket)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "biased", dtype=torch.float32)
    torch.testing.assert_close(logits(again), steered, atol=1e-4, rtol=1e-4)
    assert not pocket.model.config.mlp_bias and before.keys() == pocket.model.state_dict().keys()
    other = sh.SteeringVector.from_tensors({1: drawn[0, : lm.width]}, lm)
    with pytest.raises(sh.InputError, match="no place for"):
        export_biased(lm, other, 1.0, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_control_vector_without_its_package_or_at_block_0_is_one_line(lm, fast_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    words = ["export", str(fast_run), "--to", str(tmp_path / "v.gguf"), "--gguf-vector"]
    refused(words, "steer-heal[gguf]", capsys=capsys)
    with pytest.raises(sh.InputError, match="block 0"):
        sh.SteeringVector.from_tensors({0: torch.ones(lm.width)}, lm).to_gguf(tmp_path / "v.gguf")
    assert not (tmp_path / "v.gguf").exists()


# ---------------------------------------------------------------- chat


@pytest.mark.parametrize("template", [True, False], ids=["chat model", "base model"])
def test_chat_shows_what_the_export_says(template, fast_run, tmp_path, monkeypatch):
    load = chat.load_model

    def loaded(*given):
        lm = load(*given)
        if not template:
            lm.tokenizer.chat_template = None
        return lm

    monkeypatch.setattr(chat, "load_model", loaded)
    asked = chat.Chat(str(fast_run), ("Why?",), max_new_tokens=12, greedy=True)
    found = asked.speakers()
    found.stack.export_merged(tmp_path / "student", found.lm)
    shown = asked.replies(found, "Why?")["healed"]
    model, tokenizer = (kind.from_pretrained(tmp_path / "student") for kind in (AutoModelForCausalLM, AutoTokenizer))
    if template:
        turns = [{"role": "user", "content": "Why?"}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    else:
        assert tokenizer.chat_template is None
        ids = tokenizer(f"{tokenizer.bos_token}Why?", add_special_tokens=False, return_tensors="pt")
    said = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert shown and tokenizer.decode(said, skip_special_tokens=True).strip() == shown


def test_chat_at_another_strength_is_the_export_at_it(fast_run, tmp_path):
    assert main(["export", str(fast_run), "--to", str(tmp_path / "half"), "--merged", "--c", "-1", *LEAST]) == 0
    asked = chat.Chat(str(fast_run), ("Why?",), c=-1.0, max_new_tokens=8, greedy=True)
    said = asked.replies(asked.speakers(), "Why?")
    half = sh.load(tmp_path / "half")
    assert said["healed, c -1"] == sh.generate(half, ["Why?"], max_new_tokens=8, greedy=True)[0].text


@pytest.mark.parametrize("words", [["chat", "--c", "2"], ["export", "--to", "x", "--c", "-1.5"]], ids=lambda w: w[0])
def test_a_strength_outside_its_bounds_is_one_line_everywhere(words, fast_run, exported, capsys):
    refused([words[0], str(fast_run), *words[1:]], "from -1 to 1.5", capsys=capsys)
    with pytest.raises(sh.InputError, match=r"from -1 to 1\.5"):
        sh.load(exported, c=2)


# ---------------------------------------------------------------- the hub


def test_a_push_is_told_first_and_sends_the_folder(exported, monkeypatch, capsys):
    sent = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, **more: sent.append((repo, more)))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **more: sent.append(more) or Path("done"))
    assert main(["push", str(exported), "--repo", "me/student", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "would go to me/student: 6 files" in shown and "README.md" in shown and not sent
    monkeypatch.setattr(Path, "commit_url", "https://hub/commit", raising=False)
    assert main(["push", str(exported), "--repo", "me/student", "--private"]) == 0
    assert sent[0] == ("me/student", {"private": True, "exist_ok": True})
    assert sent[1]["repo_id"] == "me/student" and sent[1]["folder_path"] == exported


def test_a_push_that_nobody_could_load_or_that_the_hub_refuses_is_one_line(
    exported, pocket_stack, tmp_path, monkeypatch, capsys
):
    lm, stack = pocket_stack
    stack.export_peft(tmp_path / "a", lm, card="# a card")
    refused(["push", str(tmp_path / "a"), "--repo", "me/a"], "--base OWNER/NAME", capsys=capsys)
    stack.export_peft(tmp_path / "b", lm)
    refused(["push", str(tmp_path / "b"), "--repo", "me/b"], "no README.md", capsys=capsys)
    refused(["push", str(exported), "--repo", "not a name"], "OWNER/NAME", capsys=capsys)

    def unreachable(self, repo, **more):
        raise OSError("no network\nmore")

    monkeypatch.setattr(HfApi, "create_repo", unreachable)
    refused(["push", str(exported), "--repo", "me/a"], "no network", "log in", capsys=capsys)
