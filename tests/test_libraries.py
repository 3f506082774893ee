"""What goes to other libraries and comes back, with the real ones: `uv run just clients`."""

import re

import numpy as np
import pytest
import torch
from resume_runs import config

import steer_heal as sh

pytestmark = pytest.mark.slow


@pytest.fixture
def vector(lm):
    return sh.extract(lm, "You are kind.", "You are cruel.", ["Hi", "Why?", "What is rain?"], layers=[1, 2])


@torch.no_grad()
def logits(lm):
    return lm.model(torch.tensor([lm.chat_ids("What is rain?")])).logits


def under(vector, lm):
    with vector.applied(lm, 20.0):
        return logits(lm)


def test_a_vector_of_steering_vectors_steers_as_ours_does(lm, vector):
    from steering_vectors import train_steering_vector

    ours, plain = under(vector, lm), logits(lm)
    with vector.to_steering_vectors().apply(lm.model, multiplier=20.0):
        torch.testing.assert_close(logits(lm), ours)
    assert not torch.allclose(plain, ours)
    theirs = train_steering_vector(lm.model, lm.tokenizer, [("I love rain", "I hate rain"), ("Yes", "No")], layers=[2])
    with theirs.apply(lm.model, multiplier=20.0):
        steered = logits(lm)
    torch.testing.assert_close(under(sh.SteeringVector.from_tensors(theirs, lm), lm), steered)


def test_a_control_vector_of_repeng_steers_as_ours_does(lm, vector, monkeypatch):
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # repeng 0.4.0 is of NumPy 1
    from repeng import ControlModel, ControlVector

    ours, plain = under(vector, lm), logits(lm)
    theirs = ControlVector("qwen3", {1: vector.vectors[2].numpy(), 2: vector.vectors[1].numpy()})
    trained = under(sh.SteeringVector.from_tensors(theirs, lm), lm)
    control = ControlModel(lm.model, [1, 2])
    for given, expected in ((vector.to_repeng(lm.base.config.model_type), ours), (theirs, trained)):
        control.set_control(given, 20.0)
        torch.testing.assert_close(logits(lm), expected)
    control.unwrap()
    assert torch.equal(logits(lm), plain)


def test_a_dataset_of_completions_is_written_read_and_learned_from(lm, tmp_path):
    from datasets import Dataset, load_dataset

    made = [sh.Completion.from_text(lm, "What is rain?", f"Rain {i}", "You are kind.", row=i) for i in range(4)]
    Dataset.from_list(sh.completion_rows(made)).to_json(tmp_path / "rows.jsonl")
    rows = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path))
    assert sh.completions_from_rows(lm, rows) == made
    sh.save_completions(made, tmp_path / "completions.jsonl")
    whole = load_dataset("json", data_files=str(tmp_path / "completions.jsonl"), split="train", cache_dir=str(tmp_path))
    assert whole["text"][0] == made[0].text


def figures_of_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [one.value for one in read.Scalars(name)] for name in read.Tags()["scalars"]}


def figures_of_wandb(folder):
    """From the offline run's file: a log of records in blocks of 32 kB (LevelDB's), protocol buffers inside."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, place, content = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        size = int.from_bytes(data[place + 4 : place + 6], "little")
        content += data[place + 7 : place + 7 + size]
        place += 7 + size
    found = {}
    for key, value in re.findall(rb"([a-z_]+/[a-z_0-9/]+)[^a-z]{1,4}?(-?[0-9][0-9.e-]*)", content):
        values = found.setdefault(key.decode(), [])
        values += [float(value)] * (values[-1:] != [float(value)])  # every record of history has one of the summary
    return found


def figures_of_trackio(folder):
    from trackio.sqlite_storage import SQLiteStorage

    found = {}
    for row in SQLiteStorage.get_logs("steer_heal", folder.name):
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_has_the_figures_of_the_run_without_a_network(name, tmp_path, monkeypatch, undrawn):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    told = []
    result = sh.run_rounds(config(tmp_path, n_rounds=1, track=name), on_event=told.append)
    found = globals()[f"figures_of_{name}"](result.folder)
    (heal,) = (event for event in told if event["stage"] == "heal")
    for key in ("train_target_before", "train_target_after"):
        assert found[f"heal/figures/{key}"][:1] == pytest.approx([heal["figures"][key]], rel=1e-4)
    losses = [step["loss"] for step in heal["steps"]]
    assert found["step/loss"][: len(losses)] == pytest.approx(losses, rel=1e-4)
    assert any(key.startswith("gate/") for key in found) and any(key.startswith("walk/") for key in found)
