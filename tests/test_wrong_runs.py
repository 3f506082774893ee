"""Damaged run folders, adapters, vectors and odd terminals: one line, nothing written or lost, or the same result."""

import contextlib
import io
import json
import os
import random
import shutil
import threading

import pytest
from resume_runs import config, content, folder_of, go, mini_trait
from safetensors.torch import load_file, save_file
from test_resume_refused import _interrupt
from wrong_inputs import JSON_VALUES, called, damages, places, retyped, told

import steer_heal as sh
from steer_heal.commands.main import main
from steer_heal.errors import InputError
from steer_heal.healing.adapter import Adapter
from steer_heal.ledger.files import write_json
from steer_heal.report.pages import writing
from steer_heal.report.plots import drawing
from steer_heal.steering import SteeringVector
from steer_heal.texts.generation import generate

pytestmark = pytest.mark.usefixtures("undrawn")
RECORD = (".json", ".jsonl")
SEAL = "sha256.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "png", lambda plot: b"\x89PNG")
        patch.setattr(drawing, "svg", lambda panel: "<svg/>")
        return go(place, n_rounds=1)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was interrupted before its gate."""
    place = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("steer_heal.loop.gate.examine", _interrupt)
        go(place, n_rounds=1)
    return folder_of(place)


def command(name, folder):
    return {
        "report": ["report", str(folder)],
        "compare": ["compare", str(folder), str(folder) + "/."],
        "export": ["export", str(folder), "--to", str(folder.parent / "new")],
        "chat": ["chat", str(folder), "--prompt", "hi", "--max-new-tokens", "2"],
        "resume": ["run", "--resume", str(folder), "--quiet"],
    }[name]


def copy_of(folder, tmp_path):
    place = shutil.copytree(folder.parents[1], tmp_path / f"copy{len(list(tmp_path.iterdir()))}")
    return place / "out" / folder.name


# -- finished runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report", "export", "chat"])
def test_no_damaged_record_of_a_finished_run_is_read(name, finished, tmp_path):
    files = [path.relative_to(finished) for path in sorted(finished.rglob("*")) if path.suffix in RECORD]
    assert len(files) >= 9
    draw = random.Random(name)
    for file in files:
        for how, damage in draw.sample([*damages(2).items()], 4):
            folder = copy_of(finished, tmp_path)
            before = (folder / file).read_bytes()
            damage(folder / file)
            if ((folder / file).is_file() and (folder / file).read_bytes() == before) or file.name == SEAL == how:
                continue  # an empty file that was cut
            what = told(command(name, folder), folder.parent)
            assert what == "refused" or (file.name == SEAL and how in ("gone", "circle")), (file, how, what)
            shutil.rmtree(folder.parents[1])


@pytest.mark.parametrize("name", ["export", "chat"])
def test_no_damaged_weights_of_a_finished_run_are_read(name, finished, tmp_path):
    for file in sorted(finished.rglob("*.safetensors")):
        for how, damage in random.Random(f"{name}{file.name}").sample([*damages(3).items()], 5):
            folder = copy_of(finished, tmp_path)
            damage(folder / file.relative_to(finished))
            assert told(command(name, folder), folder.parent) == "refused", (file, how)
            shutil.rmtree(folder.parents[1])


def test_a_sound_finished_run_is_read(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    assert told(command("report", folder)) == "done" and told(command("chat", folder)) == "done"
    assert told(command("resume", folder), folder) == "refused"  # there is nothing to go on with


def try_unsealed(finished, tmp_path, share):
    """Values of a record without checksums, or with such as fit, are other figures: pages come of them, or one line."""
    folder, draw, tried = copy_of(finished, tmp_path), random.Random(4), 0
    (folder / SEAL).unlink()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    pages = ("report.html", "summary.md")
    for number, event in enumerate(events):
        for place in places(event):
            if draw.random() > share:
                continue
            (folder / "event.json").write_text(json.dumps(event))
            retyped(folder / "event.json", place, draw.choice(JSON_VALUES))
            changed = [*events[:number], json.loads((folder / "event.json").read_text()), *events[number + 1 :]]
            (folder / "event.json").unlink()
            (folder / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in changed))
            for page in pages:
                (folder / page).unlink(missing_ok=True)
            what = told(command("report", folder), folder)
            written = all((folder / page).is_file() for page in pages)
            assert what in ("refused", "done") and written == (what == "done"), (event["stage"], place, what)
            tried += 1
    return tried


def test_other_values_in_the_events_give_pages_or_one_line(finished, tmp_path):
    assert try_unsealed(finished, tmp_path, 0.02) >= 10


@pytest.mark.slow
def test_any_other_value_in_the_events_gives_pages_or_one_line(finished, tmp_path):
    assert try_unsealed(finished, tmp_path, 1.0) >= 400


# -- unfinished runs --------------------------------------------------------------------------------------------------


def try_stopped(stopped, whole, tmp_path, share):
    """A damaged run is refused and left as it was; or what was damaged was not needed, and every bit is as without."""
    draw, tried = random.Random(5), 0
    for file in sorted(path.relative_to(stopped) for path in stopped.rglob("*") if path.is_file()):
        for how, damage in damages(6).items():
            # A lock that is gone or full of something else is taken all the same.
            kinds = ("folder", "pipe", "device", "circle")
            if (file.name == "lock" and how not in kinds) or draw.random() > share:
                continue
            folder = copy_of(stopped, tmp_path)
            before = (folder / file).read_bytes()
            damage(folder / file)
            what = told(command("resume", folder), folder)
            assert what == "refused" or (what == "done" and content(folder) == whole), (file, how, what, before[:40])
            shutil.rmtree(folder.parents[1])
            tried += 1
    return tried


def test_a_damaged_unfinished_run_is_refused_or_ends_as_it_would_have(stopped, finished, tmp_path):
    assert try_stopped(stopped, content(finished), tmp_path, 0.015) >= 4


@pytest.mark.parametrize("name", ["events.jsonl", "lock", "config.json"])
@pytest.mark.parametrize("how", ["folder", "pipe", "device"])
def test_what_is_no_file_in_an_unfinished_run_is_refused_and_not_waited_for(stopped, tmp_path, name, how):
    folder = copy_of(stopped, tmp_path)
    (folder / name).touch()
    damages(6)[how](folder / name)
    assert told(command("resume", folder), folder) == "refused"


def test_a_pipe_in_the_way_of_a_file_that_is_written_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "base.json.partial")
    with pytest.raises(InputError, match=r"base\.json\.partial: is a folder, pipe or device"):
        write_json(tmp_path / "base.json", {})


@pytest.mark.slow
def test_every_damage_to_an_unfinished_run_is_refused_or_ends_as_it_would_have(stopped, finished, tmp_path):
    assert try_stopped(stopped, content(finished), tmp_path, 0.5) >= 100


# -- adapters and vectors ---------------------------------------------------------------------------------------------


@pytest.fixture
def parts(finished, tmp_path):
    """(adapter folder, vector file) of a run, to be damaged."""
    shutil.copytree(finished / "rounds" / "00", tmp_path / "00")
    return tmp_path / "00" / "adapter", tmp_path / "00" / "vector.safetensors"


def test_no_damaged_adapter_or_vector_is_loaded(parts, tmp_path):
    adapter, vector = parts
    for file, load in ((adapter / "adapter_config.json", lambda: Adapter.load(adapter)),
                       (adapter / "adapter_model.safetensors", lambda: Adapter.load(adapter)),
                       (vector, lambda: SteeringVector.load(vector))):  # fmt: skip
        whole = file.read_bytes()
        for how, damage in damages(8).items():
            if how == "flipped":  # without a checksum it may be another one, and a sound one
                continue
            damage(file)
            assert called(load) == "refused", (file, how)
            shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
            file.write_bytes(whole)
    assert called(lambda: (Adapter.load(adapter), SteeringVector.load(vector))) == "done"


TENSORS = {
    "not finite": lambda w: w * float("nan"), "shorter": lambda w: w[:-1], "flat": lambda w: w.flatten(),
    "of another rank": lambda w: w[:, :-1], "whole": lambda w: (w * 0).int(),
}  # fmt: skip


@pytest.mark.parametrize("how", TENSORS)
def test_no_adapter_or_vector_of_unfit_tensors_is_loaded(how, parts):
    adapter, vector = parts
    for file in (adapter / "adapter_model.safetensors", vector):
        from safetensors import safe_open

        with safe_open(file, framework="pt") as read:
            meta = read.metadata()
        change = TENSORS[how] if file != vector or "rank" not in how else TENSORS["shorter"]
        if how == "flat" and file == vector:
            change = TENSORS["whole"]
        save_file({key: change(value).contiguous() for key, value in load_file(file).items()}, file, metadata=meta)
    assert (
        called(lambda: Adapter.load(adapter)) == "refused" and called(lambda: SteeringVector.load(vector)) == "refused"
    )


@pytest.mark.parametrize("key", ["r", "lora_alpha", "peft_type", "bias"])
def test_no_adapter_with_another_value_for_what_it_is_made_of_is_loaded(key, parts):
    path = parts[0] / "adapter_config.json"
    sound = path.read_text()
    for value in ("abc", -1, 0.5, float("nan"), None, [], {}, 10**400, True):
        if (key, value) in (("lora_alpha", -1), ("lora_alpha", 0.5)):
            continue  # factors like any other
        path.write_text(sound)
        retyped(path, (key,), value)
        assert called(lambda: Adapter.load(parts[0])) == "refused", value


# -- terminals, folders, threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["run", "--help", "all"], ["traits", "list"],
                                   ["traits", "show", "pocket-care"], ["report"], ["compare"]])  # fmt: skip
def test_a_terminal_of_20_columns_and_no_character_but_ascii_will_do(words, finished, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    words = command(words[0], finished) if words[0] in ("report", "compare") else words
    streams = [io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True) for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = main(words)
    assert code == (2 if words[0] == "compare" else 0)
    said = streams[code == 2].buffer.getvalue()
    assert len(said) > 20 and said.isascii()


def test_a_run_whose_reader_has_gone_goes_on_to_its_end(tmp_path, monkeypatch):
    """What `| head -1` does: the pipe is closed at once."""
    trait = str(mini_trait(tmp_path))
    read, write = os.pipe()
    os.close(read)
    options = config(tmp_path, n_rounds=1)
    names = ("max_new_tokens", "n_min", "walk_batch", "epochs", "rank", "filter", "gate", "n_rounds", "out")
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        code = main(["run", "--fast-dev-run", "--trait", trait, *words])
        monkeypatch.undo()
    assert code in (0, 3) and (folder_of(tmp_path) / "summary.md").is_file()


def test_a_deleted_working_directory_is_one_line(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (["traits", "list"], ["run", "--fast-dev-run"], ["report", "x"]):
        assert told(words) == "refused"


def test_threads_get_the_replies_that_they_would_get_alone(tiny):
    prompts = [f"what about the {word} ?" for word in ("rain", "gate", "nurse", "rule")]
    alone = [generate(tiny, [prompt], max_new_tokens=8, seed=i) for i, prompt in enumerate(prompts)]
    found = {}

    def ask(i):
        found[i] = generate(tiny, [prompts[i]], max_new_tokens=8, seed=i)

    for _ in range(3):
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert [found[i] for i in range(len(prompts))] == alone
    assert sh.generate is generate
