"""What goes to other libraries and comes back, with the real ones: `uv run --group clients pytest -m slow`."""

import numpy as np
import pytest
import torch

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
