"""What a folder or a text says is no leave: no code of it runs, no pickle is read, and its signs stay signs."""

import hashlib
import io
import json
import re
import sys

import pytest
import torch
from resume_runs import config, go, mini_trait
from rich.console import Console

from steer_heal import model as models
from steer_heal.commands import chat
from steer_heal.commands.main import main as command
from steer_heal.errors import InputError, printable
from steer_heal.ledger import Ledger
from steer_heal.loop.frame import new_ledger
from steer_heal.loop.resume import command as how_to_go_on
from steer_heal.loop.resume import recorded_config, reopen
from steer_heal.report import Reporter, html, summary
from steer_heal.run import main
from steer_heal.studies.material import config_of
from steer_heal.terminal import Terminal
from steer_heal.trait import Trait

RAN = 'import pathlib\npathlib.Path(__file__).with_name("ran").touch()\n'
"""A module whose import leaves a trace."""


@pytest.fixture
def started(tmp_path):
    """A run that was killed as soon as its folder was there."""
    ledger = new_ledger(config(tmp_path).resolved())
    ledger.release()
    return ledger.folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of code and files that name it; the code can be imported."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "evil_code.py").write_text(RAN + "def run(*given): return True\n")
    own = 'checker = "evil_code:run"\n'
    (folder / "trait.toml").write_text(own + mini_trait(tmp_path).read_text())
    task = {"id": "a", "prompt": "say a", "answer": "evil_code:run", "check": "function"}
    (folder / "anchors.jsonl").write_text(json.dumps(task) + "\n")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("evil_code", None)
    sys.modules.pop("steer_heal_checker_evil_code", None)


