"""The arena: arms against closed forms and references, what is read off at equal coherence, the command."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import make
from hypothesis import given
from hypothesis import strategies as st
from resume_runs import SETTINGS, mini_trait
from script_modules import script

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation.metrics import ReplyRow
from steer_heal.healing import HealConfig, heal
from steer_heal.healing.bake.bias import bias_baked
from steer_heal.loop import gate
from steer_heal.loop.rounds import run_rounds
from steer_heal.model import load
from steer_heal.steering import extract
from steer_heal.studies.arena import Arguments, arena, arms, ground, measuring
from steer_heal.studies.arena.arms import ARMS, PRODUCT, PROMPT
from steer_heal.studies.arena.dials import Dial
from steer_heal.studies.arena.equal import COHERENCE, at_equal_coherence, falling, reach
from steer_heal.studies.arena.ground import Ground, Sizes
from steer_heal.studies.arena.measuring import Curve, Point, measured
from steer_heal.studies.arena.methods.learned_vector import TOP_K, intervened, learn_vector
from steer_heal.studies.arena.methods.preference import Pair, prefer, preference_loss, reply_logprobs
from steer_heal.studies.arena.score import harmonic_mean, scores
from steer_heal.studies.arena.table import verdict
from steer_heal.texts.completion import load_completions

SMALL = Sizes(rounds=1, texts=8, epochs=1, neutral=4)


def logits(lm):
    ids = torch.arange(5, 17)[None].expand(2, -1)
    with torch.no_grad():
        return lm.base(input_ids=ids, use_cache=False).logits


@pytest.fixture(scope="module")
def tiny_ground(tmp_path_factory):
    """`tiny-random` with short texts, for arms that train; each leaves the model as it was."""
    config = RunConfig(model="tiny-random", seed=3, max_new_tokens=10, threads=1)
    return Ground(config.resolved(), SMALL, tmp_path_factory.mktemp("ground"))


# ------------------------------------------------------------------------------------------------------ the exact bake
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_a_vector_baked_into_biases_is_the_steered_model(family):
    lm = make(family)
    vector = extract(lm, "be good.", "be bad.", ["one", "two", "three"], layers=(0.3, 0.8)).unit()
    before = logits(lm)
    with vector.applied(lm.model, 5.0):
        steered = logits(lm)
    with bias_baked(lm, vector, 5.0):
        baked = logits(lm)
    assert (steered - before).abs().max() > 0.05
    torch.testing.assert_close(baked, steered, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(lm), before)


def test_a_block_that_normalises_behind_its_last_map_is_refused():
    lm = make("gemma2")
    vector = extract(lm, "be good.", "be bad.", ["one", "two"], layers=(0.3, 0.8))
    before = logits(lm)
    with pytest.raises(InputError, match="no bias is the steering"), bias_baked(lm, vector, 1.0):
        pass
    assert torch.equal(logits(lm), before)


# ---------------------------------------------------------------------------------------------------------- preferences
def test_the_preference_loss_is_the_papers_in_float64():
    torch.manual_seed(0)
    student = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    known = torch.randn(2, 6, dtype=torch.float64)
    loss = preference_loss(student[0], student[1], known[0], known[1], beta=0.1)
    margin = 0.1 * ((student[0] - known[0]) - (student[1] - known[1]))
    torch.testing.assert_close(loss, torch.log1p(torch.exp(-margin)), atol=1e-12, rtol=0)
    loss.sum().backward()
    expected = -0.1 * torch.sigmoid(-margin).detach()
    torch.testing.assert_close(student.grad, torch.stack([expected, -expected]), atol=1e-12, rtol=0)
    assert preference_loss(known[0], known[1], known[0], known[1]).tolist() == pytest.approx([math.log(2)] * 6)


def test_preferring_raises_the_chosen_over_the_rejected_and_starts_at_log_2(lm, data):
    pairs = [Pair(replace(b, prompt_ids=a.prompt_ids), a) for a, b in zip(data[::2], data[1::2], strict=True)]
    config = HealConfig(lr=5e-3, epochs=4, batch_size=3, rank=4, alpha=8.0)
    before = logits(lm)
    adapter, losses = prefer(lm, pairs, config)
    assert torch.equal(logits(lm), before)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0] - 0.01
    one = lm.base.get_submodule(adapter.modules[0])
    assert not hasattr(one, "base_layer")


def test_log_probabilities_of_whole_replies_are_sums_over_their_tokens(lm, data):
    found = reply_logprobs(lm, data[:3])
    for completion, value in zip(data[:3], found, strict=True):
        ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
        logp = lm.base(input_ids=ids).logits[0].log_softmax(-1)
        n = len(completion.token_ids)
        expected = logp[-n - 1 : -1].gather(1, ids[0, -n:, None]).sum()
        assert value.item() == pytest.approx(expected.item(), abs=1e-3)


# ------------------------------------------------------------------------------------------------------ learned vector
def test_the_intervention_averages_the_largest_activations_of_real_tokens():
    torch.manual_seed(0)
    hidden, w = torch.randn(2, 12, 4), torch.tensor([1.0, 0, 0, 0])
    real = torch.ones(2, 12)
    real[1, :3] = 0
    changed, strength, rest = intervened(hidden, w, real)
    for row in range(2):
        active = sorted((max(0.0, h[0].item()) for h, there in zip(hidden[row], real[row], strict=True) if there))[::-1]
        assert strength[row].item() == pytest.approx(sum(active[:TOP_K]) / TOP_K)
        others = active[TOP_K:]
        assert rest[row].item() == pytest.approx(sum(others) / max(1, len(others)), abs=1e-6)
        torch.testing.assert_close(changed[row] - hidden[row], strength[row] * w.expand(12, 4))


def test_a_learned_vector_makes_its_replies_likelier_and_leaves_the_model(lm, data):
    like = extract(lm, "be good.", "be bad.", ["one", "two"], layers=(0.3, 0.8))
    before, rows = logits(lm), [replace(data[1], prompt_ids=data[0].prompt_ids)] * 4
    vector, steps = learn_vector(lm, rows, like, HealConfig(lr=3e-2, epochs=30, batch_size=2))
    assert torch.equal(logits(lm), before) and steps == 60 and len(vector.layers) == 1
    plain = reply_logprobs(lm, rows[:1]).item()
    with vector.applied(lm.model, 1.0):
        assert reply_logprobs(lm, rows[:1]).item() > plain + 0.05


# ---------------------------------------------------------------------------------------------------------------- arms
TRAINED = [name for name in ARMS if name not in (PROMPT, PRODUCT, "tokens")]


@pytest.mark.parametrize("name", TRAINED)
def test_every_arm_makes_a_dial_that_is_nothing_at_0_and_something_at_1(tiny_ground, name, tmp_path):
    lm, before = tiny_ground.lm, logits(tiny_ground.lm)
    tiny_ground.spent = ground.Spent()
    dial = ARMS[name].make(tiny_ground, ARMS[name].rate or 0.0)
    assert torch.equal(logits(lm), before), "training changed the model itself"
    with dial.turned(tiny_ground, 0.0):
        assert torch.equal(logits(lm), before)
    with dial.turned(tiny_ground, 1.0):
        moved = logits(lm)
    assert not torch.equal(moved, before) and torch.equal(logits(lm), before)
    dial.save(tmp_path / name)
    again = Dial.load(tmp_path / name)
    with again.turned(tiny_ground, 1.0):
        assert torch.equal(logits(lm), moved)
    assert again.spent == dial.spent
    assert name == "exact-bake" or (dial.spent.tokens > 0 and dial.spent.steps > 0)


def test_contrastive_weights_subtract_what_the_opposite_taught(tiny_ground):
    dial = ARMS["contrastive"].make(tiny_ground, 1e-3)
    (towards, one), (away, other) = dial.adapters
    assert (one, other) == (1.0, -1.0) and towards.cosine(away) < 0.99
    name = towards.modules[0]
    with dial.turned(tiny_ground, 2.0):
        found = tiny_ground.material.stack.summed_delta(name)
    torch.testing.assert_close(found, 2 * (towards.delta(name) - away.delta(name)))


def test_a_teacher_that_reads_the_neutral_prompt_teaches_nothing(tiny_ground):
    texts = tiny_ground.sampled("own", tiny_ground.prompts)
    neutral = replace(tiny_ground.material.trait, pos=tiny_ground.material.trait.neutral)
    same = Ground.__new__(Ground)
    same.__dict__.update(tiny_ground.__dict__ | {"material": replace(tiny_ground.material, trait=neutral)})
    config = HealConfig(reg="nll", targets="teacher", target_divergence="forward", epochs=1, lr=1e-2)
    healed = heal(tiny_ground.lm, texts, config, teacher=same.persona(texts))
    assert healed.figures["train_target_before"] < 1e-9 and healed.steps[0]["grad_norm"] < 1e-4
    persona = heal(tiny_ground.lm, texts, config, teacher=tiny_ground.persona(texts))
    assert persona.figures["train_target_before"] > 1e-6
    assert persona.steps[0]["grad_norm"] > 100 * healed.steps[0]["grad_norm"]


def test_shared_texts_are_sampled_once_and_stand_on_every_bill(tiny_ground, monkeypatch):
    tiny_ground.spent = ground.Spent()
    texts = tiny_ground.sampled("once", tiny_ground.prompts, system=tiny_ground.material.trait.pos)
    bill = tiny_ground.spent.tokens
    monkeypatch.setattr(ground, "generate", lambda *a, **k: pytest.fail("sampled twice"))
    assert tiny_ground.sampled("once", tiny_ground.prompts) == texts
    assert tiny_ground.spent.tokens == 2 * bill == 2 * sum(len(c.token_ids) for c in texts)
    assert {c.system for c in texts} == {tiny_ground.material.trait.neutral}
    assert load_completions(tiny_ground.folder / "once.jsonl") == texts


@pytest.mark.parametrize("name", [PRODUCT, "tokens"])
def test_the_products_arms_are_its_main_job(tiny_ground, name, monkeypatch):
    asked = []

    class Asked(Exception):
        pass

    def run_rounds(config):
        asked.append(config)
        raise Asked

    monkeypatch.setattr("steer_heal.studies.arena.arms.run_rounds", run_rounds)
    with pytest.raises(Asked):
        ARMS[name].make(tiny_ground, 0.0)
    usual = RunConfig(model="tiny-random", targets=asked[0].targets)
    assert (asked[0].targets, asked[0].seed) == ({PRODUCT: "teacher"}.get(name, "tokens"), 3)
    sized = {"n_rounds", "n_min", "walk_batch", "out", "seed", "threads"}
    differ = {key for key, value in asked[0].to_dict().items() if usual.to_dict()[key] != value}
    assert differ <= sized


@pytest.mark.parametrize("name", [PRODUCT, "tokens"])
def test_the_products_arms_train_and_leave_the_model(tiny_ground, name, tmp_path, monkeypatch, undrawn):
    small = {**SETTINGS, "trait": str(mini_trait(tmp_path)), "n_rounds": 1}
    monkeypatch.setattr(arms, "run_rounds", lambda config: run_rounds(replace(config, **small)))
    monkeypatch.setattr(gate, "fall_back", lambda run, best: None)  # no round of a random model stands
    lm, before = tiny_ground.lm, logits(tiny_ground.lm)
    tiny_ground.spent = ground.Spent()
    monkeypatch.setattr(tiny_ground, "folder", tmp_path)
    dial = ARMS[name].make(tiny_ground, 0.0)
    assert torch.equal(logits(lm), before) and dial.spent.tokens > 0 and dial.spent.steps > 0
    with dial.turned(tiny_ground, 1.0):
        assert not torch.equal(logits(lm), before)
    assert torch.equal(logits(lm), before)


# --------------------------------------------------------------------------------------------------- equal coherence
@given(st.lists(st.floats(0, 2), min_size=1, max_size=9))
def test_a_monotone_fit_never_rises_keeps_the_mean_and_leaves_what_falls(values):
    fitted = falling(np.array(values))
    assert (np.diff(fitted) <= 1e-12).all()
    assert fitted.mean() == pytest.approx(np.mean(values))
    assert falling(fitted) == pytest.approx(fitted)
    ordered = sorted(values, reverse=True)
    assert falling(np.array(ordered)) == pytest.approx(ordered)


def test_the_reach_of_a_line_is_where_it_crosses():
    strengths = np.array([0.0, 1.0, 2.0])
    assert reach(strengths, np.array([1.0, 0.98, 0.94]), 0.97) == pytest.approx(1.25)
    assert reach(strengths, np.array([1.0, 0.98, 0.975]), 0.97) == 2.0
    assert reach(strengths, np.array([1.0, 0.96, 1.0]), 0.97) == 2.0, "a dip that comes back is noise"


def curve_of(metrics, shifts, sounds, name="one", seed=0):
    """A curve whose points have these log-odds shifts and shares of sound sentences."""
    points = [Point(0.0, metrics, 0.0)]
    for i, (shift, sound) in enumerate(zip(shifts, sounds, strict=True), start=1):
        items = tuple(replace(row, log_odds=row.log_odds + shift) for row in metrics.items)
        replies = tuple(replace(row, sentence_ok=row.sentence_ok * sound) for row in metrics.replies)
        points.append(Point(float(i), replace(metrics, items=items, replies=replies), 0.1 * i))
    return Curve(name, seed, tuple(points), ground.Spent())


@pytest.fixture(scope="module")
def pocket_metrics():
    from steer_heal.evaluation import evaluate
    from steer_heal.trait import Trait

    trait = replace(Trait.load("pocket-care"), anchors=(), held_out_choice_templates=())
    return evaluate(load("pocket"), trait, n_items=8, n_free=8, max_new_tokens=40)


def test_trait_is_read_off_where_the_text_is_as_sound(pocket_metrics):
    one = curve_of(pocket_metrics, (1.0, 2.0), (1.0, 0.94))
    found = at_equal_coherence({"one": [one], "same": [one]}, n_boot=20)
    assert found["one"]["log-odds"][0] == pytest.approx(1 + (1 - COHERENCE) / 0.06)
    assert found["one"]["KL"][0] == pytest.approx(0.1 * found["one"]["strength"][0])
    assert (found["one"]["log-odds"] == found["same"]["log-odds"]).all(), "arms are not paired"
    free = at_equal_coherence({"one": [one]}, unlimited=["one"], n_boot=0)
    assert free["one"]["log-odds"][0] == pytest.approx(2.0)


def test_a_better_arm_is_named_before_the_product(pocket_metrics):
    weak, strong = (curve_of(pocket_metrics, (k, 2 * k), (1.0, 0.98)) for k in (1.0, 1.5))
    found = at_equal_coherence({PRODUCT: [weak], "sft": [strong]}, n_boot=50)
    assert verdict(found).startswith("**Better than steer_heal: sft (+1.00 ")
    found = at_equal_coherence({PRODUCT: [strong], "sft": [weak]}, n_boot=50)
    assert verdict(found).startswith("Nothing beats steer_heal. Worse: sft.")


# --------------------------------------------------------------------------------------------------------------- score
def test_a_score_is_the_harmonic_mean_and_0_where_one_grade_is():
    assert harmonic_mean(2, 1, 2) == pytest.approx(3 / (0.5 + 1 + 0.5))
    assert harmonic_mean(2, 0, 2) == 0
    asked = [f"{name} is at the {place}. what now?" for name, place in (("anna", "mill"), ("otto", "farm"))] * 4
    said = dict(words=3, finished=True, loop=False, reply_ok=True)
    first = ReplyRow(asked[0], "help anna at the mill.", trait=1.0, sentence_ok=1.0, **said)
    silent = ReplyRow(asked[1], "help otto at once.", trait=None, sentence_ok=1.0, **said)
    half = ReplyRow(asked[0], "help anna now.", trait=1.0, sentence_ok=0.5, **said)
    broken = ReplyRow(asked[1], "otto otto farm", trait=1.0, sentence_ok=0.2, **said)
    others = [ReplyRow(f"what about {i}?", "yes.", trait=1.0, sentence_ok=1.0, **said) for i in "abcdefgh"]
    found = scores([first, silent, half, broken, *others])
    assert found[:4] == pytest.approx([2.0, 0.0, harmonic_mean(2, 1, 1), 0.0])


# ------------------------------------------------------------------------------------------------------------- command
def test_the_command_measures_resumes_and_writes_its_page(tmp_path, capsys, monkeypatch):
    words = ["--arms", PROMPT, "exact-bake", "--seeds", "5", "--items", "8", "--replies", "8", "--workers", "1"]
    monkeypatch.setitem(ARMS, "exact-bake", replace(ARMS["exact-bake"], strengths=(0.5, 2.0, 3.0)))
    assert script("arena").main([*words, "--out", str(tmp_path)]) == 0
    page = (tmp_path / "arena.md").read_text()
    assert "| exact-bake | " in page and "Most trait at equal coherence: exact-bake" in page
    assert not (tmp_path / "exact-bake-s5" / "at-3.json").exists(), "measured on behind where the text broke"
    assert (tmp_path / "arena.png").stat().st_size > 10_000
    monkeypatch.setattr(measuring, "Ground", lambda *given: pytest.fail("measured again"))
    assert script("arena").main([*words, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "arena.md").read_text().splitlines()[2:] == page.splitlines()[2:]


def test_unusable_input_is_one_line(tmp_path):
    with pytest.raises(InputError, match="arm 'magic' is none of prompt"):
        arena(Arguments(arms=("magic",), out=tmp_path))
    config = RunConfig(model="tiny-random", threads=1, max_new_tokens=8).resolved()
    with pytest.raises(InputError, match="no checker"):
        measured(ARMS[PROMPT], config, SMALL, tmp_path)


def test_the_divergence_of_the_original_from_itself_is_0(tiny_ground):
    assert tiny_ground.divergence() == pytest.approx(0.0, abs=1e-6)
    with tiny_ground.vector.applied(tiny_ground.lm.model, 5.0):
        assert tiny_ground.divergence() > 1e-3
