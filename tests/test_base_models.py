"""Base models without a chat template: persona slot, continuation items, doses in nats, and the example's checker."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import steer_heal as sh
from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.evaluation.choices import score_items
from steer_heal.ledger import Ledger
from steer_heal.loop.rounds import run_rounds
from steer_heal.model import LM, completion_logprobs
from steer_heal.model.chat import PERSONA_SLOT, fill_persona
from steer_heal.model.tiny import tiny_random
from steer_heal.steering import SteeringVector
from steer_heal.trait import Item

EXAMPLE = Path(__file__).parents[1] / "examples" / "stories" / "stories-cheer.toml"
STORY = "Once upon a time, there was a {persona} girl named Lily."


@pytest.fixture(scope="module")
def trait():
    return sh.Trait.load(EXAMPLE)


@pytest.fixture(scope="module")
def base():
    """A tiny random model whose tokenizer has no chat template."""
    model, tokenizer = tiny_random()
    tokenizer.chat_template = None
    return LM(model, tokenizer, "tiny-base")


@pytest.fixture(scope="module")
def checker():
    sys.path.insert(0, str(EXAMPLE.parent))
    try:
        import cheer
    finally:
        sys.path.remove(str(EXAMPLE.parent))
    return cheer


# --------------------------------------------------------------------------------------------------------- the slot
def test_a_slot_takes_the_persona_and_leaves_no_system_prompt():
    assert fill_persona(STORY, "happy") == ("Once upon a time, there was a happy girl named Lily.", None)
    assert fill_persona("A {persona} dog met a {persona} cat.", "sad") == ("A sad dog met a sad cat.", None)
    assert fill_persona("No slot.", "Be kind.") == ("No slot.", "Be kind.")


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_a_persona_the_slot_vanishes_with_its_blank(nothing):
    assert fill_persona(STORY, nothing) == ("Once upon a time, there was a girl named Lily.", None)


def test_a_base_model_reads_the_persona_in_the_story_and_nothing_in_front(base):
    shown = base.tokenizer.decode(base.chat_ids(STORY, "happy"))
    assert shown == "<|bos|>Once upon a time, there was a happy girl named Lily."


def test_a_chat_model_with_a_slot_gets_no_system_turn():
    lm = sh.load("tiny-random")
    assert lm.chat_ids("Meet a {persona} nurse.", "kind") == lm.chat_ids("Meet a kind nurse.")


def test_the_vector_is_the_difference_between_the_filled_stories(base):
    pair = [f"The dog was {PERSONA_SLOT}. It ran.", f"A {PERSONA_SLOT} cat sat here."]
    slots = sh.extract(base, "happy", "sad", pair, layers=(1,))
    states = {}
    for word in ("happy", "sad"):
        rows = []
        for text in pair:
            batch = base.pad_left([base.chat_ids(text.replace(PERSONA_SLOT, word))])
            kept = []
            handle = base.blocks[1].register_forward_hook(lambda m, a, out, kept=kept: kept.append(out))
            base.hidden_states(batch)
            handle.remove()
            out = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
            rows.append(out.reshape(-1, base.width)[-1].detach())
        states[word] = torch.stack(rows).mean(0)
    torch.testing.assert_close(slots.vectors[1], states["happy"] - states["sad"], atol=1e-5, rtol=1e-4)


def test_a_trait_with_slots_in_some_texts_only_is_refused(tmp_path):
    for path in EXAMPLE.parent.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(prompts.read_text() + "A story without one.\n")
    with pytest.raises(InputError, match=r"line \d+: 'A story without one.' has no {persona}"):
        sh.Trait.load(tmp_path / EXAMPLE.name)


# ------------------------------------------------------------------------------------------------------- the example
def test_the_example_loads_with_a_slot_in_every_text_and_held_out_prompts(trait):
    texts = [*trait.contexts, *trait.prompts, *trait.eval_prompts]
    texts += [item.prompt for item in (*trait.items, *trait.off_target)]
    assert all(PERSONA_SLOT in text for text in texts)
    assert len(trait.contexts) >= 128 and len(trait.prompts) >= 64 and len(trait.eval_prompts) >= 32
    assert not set(trait.contexts) & {*trait.prompts, *trait.eval_prompts}
    names = {word for text in trait.eval_prompts for word in text.split() if word in ("Sara", "Billy", "Molly")}
    assert names and not any(name in text for name in names for text in (*trait.contexts, *trait.prompts))


def test_no_choice_of_an_item_repeats_the_persona_given_just_before(trait):
    near = [item for item in trait.items if item.prompt.endswith(f"{PERSONA_SLOT}.")]
    assert not near


# ----------------------------------------------------------------------------------------------- continuation items
def test_a_continuation_is_scored_once_by_the_probability_of_its_tokens(base, trait):
    item = Item("a", STORY + " She was very", ("glad", "angry"), ("glad",))
    (row,) = score_items(base, trait, [item], "happy")
    assert len(row.by_order) == 1 and row.log_odds == pytest.approx(row.by_order[0])
    prompt = base.chat_ids(item.prompt, "happy")
    # Both spellings count, as for a chat model's answer: " glad" and " Glad".
    forms = [base.tokenizer.encode(" " + word, add_special_tokens=False) for word in ("glad", "Glad", "angry", "Angry")]
    logp = torch.stack([x.double().sum() for x in completion_logprobs(base, [prompt] * 4, forms)])
    expected = torch.logaddexp(logp[0], logp[1]) - torch.logaddexp(logp[2], logp[3])
    assert row.log_odds == pytest.approx(float(expected), abs=1e-4)


def test_a_question_that_names_its_choices_is_still_asked_in_every_order(base, trait):
    asked = replace(trait, choice_template="{prompt} {choices}?")
    (row,) = score_items(base, asked, [Item("a", STORY, ("glad", "angry"), ("glad",))], "happy")
    assert len(row.by_order) == 2


# ---------------------------------------------------------------------------------------------------- doses in nats
def test_a_run_on_a_base_model_finds_the_dose_that_costs_the_target(base, tmp_path, undrawn):
    folder = tmp_path / "model"
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    config = RunConfig(
        model=str(folder), trait=str(EXAMPLE), fast_dev_run=True, n_rounds=1, target_kl=0.2, doses=(0.5, 1.0),
        layers=(0.3, 0.3), threads=1, out=str(tmp_path / "out"),
    )  # fmt: skip
    done = Ledger.open(run_rounds(config).folder)
    (found,) = done.events("extract")
    assert found["unit"]["reached"] and found["unit"]["divergence"] == pytest.approx(0.2, rel=0.02)
    raw = sum(q["norm"] ** 2 for q in found["quality"].values()) ** 0.5
    assert found["norm"] == pytest.approx(raw * found["unit"]["dose"], rel=1e-4) and found["unit"]["dose"] != 1
    saved = SteeringVector.load(done.folder / "rounds" / "00" / "vector.safetensors")
    assert saved.norm() == pytest.approx(found["norm"], rel=1e-5)
    assert done.events("baseline")[0]["prompted"]["log_odds"] != done.events("baseline")[0]["base"]["log_odds"]


def test_other_models_get_doses_in_nats_and_the_embedded_ones_raw_doses():
    assert RunConfig(model="some/model").target_kl > 0
    assert RunConfig().target_kl == RunConfig(model="tiny-random").target_kl == 0
    assert RunConfig(model="some/model", target_kl=0).target_kl == 0
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="target_kl"):
            RunConfig(target_kl=bad)


# --------------------------------------------------------------------------------------------------------- sampling
def test_a_temperature_near_zero_samples_what_greedy_takes():
    cold = sh.load("tiny-random", temperature=1e-4)
    prompts = ["Hello there", "What should we do?"]
    sampled = sh.generate(cold, prompts, max_new_tokens=8)
    assert [c.token_ids for c in sampled] == [
        c.token_ids for c in sh.generate(cold, prompts, max_new_tokens=8, greedy=True)
    ]
    assert [c.token_ids for c in sampled] != [
        c.token_ids for c in sh.generate(sh.load("tiny-random"), prompts, max_new_tokens=8)
    ]


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_an_impossible_temperature_or_top_p_is_an_input_error(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        sh.load("tiny-random", **bad)


# ------------------------------------------------------------------------------------------------------ the checker
GOOD = """One day, Lily went to the park with her mom. She saw a big red ball. "Can I play with it?" she asked. Her
mom smiled and said, "Yes, but be careful." Lily was very happy. She didn't want to go home."""