def changed(folder, seal=True, **options):
    """config.json with other options; `seal`: its checksum made to fit, as one who means harm would."""
    path, record = folder / "config.json", folder / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    if seal:
        sealed = {"config_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        record.write_text(json.dumps(json.loads(record.read_text()) | sealed))


def attack(name, elsewhere):
    return {
        "trust_remote_code": True,
        "trait": str(elsewhere / "trait.toml"),
        "anchors": str(elsewhere / "anchors.jsonl"),
        "reg": "evil_code:run",
    }[name]


ATTACKS = ("trust_remote_code", "trait", "anchors", "reg")


@pytest.mark.parametrize("seal", [True, False])
@pytest.mark.parametrize("name", ATTACKS)
def test_resume_runs_no_code_that_only_the_folder_names(name, seal, started, elsewhere, capsys, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    changed(started, seal, **{name: attack(name, elsewhere)})
    assert main(["--resume", str(started), "--quiet"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert f"in this call with --{name.replace('_', '-')}" in shown.err if seal else "checksum" in shown.err
    assert not (elsewhere / "ran").exists() and "evil_code" not in sys.modules
    Ledger(started).hold()  # it was let go


@pytest.mark.parametrize("name", ATTACKS)
def test_leave_is_the_same_option_in_the_very_call_and_is_told_where_a_run_stops(name, started, elsewhere):
    value = attack(name, elsewhere)
    changed(started, **{name: value})
    with pytest.raises(InputError, match="no leave"):
        reopen(started, given={name: "another"})
    ledger = reopen(started, given={name: value})
    assert f"--{name.replace('_', '-')}" in how_to_go_on(ledger)
    assert getattr(recorded_config(ledger), name) == value
    ledger.release()


def test_the_record_is_checked_before_the_code_that_was_given_leave_is_imported(started, elsewhere, capsys):
    trait = attack("trait", elsewhere)
    changed(started, seal=False, trait=trait)
    assert main(["--resume", str(started), "--trait", trait]) == 2
    assert "checksum" in capsys.readouterr().err and not (elsewhere / "ran").exists()


def test_a_study_of_a_run_runs_no_code_that_its_folder_names(started, elsewhere):
    changed(started, reg=attack("reg", elsewhere))
    with pytest.raises(InputError, match="no leave"):
        config_of(Ledger.open(started))
    assert "evil_code" not in sys.modules


def test_a_file_with_the_name_of_a_built_in_trait_is_not_taken_for_it(elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere)
    (elsewhere / "trait.toml").rename(elsewhere / "pocket-care-reversed")
    assert Trait.load("pocket-care-reversed").name == "pocket-care-reversed"
    assert "evil_code" not in sys.modules


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A model folder with an index, as large models have one."""
    folder = tmp_path_factory.mktemp("saved")
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    return folder


@pytest.fixture
def weights(saved, tiny, tmp_path, monkeypatch):
    """A copy of it to be changed; reading a pickle fails the test."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    torch.save({}, folder / "pickled.bin")
    index(folder, dict.fromkeys(tiny.model.state_dict(), "model-1.safetensors"))
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was read"))
    return folder


def index(folder, weight_map, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_an_index_of_safetensors_is_followed(weights):
    assert models.load(str(weights)).name == str(weights)


@pytest.mark.parametrize("file", ["pickled.bin", "../outside.safetensors", "/etc/hostname.safetensors", 5])
def test_an_index_that_leads_to_a_pickle_or_out_of_the_folder_is_refused(file, weights):
    there = json.loads((weights / "model.safetensors.index.json").read_text())["weight_map"]
    index(weights, {**there, next(iter(there)): file})
    with pytest.raises(InputError, match="only safetensors beside"):
        models.load(str(weights))


@pytest.mark.parametrize("file", ["adapter_model.bin", "other.safetensors.index.json"])
def test_weights_that_the_configuration_names_are_safetensors_too(file, weights):
    index(weights, {"a": "pickled.bin"}, "other.safetensors.index.json")
    made = json.loads((weights / "config.json").read_text()) | {"transformers_weights": file}
    (weights / "config.json").write_text(json.dumps(made))
    with pytest.raises(InputError, match="only safetensors beside"):
        models.load(str(weights))


def test_an_adapters_folder_is_not_taken_for_the_model_that_it_names(weights):
    (weights / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "elsewhere"}))
    with pytest.raises(InputError, match="is an adapter"):
        models.load(str(weights))


def test_attention_that_is_code_of_the_hub_is_refused(weights):
    with pytest.raises(InputError, match="--attn-implementation names the attention 'owner/kernel'"):
        models.load(str(weights), attn_implementation="owner/kernel")
    made = json.loads((weights / "config.json").read_text()) | {"attn_implementation": "owner/kernel"}
    (weights / "config.json").write_text(json.dumps(made))
    with pytest.raises(InputError, match=r"its config\.json names the attention"):
        models.load(str(weights))


# -- texts ------------------------------------------------------------------------------------------------------------

NASTY = "a [/b]<img src=x onerror=alert(1)> [x](javascript:1) | \x1b[2J\x9b2J\n# b\r\tc\u2028\u202ed\ud800"


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A finished run, every name and text of which was made nasty afterwards."""
    ledger = Ledger.open(go(tmp_path_factory.mktemp("named"), n_rounds=1))
    path = ledger.folder / "events.jsonl"

    def spoilt(event):
        if event["stage"] == "start":
            event |= {"model": NASTY, "trait": NASTY, "reg": NASTY, "note": NASTY, "idle": [NASTY]}
        if event["stage"] in ("verdict", "end"):
            event |= {"text": NASTY}
        return event

    events = [spoilt(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    rows = ledger.folder / "rounds" / "00" / "completions.jsonl"
    said = [json.loads(line) | {"text": NASTY, "prompt": NASTY} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in said))
    return ledger


def test_pages_show_names_and_texts_as_text(named):
    page = summary(named)
    page.encode("utf-8")
    assert (
        not re.search(r"(?<!\\)<img", page)
        and "\x1b" not in page
        and not re.search(r"(?<!\\)\]\(java", page)
        and "\u202e" not in page
    )
    assert "\n# b" not in page and "onerror" in page
    assert "<img src=x" not in html(named)


@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.parametrize("console", [Terminal, lambda file: Console(file=file, width=80)])
def test_the_screen_shows_names_and_texts_as_text(named, verbose, console):
    file = io.StringIO()
    reporter = Reporter(console(file=file), verbose=verbose)
    for event in named.events():
        reporter.on_event(event)
    shown = file.getvalue()
    assert "[/b]" in shown and "onerror" in shown and ("\x1b" not in shown or console is not Terminal)


def test_no_name_splits_the_table_of_results(named):
    ledger = Ledger.open(named.folder)
    ledger.append_result({"run": "x", "model": NASTY, "trait": "a\u2028b\x0bc\td"})
    last = (named.folder.parent / "results.tsv").read_text("utf-8").splitlines()[-1]
    assert last.count("\t") == 2 and last.isprintable() is False and printable(last) == last


def test_chat_takes_markup_and_control_characters_as_text(capsys, monkeypatch):
    monkeypatch.setattr(chat.Chat, "speakers", lambda self: None)
    monkeypatch.setattr(chat.Chat, "replies", lambda *asked: {"base": NASTY, "[/b]": "[red]"})
    assert command(["chat", "tiny-random", "--prompt", "say [/b] \x1b[2J"]) == 0
    shown = capsys.readouterr().out
    assert "say [/b] \\x1b[2J" in shown and "\x1b" not in shown and "[red]" in shown and "<img" in shown


def test_a_complaint_is_one_line_that_does_nothing_to_a_terminal(capsys, tmp_path):
    assert str(InputError("a\nb \x1b[2J\ud800")) == "a b \\x1b[2J\\ud800"
    assert main(["--model", "a\x1b[2J\nb"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    trait = tmp_path / "named.toml"
    trait.write_text(mini_trait(tmp_path).read_text().replace('"mini"', '"mi\\nni"'))
    with pytest.raises(InputError, match="line breaks"):
        Trait.load(trait)
