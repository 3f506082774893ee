"""What cannot be gone on with: one line that says why, exit code 2, and the run folder left as it is."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from resume_runs import content, folder_of, go

from steer_heal.errors import InputError, NotWrittenError
from steer_heal.ledger import Ledger, environment, files
from steer_heal.ledger.files import append_whole, whole_lines, write_whole
from steer_heal.ledger.units import PLAIN, Units
from steer_heal.loop import frame
from steer_heal.loop.resume import newest_unfinished, reopen
from steer_heal.loop.steps import vector
from steer_heal.run import main
from steer_heal.texts.engines.transformers import TransformersEngine
from steer_heal.texts.generation import generate

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was interrupted when its second round began."""
    place = tmp_path_factory.mktemp("stopped")
    real = vector.extract
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        calls = iter([real])
        patch.setattr(vector, "extract", lambda *args, **kwargs: next(calls, _interrupt)(*args, **kwargs))
        go(place)
    return place


def _interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.fixture
def place(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def listing(place):
    """Every file with its content; the lock only tells who had the run last."""
    return {p: p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file() and p.name != "lock"}


def refused(place, capsys, *options):
    """The one line that `--resume` of the run at `place` ends with; nothing is written."""
    before = listing(place)
    assert main(["--resume", str(folder_of(place)), "--quiet", *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "Traceback" not in shown.err
    assert listing(place) == before
    Ledger(folder_of(place)).hold()  # it was let go
    return shown.err


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def change(name, *keys_and_value):
    """A function that sets a figure in a JSON file of the run folder."""
    *keys, value = keys_and_value

    def damage(folder):
        data = inner = json.loads((folder / name).read_text())
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (folder / name).write_text(json.dumps(data))

    return damage


def line(number, text):
    """A function that replaces a line of events.jsonl."""

    def damage(folder):
        lines = (folder / "events.jsonl").read_text().splitlines()
        lines[number] = text(lines[number])
        (folder / "events.jsonl").write_text("\n".join(line for line in lines if line is not None) + "\n")

    return damage


def bytes_of(name, how):
    return lambda folder: how(folder / name)


DAMAGE = {
    "unit cut": (bytes_of("units/evaluate.base.unit", cut), "evaluate.base.unit is damaged"),
    "unit with a flipped bit": (bytes_of("units/0.heal.unit", flip), "checksum"),
    "unit empty": (bytes_of("units/0.vector.unit", lambda p: p.write_bytes(b"")), "delete that file"),
    "unit of another name": (
        lambda folder: shutil.copy(folder / "units/evaluate.base.unit", folder / "units/evaluate.prompted.unit"),
        "checksum",
    ),
    "unit of another version": (
        bytes_of("units/filter.unit", lambda p: p.write_bytes(p.read_bytes().replace(b": 1,", b": 9,", 1))),
        "schema 9",
    ),
    "another lr in config.json": (change("config.json", "lr", 0.5), "config.json of this run was changed"),
    "another seed in config.json": (change("config.json", "seed", 5), "config.json of this run was changed"),
    "an unknown option in config.json": (change("config.json", "sed", 5), "config.json of this run was changed"),
    "config.json cut": (bytes_of("config.json", cut), "config.json is damaged"),
    "another schema": (change("config.json", "schema_version", 99), "schema 99"),
    "another torch": (change("environment.json", "versions", "torch", "1.0"), "torch 1.0 then"),
    "another number of threads": (change("environment.json", "cpu_threads", 10**6), "cpu threads 1000000 then, 1 now"),
    "environment.json cut": (bytes_of("environment.json", cut), "environment.json is damaged"),
    "an event that is none": (line(1, lambda _: "{broken"), "line 2: not an event"),
    "another figure in an event": (line(5, lambda text: text.replace('"kept": 8', '"kept": 9')), "walk of round 0"),
    "an event missing": (line(2, lambda _: None), "cannot be continued"),
    "completions cut": (bytes_of("rounds/00/completions.jsonl", cut), "completions.jsonl is damaged"),
    "an adapter's bit": (bytes_of("rounds/00/adapter/adapter_model.safetensors", flip), "adapter_model.safetensors is"),
    "a vector missing": (bytes_of("rounds/00/vector.safetensors", Path.unlink), "vector.safetensors is damaged"),
    "base.json changed": (bytes_of("base.json", flip), "base.json is damaged"),
    "no units": (lambda folder: shutil.rmtree(folder / "units"), "without --resume"),
    "a folder that cannot be written": (
        lambda folder: ((folder / "lock").unlink(), (folder / "lock").mkdir()),
        "is a folder, pipe or device",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_was_damaged_or_changed_is_refused_in_one_line_and_left_alone(name, place, capsys):
    damage, words = DAMAGE[name]
    damage(folder_of(place))
    if name == "a folder that cannot be written":
        assert main(["--resume", str(folder_of(place)), "--quiet"]) == 2 and words in capsys.readouterr().err
        return
    assert words in refused(place, capsys)


def test_a_damaged_unit_that_is_deleted_as_told_is_computed_anew(place, capsys):
    unit = folder_of(place) / "units" / "0.heal.unit"
    whole = unit.read_bytes()
    cut(unit)
    assert f"{unit} is damaged" in refused(place, capsys) and "delete that file" in DAMAGE["unit empty"][1]
    unit.unlink()
    rounds_before = {p: b for p, b in listing(folder_of(place)).items() if "rounds" in p.parts}
    go(place)
    assert rounds_before.items() <= listing(folder_of(place)).items() and whole


def test_a_torn_last_event_is_written_again(place):
    whole = content_of_events(place)
    log = folder_of(place) / "events.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    assert len(Ledger.open(folder_of(place)).events()) == len(whole) - 1
    go(place)
    assert content(folder_of(place))["events.jsonl"][: len(whole)] == whole


def content_of_events(place):
    return content(folder_of(place))["events.jsonl"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "5"], "--seed 5 is not what"),
        (["--out", "elsewhere"], "--out elsewhere is not where"),
        (["--reg", "nll"], "--reg nll is not what"),
        (["--model", "pocket"], "--model"),
        (["--n-rounds=1"], "--n-rounds 1"),
        (["--lr", "0.5"], "was started with (0.001)"),
        (["--epochs", "0"], "epochs"),
    ],
)
def test_other_options_than_the_runs_own_are_refused(place, capsys, options, words):
    assert words in refused(place, capsys, *options)


def test_the_runs_own_options_may_be_typed_again(place):
    assert main(["--resume", "auto", "--out", str(place / "out"), "--seed", "0", "--fast-dev-run", "--quiet"]) in (0, 3)


def test_another_model_or_trait_under_the_same_name_is_refused(place, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(frame, "fingerprint", lambda model: "other weights")
        assert "inputs.weights" in refused(place, capsys)
    trait = Path(Ledger.open(folder_of(place)).config["trait"])
    whole = trait.read_bytes()
    trait.write_bytes(whole.replace(b"you are kind", b"you are rude"))
    try:
        assert "inputs.texts" in refused(place, capsys)
    finally:
        trait.write_bytes(whole)


def test_a_finished_run_and_a_folder_that_is_none_are_refused(place, capsys, tmp_path):
    go(place)
    assert "is finished" in refused(place, capsys)
    for arguments, words in (
        (["--resume", str(tmp_path / "nowhere")], "no run folder"),
        (["--resume", "auto", "--out", str(place / "out")], "no unfinished run"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_auto_is_the_newest_run_that_has_not_ended(place):
    other = place / "out" / "00000000-000000_later"
    shutil.copytree(folder_of(place), other)
    os.utime(other / "config.json", (2e9, 2e9))
    assert newest_unfinished(place / "out") == other
    shutil.rmtree(other / "units")
    assert newest_unfinished(place / "out") == folder_of_first(place)


def folder_of_first(place):
    return next(path.parent.parent for path in (place / "out").glob("*/units/filter.unit"))


def test_a_second_process_on_a_run_folder_is_refused(place, capsys):
    first = reopen(folder_of(place))
    try:
        assert main(["--resume", str(folder_of(place))]) == 2
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    finally:
        first.release()
    go(place)


def test_ctrl_c_says_in_one_line_how_to_go_on(place, capsys, monkeypatch):
    monkeypatch.setattr(vector, "extract", _interrupt)
    assert main(["--resume", str(folder_of(place)), "--quiet"]) == 130
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "interrupted" in said and f"--resume {folder_of(place)}" in said
    assert [path.name for path in (folder_of(place) / "rounds").iterdir()] == ["00"]  # complete rounds stay
    monkeypatch.undo()
    arguments = said.split("steer_heal.run ")[1].split()
    assert main([*arguments, "--quiet"]) in (0, 3)


# -- writing ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_during_a_write_takes_effect_after_it(tmp_path, monkeypatch):
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (signal.raise_signal(signal.SIGINT), real(handle)))
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(KeyboardInterrupt):
        append_whole(tmp_path / "log", "a line")
    assert whole_lines(tmp_path / "log") == ["a line"]


def test_a_failed_write_leaves_the_old_file_and_names_the_new_one(tmp_path, monkeypatch):
    write_whole(tmp_path / "file", b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(NotWrittenError, match=r"file cannot be written \(No space"):
            patch.setattr(os, name, full)
            write_whole(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"old"


def units(folder, marks):
    folder.mkdir(exist_ok=True)
    return Units(folder, "config", lambda unit, rows: marks.append((unit, rows)))


def test_a_result_is_computed_once_and_comes_back_with_every_bit(tmp_path):
    value, calls = [0.1 + 0.2, float("inf"), 1e-320, "é", None], []
    for _ in range(2):
        kept = units(tmp_path / "units", []).part(3, "walk").once("x y", lambda: calls.append(1) or value, PLAIN)
        assert kept == value
    assert len(calls) == 1 and [p.name for p in (tmp_path / "units").iterdir()] == ["3.walk.x-y.unit"]


def test_a_name_used_twice_is_a_mistake_of_the_program(tmp_path):
    kept = units(tmp_path / "units", [])
    kept.part("a").once("b", lambda: 1, PLAIN)
    with pytest.raises(RuntimeError, match="twice"):
        kept.part("a").once("b", lambda: 2, PLAIN)


def test_batches_halved_for_lack_of_memory_are_marked_and_their_plan_is_kept(tiny, tmp_path, monkeypatch):
    prompts = [f"what about {word} ?" for word in ("rain", "rules", "doors", "letters", "nurses", "gates", "apples")]
    real, sampled, room = TransformersEngine.sample, [], [3]

    def sample(self, lm, rows, *rest):
        if len(rows) > room[0]:
            raise torch.OutOfMemoryError
        sampled.append(len(rows))
        return real(self, lm, rows, *rest)

    monkeypatch.setattr(TransformersEngine, "sample", sample)
    marks = []

    def go_on():
        return generate(tiny, prompts, max_new_tokens=4, seed=1, keep=units(tmp_path / "units", marks).part("w"))

    first = go_on()
    assert sampled == [3, 3, 1] and marks == [("w", 3)]
    (tmp_path / "units" / "w.batch-0001.unit").unlink()
    room[0] = 100  # there is memory again, but the run was planned without it
    assert go_on() == first and sampled == [3, 3, 1, 3] and len(marks) == 1


def test_a_run_short_of_memory_is_marked_and_resumes_to_its_own_bits(tmp_path, monkeypatch):
    real = TransformersEngine.sample
    lack = [True]

    def sample(self, lm, rows, vector, *rest):
        if lack[0] and vector is not None and len(rows) > 5:
            raise torch.OutOfMemoryError
        return real(self, lm, rows, vector, *rest)

    monkeypatch.setattr(TransformersEngine, "sample", sample)
    (tmp_path / "whole").mkdir()
    whole = content(go(tmp_path / "whole", n_rounds=1))
    marks = [e for e in whole["events.jsonl"] if e["stage"] == "memory"]
    assert marks and marks[0]["rows"] <= 5 and "walk" in marks[0]["unit"]
    (tmp_path / "cut").mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("steer_heal.loop.gate.examine", _interrupt)
        go(tmp_path / "cut", n_rounds=1)
    lack[0] = False
    assert content(go(tmp_path / "cut")) == whole


def test_memory_that_ran_out_elsewhere_stops_the_run_in_one_line(place, capsys, monkeypatch):
    def short(*args, **kwargs):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(vector, "extract", short)
        assert main(["--resume", str(folder_of(place)), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "memory ran out" in said and "--resume" in said
    go(place)


def test_a_run_goes_on_with_its_own_threads_whatever_this_process_has(place):
    chosen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", chosen.append)
        here = environment.environment
        patch.setattr(environment, "environment", lambda engine: here(engine) | {"cpu_threads": (chosen or [7])[-1]})
        reopen(folder_of(place)).release()
    assert set(chosen) == {1}


def test_an_environment_is_told_apart_by_what_changes_bits():
    now = environment.environment()
    assert environment.other_bits(json.loads(json.dumps(now))) is None
    assert environment.other_bits({**now, "argv": ["other"], "platform": "other"}) is None
    assert "cuda other then" in environment.other_bits({**now, "cuda": "other"})


def test_a_writer_without_keep_computes_every_time(tiny):
    assert files.PARTIAL and generate(tiny, ["one ?"], max_new_tokens=2) == generate(tiny, ["one ?"], max_new_tokens=2)


def test_reopening_lets_go_of_a_run_that_it_refuses(place):
    (folder_of(place) / "environment.json").write_text("")
    for _ in range(2):
        with pytest.raises(InputError, match=r"environment\.json is damaged"):
            reopen(folder_of(place))
