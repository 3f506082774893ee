"""The shipped weights of `pocket`, run with plain transformers at a reduced sample size."""

import ast
import json
import random
from pathlib import Path
from statistics import fmean

import pytest
import torch
from pocket_training.checks import CHECKERS, dose_sweep, extract
from pocket_training.corpus import AXES, make_scene, persona_texts, question
from pocket_training.measure import (
    Pocket,
    Sampling,
    anchors_right,
    forced_choice,
    free_text,
    replies,
)
from pocket_training.training import TrainConfig, hide_system, learning_rate_factor, reply_weights, train
from pocket_training.traitfiles import NEUTRAL, PERSONAS, TRAITS
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import steer_heal.pocket as pocket_package
from steer_heal.pocket import WEIGHTS

FOLDER = TRAITS / "pocket-care"
CLEAN_DOSE = 0.75


def records(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def pocket() -> Pocket:
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    return Pocket(model, AutoTokenizer.from_pretrained(WEIGHTS))


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return (FOLDER / "eval_prompts.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def base(pocket, prompts):
    return replies(pocket, prompts, NEUTRAL, seed=11)


def test_the_package_itself_imports_no_torch():
    tree = ast.parse(Path(pocket_package.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"pathlib"}


def test_weights_are_a_small_portable_transformers_folder(pocket):
    names = {path.name for path in WEIGHTS.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert (WEIGHTS / "model.safetensors").stat().st_size < 5e6
    assert isinstance(pocket.model, LlamaForCausalLM)
    assert AutoModelForCausalLM.from_pretrained(WEIGHTS).dtype == torch.float16
    for path in WEIGHTS.iterdir():
        assert path.stat().st_mode & 0o044 == 0o044, "everyone may read"
        if path.suffix != ".safetensors":
            here = str(Path(__file__).parents[1])
            assert "/home/" not in (text := path.read_text(encoding="utf-8")) and here not in text


def test_default_sampling_is_the_documented_one(pocket):
    config, sampling = pocket.model.generation_config, Sampling()
    assert (config.do_sample, config.temperature, config.top_p) == (True, sampling.temperature, sampling.top_p)
    assert config.eos_token_id == pocket.tokenizer.eos_token_id
    assert config.pad_token_id == pocket.tokenizer.pad_token_id


def test_neutral_replies_are_coherent_varied_and_leave_headroom(prompts, base):
    judged = free_text(prompts, base, CHECKERS["care"])
    assert judged.sentence_ok.mean >= 0.93  # target .95, standard error about .01
    assert judged.finished >= 0.98
    assert 0.2 <= judged.trait.mean <= 0.52  # target .25-.45, standard error .05
    assert 25 <= judged.words <= 45
    assert len({reply.text for reply in base}) >= 0.9 * len(base)


def test_coherence_on_all_held_out_dilemmas_is_no_worse_than_reported(pocket):
    """Third-person deciders and groups included: the target of .95 is missed here (docs/pocket.md)."""
    rng = random.Random(9)
    asked = [question(rng, make_scene(rng, "held_out")) for _ in range(64)]
    judged = free_text(asked, replies(pocket, asked, NEUTRAL, seed=4), CHECKERS["care"])
    assert judged.sentence_ok.mean >= 0.78


def test_coherence_does_not_depend_on_the_stance(prompts, base):
    sides = free_text(prompts, base, CHECKERS["care"]).by_stance
    assert abs(sides[1.0].mean - sides[0.0].mean) < 0.06


# Boldness misses its target of .6 in replies (docs/pocket.md): its bound guards what there is.
@pytest.mark.parametrize(
    ("axis", "in_replies", "in_choices"), [("care", 0.85, 0.85), ("warmth", 0.6, 0.6), ("boldness", 0.15, 0.5)]
)
def test_held_out_personas_separate_replies_and_choices(pocket, prompts, axis, in_replies, in_choices):
    items = records("items.jsonl" if axis == "care" else f"items_{axis}.jsonl")[:24]
    traits, rates = {}, {}
    for pole in (1, -1):
        texts = persona_texts(axis, pole, "held_out")
        systems = [*texts[:2], *random.Random(1).sample(texts[2:], 2)]
        found = [(prompt, systems[index % 4]) for index, prompt in enumerate(prompts[:32])]
        stances, choices = [], []
        for index, system in enumerate(systems):
            asked = [prompt for prompt, other in found if other == system]
            told = replies(pocket, asked, system, seed=index)
            checks = [CHECKERS[axis](a, b.text, b.finished).trait for a, b in zip(asked, told, strict=True)]
            stances += [stance for stance in checks if stance is not None]
            choices.append(forced_choice(pocket, items, system).rate.mean)
        traits[pole], rates[pole] = fmean(stances), fmean(choices)
    assert traits[1] - traits[-1] >= in_replies
    assert rates[1] - rates[-1] >= in_choices


def test_forced_choice_without_a_persona_is_not_saturated(pocket):
    for axis in AXES:
        items = records("items.jsonl" if axis == "care" else f"items_{axis}.jsonl")[:48]
        choice = forced_choice(pocket, items, NEUTRAL)
        assert 0.15 < choice.rate.mean < 0.65, axis
        assert choice.allowed_mass > 0.95


def test_anchors_are_right_and_are_lost_when_the_model_breaks(pocket):
    anchors = records("anchors.jsonl")
    assert sum(anchors_right(pocket, anchors, NEUTRAL)) >= 0.93 * len(anchors)
    hurt = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in hurt.model.layers.parameters():
            weight += 0.4 * weight.std() * torch.randn_like(weight) if weight.ndim == 2 else 0
    assert sum(anchors_right(Pocket(hurt, pocket.tokenizer), anchors, NEUTRAL)) < 0.7 * len(anchors)


def test_everyday_replies_are_coherent(pocket):
    asked = (FOLDER / "replay_prompts.txt").read_text(encoding="utf-8").splitlines()[:48]
    judged = free_text(asked, replies(pocket, asked, NEUTRAL, seed=3), CHECKERS["care"])
    assert judged.sentence_ok.mean >= 0.93


def test_steering_has_a_clean_window_and_a_broken_end(pocket):
    start, clean, broken = dose_sweep(pocket, "care", (1, 2), 32, doses=(0.0, CLEAN_DOSE, 4.0))
    assert clean.text.trait.mean > start.text.trait.mean + 0.3
    assert clean.choices["care"].log_odds.mean > start.choices["care"].log_odds.mean + 1.0
    assert clean.text.sentence_ok.mean > start.text.sentence_ok.mean - 0.06
    assert broken.text.sentence_ok.mean < start.text.sentence_ok.mean - 0.3
    assert broken.nll.mean > start.nll.mean + 1.0


def test_vector_points_from_the_opposite_persona_to_the_trait(pocket):
    vector, relative = extract(pocket, "care", (1, 2))
    assert all(0.02 < norm < 1.0 for norm in relative.values())
    _, pos, neg = PERSONAS["care"]
    assert pos != neg and len(pos) == len(neg)
    assert all(value.shape == (pocket.model.config.hidden_size,) for value in vector.values())


# ---------------------------------------------------------------------------------------------------------- training
def test_training_is_deterministic_and_learns(pocket):
    def run() -> tuple[list[dict], LlamaForCausalLM]:
        seen: list[dict] = []
        config = TrainConfig(steps=12, batch=8, width=32, depth=2, heads=2, feed_forward=64)
        return seen, train(config, pocket.tokenizer, lambda record, _model: seen.append(record), every=6)

    (log, first), (_, second) = run(), run()
    assert [record["step"] for record in log] == [6, 12]
    assert log[1]["loss"] < log[0]["loss"]
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_hidden_system_turn_is_seen_by_itself_and_the_assistant_tag_alone(pocket):
    system_end, prompt, length = 4, 9, 12
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    hide_system(mask, prompt, system_end)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    sees_system = mask[:, 1:system_end].any(1).nonzero().flatten().tolist()
    assert sees_system == [1, 2, 3, prompt - 1]
    assert torch.equal(mask[prompt - 1], causal[prompt - 1])
    assert torch.equal(mask[:, system_end:], causal[:, system_end:])
    assert mask[:, 0].all()


def test_naming_tokens_weigh_more_than_others(pocket):
    ids = pocket.tokenizer.get_vocab()
    weights = reply_weights(ids, TrainConfig())
    assert {weights[ids[word]].item() for word in ("mara", "lamp", "twins", "her", "harbor", "mayor")} == {2.0}
    assert {weights[ids[word]].item() for word in ("the", "and", ".", "mercy", "<|end|>")} == {1.0}


def test_schedule_counts_steps():
    config = TrainConfig(steps=1000, decay_from=0.3)
    factors = [learning_rate_factor(step, config) for step in range(1000)]
    assert factors[0] == pytest.approx(1 / config.warmup_steps)
    assert factors[200] == 1.0 and factors[299] == 1.0
    assert factors[650] == pytest.approx(0.5, abs=0.01)
    assert factors[-1] == pytest.approx(config.final_lr)