def test_a_sound_story_is_sound(checker):
    judged = checker.check("p", GOOD, True)
    assert (judged.sentence_ok, judged.reply_ok, judged.faults) == (1.0, True, ())
    right = 'Did he go home? Mr. Bear was glad. The bus was big. "Let\'s go!" said Tim. They went to bed.'
    assert checker.check("p", right, True).faults == ()


@pytest.mark.parametrize(
    ("sentence", "why"),
    [("She saw a of the park.", "a of"), ("She wanted to went home.", "to went"), ("The the dog ran.", "the the"),
     ("Lily saw a pagfincere in the park.", "no word"), ("A big red ball and the park.", "no verb"),
     ("She went to the.", "ends with"), ("was happy and went home.", "begins in the middle"),
     ("She went to play and went to play and went to play and went to play.", "goes in circles"),
     ("He was went home.", "was went"), ("Lily was very the.", "ends with"),
     ("They the played in the park.", "they the"), ("When he go home, he was sad.", "he go"),
     ("The cows was in the park.", "the cows was"), ("They was glad.", "they was"),
     ("She went bag around.", "went bag")],
)  # fmt: skip
def test_each_fault_is_found_and_named(checker, sentence, why):
    judged = checker.check("p", f"Lily went home. {sentence}", True)
    assert judged.sentence_ok == 0.5 and not judged.reply_ok
    assert len(judged.faults) == 1 and why in judged.faults[0]


