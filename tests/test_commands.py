"""The command `steer-heal`: every sub-command on a small run, help pages, presets and the dry run."""

import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from rich.console import Console

from steer_heal.commands import doctor, finished, traits
from steer_heal.commands.dry_run import count
from steer_heal.commands.exports.export import check_target
from steer_heal.commands.folders import fold_result, open_run
from steer_heal.commands.main import COMMANDS, command_class, main
from steer_heal.commands.options import options_of
from steer_heal.commands.run import GROUPS, CommandLine, parsed
from steer_heal.commands.run import main as run_main
from steer_heal.config import RunConfig, defaults
from steer_heal.config.options import text_of
from steer_heal.config.presets import PRESETS
from steer_heal.errors import InputError
from steer_heal.evaluation.anchors import Halves
from steer_heal.healing import HealConfig
from steer_heal.ledger import Ledger
from steer_heal.report import result_row
from steer_heal.report.headline import headline
from steer_heal.report.pages.facts import cards
from steer_heal.report.pages.replies import side_by_side
from steer_heal.report.screen import Screen
from steer_heal.texts.dose import DoseConfig
from steer_heal.trait import Trait


def test_report_writes_the_same_pages_again_and_no_second_result(fast_run, capsys):
    pages = ("report.html", "summary.md")
    before = {name: (fast_run / name).read_bytes() for name in pages}
    results = (fast_run.parent / "results.tsv").read_bytes()
    for name in (*pages, "trajectory.png"):
        (fast_run / name).unlink()
    assert main(["report", str(fast_run)]) == 0
    assert {name: (fast_run / name).read_bytes() for name in pages} == before
    assert (fast_run / "trajectory.png").stat().st_size
    assert (fast_run.parent / "results.tsv").read_bytes() == results
    assert "report.html" in capsys.readouterr().out


def test_compare_shows_figures_of_each_run_and_the_options_that_differ(fast_run, tmp_path, capsys):
    for name, lam in (("one", 0.3), ("two", 0.7)):
        shutil.copytree(fast_run, tmp_path / name)
        config = json.loads((fast_run / "config.json").read_text()) | {"lam": lam, "out": name}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert main(["compare", str(tmp_path)]) == 0  # a folder of runs stands for all in it
    shown = capsys.readouterr().out
    differing = shown.split("options that differ")[1]
    assert "0.3" in differing and "0.7" in differing and "out" not in differing.split("two")[1]
    best = Ledger.open(fast_run).events("end")[0]["best_round"]
    healed = next(e for e in Ledger.open(fast_run).events("evaluate") if e["round"] == best)["healed"]
    assert shown.count(f"{healed['words']:.1f}") == 2 and "different items" not in shown


def test_compare_and_the_pages_show_what_the_run_printed_to_the_digit(fast_run):
    printed = " ".join((fast_run.parent / "printed.txt").read_text().split())
    ledger = Ledger.open(fast_run)
    told, best = finished.figures(ledger), ledger.events("end")[0]["best_round"]
    (row,) = re.findall(rf" {best} \d\.\d\d\S* +\d+/\d+ .*?(?= {best + 1} \d\.\d\d| round {best} minus)", printed)
    for head in ("trait", "sentence ok", "4-grams", "fit"):
        assert told[head] == "-" or told[head] in row.split(), head
    pages = [" ".join((fast_run / page).read_text("utf-8").split()) for page in ("summary.md", "report.html")]
    for head in ("trait - base", "log-odds - base"):
        assert told[head] == "-" or all(told[head] in shown for shown in (printed, *pages)), head
    assert f"Time {told['time']}." in printed and all(told["time"] in page for page in pages)


def test_the_time_of_a_run_is_that_from_its_start_to_its_end(fast_run):
    events = {event["stage"]: event for event in Ledger.open(fast_run).events()}
    assert events["end"]["seconds"] == pytest.approx(events["end"]["time"] - events["start"]["time"], abs=0.2)
    assert events["calibrate"]["time"] > events["start"]["time"]