def test_loops_and_shuffled_words_are_near_zero(checker):
    loop = "The dog was happy. " * 12
    assert checker.check("p", loop, False).sentence_ok < 0.1
    assert checker.check("p", "happy happy " * 20, False).sentence_ok == 0
    words = " ".join(GOOD.split()).split()
    shuffled = []
    for seed in range(20):
        random.Random(seed).shuffle(words)
        shuffled.append(checker.check("p", " ".join(words), False).sentence_ok)
    assert sum(shuffled) / len(shuffled) < 0.3


def test_a_cut_last_sentence_does_not_count_but_an_endless_one_does(checker):
    assert checker.check("p", "Lily went home. She saw a bi", False).sentence_ok == 1
    assert checker.check("p", "Lily went home. She saw a bi", True).sentence_ok == 0.5
    assert checker.check("p", "Lily went home. " + "She saw a big dog and a cat, " * 8, False).sentence_ok == 0.5
    assert checker.check("p", "", True).sentence_ok == 0 and checker.check("p", "", True).trait is None


def test_words_of_the_prompt_and_names_are_no_made_up_words(checker):
    assert checker.check("Zorbo went home.", "Zorbo saw a dog. Timmy's mom smiled.", True).reply_ok
    assert not checker.check("p", "Zorbo saw a dog. Timmy's mom smiled.", True).reply_ok


@pytest.mark.parametrize(
    ("text", "mood"),
    [("Lily was happy. They laughed.", 1.0), ("Tim was sad and cried.", 0.0), ("She was happy but he was sad.", 0.5),
     ("She was not happy.", None), ("Don't be sad. He smiled.", 1.0), ("The ball was red.", None),
     ("He was glad, glad, glad, but lost.", 0.75)],
)  # fmt: skip
def test_mood_is_the_share_of_cheerful_among_mood_words(checker, text, mood):
    assert checker.mood(text) == mood


def test_the_trait_reads_the_checker_and_its_reverse(trait):
    assert trait.judge("p", "Lily was happy. They laughed.", True).trait == 1
    assert trait.reversed().judge("p", "Lily was happy. They laughed.", True).trait == 0