def test_a_refused_or_absent_round_is_nowhere_a_result(fast_run, tmp_path, capsys):
    shutil.copytree(fast_run, tmp_path / "one")
    lines = [json.loads(line) for line in (fast_run / "events.jsonl").read_text("utf-8").splitlines()]
    for event in lines:
        event |= {"stands": False, "mode": "on"} if event["stage"] == "gate" else {}
        event |= {"best_round": None, "folded": [], "verdict": "reverted"} if event["stage"] == "end" else {}
    (tmp_path / "one" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    ledger = Ledger.open(tmp_path / "one")
    told = finished.figures(ledger)
    shown = ("best", "trait", "trait - base", "log-odds - base", "sentence ok", "4-grams", "words", "fit", "KL to base")
    assert {told[head] for head in shown} == {"-"}
    assert all(result_row(ledger)[f"{name}_best"] is None for name in ("trait", "log_odds", "sentence_ok"))
    assert cards(ledger) == [] and "No round stands" in side_by_side(ledger).told
    assert "no round stands" in dict(headline(ledger))["What came out?"]
    screen = Screen(Console(file=(file := io.StringIO()), width=80))
    screen.end(lines[-1], lines)
    assert "minus" not in file.getvalue() and "no round stands" in file.getvalue()
    assert main(["export", str(ledger.folder), "--to", str(tmp_path / "to")]) == 2


def test_compare_says_when_runs_were_measured_on_different_items(fast_run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(fast_run, other)
    base = json.loads((other / "base.json").read_text())
    (other / "base.json").write_text(json.dumps(base | {"items_key": "another"}))
    assert main(["compare", str(fast_run), str(other)]) == 0
    assert "different items" in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "b" / "third"]
    assert finished.short_names(folders) == ["a/run", "b/run", "third"]


def test_exported_adapter_and_merged_model_give_the_students_logits(fast_run, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import steer_heal.model

    ledger = open_run(fast_run)
    assert main(["export", str(fast_run), "--to", str(tmp_path / "new" / "adapter"), "--scales", "1"]) == 0
    assert main(["export", str(fast_run), "--to", str(tmp_path / "merged"), "--merged", "--scales", "1"]) == 0
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        lm = steer_heal.model.load("tiny-random")
        plain = lm.model(ids).logits
        stack = fold_result(ledger, lm)
        student = lm.model(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(ids).logits
        fresh = steer_heal.model.load("tiny-random").model
        beside = PeftModel.from_pretrained(fresh, str(tmp_path / "new" / "adapter")).eval()(ids).logits
    assert len(stack) == len(ledger.events("end")[0]["folded"]) and not torch.allclose(plain, student, atol=1e-3)
    torch.testing.assert_close(merged, student)
    torch.testing.assert_close(beside, student, atol=1e-4, rtol=1e-4)
    assert steer_heal.model.load(str(tmp_path / "merged")).blocks  # with its tokenizer


def test_chat_shows_base_steered_and_healed_of_a_run(fast_run, capsys):
    words = ["--max-new-tokens", "12", "--greedy", "--prompt", "What should I do?", "Why?", "--dose", "0.5"]
    assert main(["chat", str(fast_run), *words]) == 0
    shown = capsys.readouterr().out
    assert "base" in shown and "steered, dose 0.5" in shown and "healed" in shown
    assert "> What should I do?" in shown and "> Why?" in shown


def test_chat_columns_are_the_models_they_name(fast_run):
    from steer_heal.commands.chat import Chat
    from steer_heal.texts.generation import generate

    chat = Chat(str(fast_run), ("Why?",), dose=4.0, max_new_tokens=12, greedy=True)
    found = chat.speakers()
    said = chat.replies(found, "Why?")
    lm = found.lm
    with found.stack.unfolded():
        base = generate(lm, ["Why?"], max_new_tokens=12, greedy=True)[0].text
        pushed = generate(lm, ["Why?"], found.vector, (4.0,), max_new_tokens=12, greedy=True)[0].text
    student = generate(lm, ["Why?"], max_new_tokens=12, greedy=True)[0].text
    assert list(said.values()) == [base, pushed, student] and base != pushed
    assert said == chat.replies(chat.speakers(), "Why?")


def test_chat_with_a_model_reads_prompts_from_standard_input(capsys, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("Why?\nWhat now?\n"))
    assert main(["chat", "tiny-random", "--max-new-tokens", "4"]) == 0
    shown = capsys.readouterr().out
    assert "> Why?" in shown and "> What now?" in shown and "healed" not in shown


def test_doctor_passes_on_a_sound_model_and_fails_on_one_that_is_not(tiny, capsys, monkeypatch):
    assert main(["doctor", "--no-round"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("ok  ") == 3 and "torch" in shown and "GB" in shown and "tiny round" not in shown
    monkeypatch.setattr(doctor, "chunked_loss", lambda lm: (False, "off"))
    assert main(["doctor", "--no-round"]) == 1
    assert "FAIL     chunked loss" in capsys.readouterr().out


def test_doctor_sees_a_dose_of_zero_that_changes_logits(tiny, monkeypatch):
    from contextlib import contextmanager

    from steer_heal.steering import SteeringVector

    assert doctor.dose_zero(tiny)[0]
    real = SteeringVector.applied

    @contextmanager
    def leaking(self, model, dose=1.0, **more):
        with real(self, model, dose + 0.01, **more):
            yield

    monkeypatch.setattr(SteeringVector, "applied", leaking)
    assert not doctor.dose_zero(tiny)[0]


def test_doctor_sees_a_chunked_loss_that_is_off(tiny, monkeypatch):
    from steer_heal.healing import barriers

    assert doctor.chunked_loss(tiny)[0]
    real = barriers.position_losses
    monkeypatch.setattr(barriers, "position_losses", lambda head, hidden, *a, **k: real(head, hidden * 1.01, *a, **k))
    assert not doctor.chunked_loss(tiny)[0]


def test_doctor_sees_a_fold_that_leaves_a_trace(tiny, monkeypatch):
    import copy

    from steer_heal.healing.bake import AdapterStack
    from steer_heal.model import LM

    lm = LM(copy.deepcopy(tiny.model), tiny.tokenizer, "copy")
    assert doctor.fold_and_undo(lm)[0]
    monkeypatch.setattr(AdapterStack, "pop", lambda self: None)
    assert not doctor.fold_and_undo(lm)[0]


def test_doctors_tiny_round_passes_every_stage_without_a_word(capsys):
    good, detail = doctor.tiny_round()
    assert good and "files" in detail and not capsys.readouterr().out


def test_traits_lists_shows_and_checks(tmp_path, capsys):
    assert main(["traits"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("default of pocket") == 1 and "any model" not in listed
    assert main(["traits", "show", "pocket-care-reversed"]) == 0
    assert Trait.load("pocket-care").neg in capsys.readouterr().out
    own = tmp_path / "own.toml"
    own.write_text(
        'name = "own"\npos = "You are not slow."\nneg = "You are slow and take very much time over every thing."\n'
        'neutral = ""\ncontexts = ["one", "one"]\nprompts = ["a"]\n'
        f"eval_prompts = {json.dumps([f'held out {i}' for i in range(8)])}\n"
        '[[items]]\nid = "1"\nprompt = "p"\nchoices = ["x", "y"]\ntrait = "x"\n'
    )
    assert main(["traits", "check", str(own)]) == 0
    shown = capsys.readouterr().out
    assert "1 distinct contexts" in shown and "'not'" in shown and "words" in shown and "7 weakness" in shown


def test_builtin_traits_have_no_weakness_but_the_checker_of_real_ones():
    assert traits.weaknesses(Trait.load("pocket-care")) == []
    assert all("checker" in line for line in traits.weaknesses(Trait.load("care-over-authority")))


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "run"])
def test_help_of_each_command_names_every_option_and_fits_a_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    options = options_of(command_class(command))
    assert options and shown.count("\n") <= 45
    assert all(option.flag in shown for option in options.values() if not option.positional)
    assert all(text_of(command_class(command), option.name) for option in options.values())


@pytest.mark.parametrize("topic", ["", *GROUPS, "presets"])
def test_help_of_run_is_readable_in_80_columns_by_topic(topic, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run_main(["--help", *([topic] if topic else [])]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("usage:")]
    assert 5 < len(lines) <= (125 if topic == "heal" else 85) and max(map(len, lines)) <= 80


def test_the_overview_fits_a_narrow_screen_and_names_the_stages_in_order(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    run_main(["--help", "all"])
    shown = capsys.readouterr().out
    assert shown.index("--n-rounds") < shown.index("--preset") and shown.index("--seed") < shown.index("--debug")


def test_help_says_where_sampling_is_the_models_own(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run_main(["--help", "steering"])
    heat = defaults("pocket", "teacher")["text_temperature"]
    assert f"(default: pocket {heat}, tiny-random its own, others" in capsys.readouterr().out


def test_every_option_of_a_run_is_in_the_help_with_a_text_and_its_default(capsys, monkeypatch):
    options = options_of(CommandLine)
    assert {f.name for f in fields(RunConfig)} <= {option.name for option in options.values()}
    monkeypatch.setenv("COLUMNS", "120")
    run_main(["--help=all"])
    shown = capsys.readouterr().out
    parts = re.split(r"^.{0,2}(?=--\w)", shown, flags=re.MULTILINE)[1:]
    assert [part.split()[0] for part in parts] == list(options)
    # Flag, kind, at least two words of text, and a default.
    assert all(re.search(r"\w{3,}.*\w{2,}.*\(default:", part.split(maxsplit=1)[1], re.DOTALL) for part in parts)
    assert f"(default: pocket {defaults('pocket', 'teacher')['lr']}," in shown and "(default: 0.6)" in shown


def test_help_of_heal_config_explains_every_field():
    for kind in (HealConfig, DoseConfig):
        explained = re.findall(r"^ {8}(\w+): \S", kind.__doc__, re.MULTILINE)
        assert explained == [f.name for f in fields(kind)]


def test_preset_fills_in_what_the_command_line_does_not_say():
    config = parsed(["--preset", "qwen3-0.6b", "--batch-size", "2"], "steer-heal run").config()
    assert config.model == "Qwen/Qwen3-0.6B" and config.dtype == "bfloat16" and config.batch_size == 2
    for preset in PRESETS.values():
        RunConfig(**preset.options)


def test_dry_run_counts_generations_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--dry-run", "--n-rounds", "2", "--eval-replies", "10"]) == 0
    shown = capsys.readouterr().out
    for words in ("n_rounds 2", "model pocket", "generations", "Time on", "Memory", "Nothing was run"):
        assert words in shown
    assert not list(tmp_path.iterdir())
    assert main(["run", "--dry-run", "--preset", "gemma-3-4b"]) == 0
    assert "not run here" in capsys.readouterr().out


def test_dry_run_counts_what_a_run_samples(fast_run):
    config = RunConfig(fast_dev_run=True, gate="watch").resolved()
    trait = Trait.load("care-over-authority")
    work = {one.stage: one for one in count(config, trait, Halves(trait.anchors))}
    sampled = sum(e["sampled"] for e in Ledger.open(fast_run).events("walk"))
    assert work["walk-C, steered"].least <= sampled <= work["walk-C, steered"].most
    calibrated = Ledger.open(fast_run).events("calibrate")[0]["calibration"]["completions"]
    assert work["calibrate the filter"].least == calibrated


def test_the_installed_command_is_this_one():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    module, function = project["scripts"]["steer-heal"].split(":")
    assert getattr(importlib.import_module(module), function) is main


def test_the_command_is_a_module_too():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "steer_heal", "comparr"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "did you mean 'compare'" in done.stderr


def test_compare_names_models_that_were_left_to_their_defaults(fast_run):
    ledger, other = Ledger.open(fast_run), Ledger.open(fast_run)
    found = finished.options_of_run(ledger)
    assert ledger.config["model"] is None and found["model"] == "tiny-random" and found["trait"]
    assert finished.differences([found, {**finished.options_of_run(other), "model": "pocket"}]) == {
        "model": ["tiny-random", "pocket"]
    }


def test_export_refuses_a_target_that_holds_something(tmp_path):
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError):
            check_target(target)
    check_target(tmp_path / "new")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_noted_on_an_interruption_is_said_in_its_line(capsys):
    from steer_heal.commands.script import guarded

    def stopped(words):
        problem = KeyboardInterrupt()
        problem.add_note("go on with --resume here")
        raise problem

    assert guarded(stopped, []) == 130
    assert capsys.readouterr().err == "steer_heal: interrupted; go on with --resume here\n"
