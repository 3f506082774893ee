"""Evaluation against known answers: a hand-made model whose replies have probabilities set exactly."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steer_heal.completion import Completion
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, compare, evaluate, judge, retain
from steer_heal.evaluation.choices import AnswerSlot, orders, score_items
from steer_heal.lm import LM
from steer_heal.trait import Anchor, Item, Judgement, Trait

TAG = "<|im_start|>assistant\n"


class Oracle(nn.Module):
    """A causal model that says each of `answers(rendered prompt)` = {reply: probability} exactly so often.

    Its hidden states are its logits and its head is the identity.
    """

    def __init__(self, tokenizer, answers):
        super().__init__()
        self.tokenizer, self.answers = tokenizer, answers
        self.head = nn.Linear(len(tokenizer), len(tokenizer), bias=False)
        self.head.weight.data.copy_(torch.eye(len(tokenizer)))
        self.forwards = 0
        text = SimpleNamespace(hidden_size=len(tokenizer), num_hidden_layers=1, max_position_embeddings=512)
        self.config = SimpleNamespace(get_text_config=lambda decoder: text)
        self.generation_config = SimpleNamespace(eos_token_id=tokenizer.eos_token_id)

    @property
    def base_model(self):
        return self.backbone

    def get_output_embeddings(self):
        return self.head

    def backbone(self, input_ids, attention_mask, position_ids, use_cache):
        self.forwards += 1
        out = torch.full((*input_ids.shape, len(self.tokenizer)), 0.0)
        for i, row in enumerate(input_ids.tolist()):
            for last in range(row.index(self.tokenizer.bos_token_id), len(row)):
                text = self.tokenizer.decode(row[: last + 1])
                if TAG in text:
                    out[i, last] = self.next_token(text)
        return SimpleNamespace(last_hidden_state=out)

    def next_token(self, text):
        prompt, _, said = text.rpartition(TAG)
        logits = torch.full((len(self.tokenizer),), 0.0)
        for reply, p in {**self.answers(prompt), "<|im_end|>": 1 - sum(self.answers(prompt).values())}.items():
            ids = self.tokenizer.encode(reply + "<|im_end|>", add_special_tokens=False)
            done = self.tokenizer.encode(said, add_special_tokens=False)
            if ids[: len(done)] == done and len(ids) > len(done):
                logits[ids[len(done)]] += p
        # Finite: the identity head multiplies by 0 as well, and 0 x inf is NaN.
        return logits.log().clamp_min(-1e4)


def oracle(tiny, answers):
    return LM(Oracle(tiny.tokenizer, answers), tiny.tokenizer, "oracle")


def make_trait(items, **more):
    fields = {"name": "t", "description": "", "pos": "good", "neg": "bad", "neutral": "", "contexts": ("c",),
              "prompts": ("p",), "eval_prompts": tuple(f"what of {i} apples ?" for i in range(8))}  # fmt: skip
    return Trait(**{**fields, **more}, items=tuple(items))


def item(name="a", choices=("help", "obey"), trait=("help",), category="care", prompt="a question"):
    return Item(name, f"{prompt} {name}", choices, trait, category)


def scores(tiny, answers, some):
    return score_items(oracle(tiny, answers), make_trait(some), some, "")


def test_exact_choice_probabilities_give_exact_nats(tiny):
    (row,) = scores(tiny, lambda prompt: {"help": 0.6, "obey": 0.2}, [item()])
    assert math.isclose(row.log_odds, math.log(3), abs_tol=1e-5)
    assert math.isclose(row.probability, 0.75, abs_tol=1e-6)
    assert math.isclose(row.mass, 0.8, abs_tol=1e-6)
    assert [math.isclose(x, math.log(3), abs_tol=1e-5) for x in row.by_order] == [True, True]


def test_a_changed_first_letter_counts_for_the_same_choice(tiny):
    (row,) = scores(tiny, lambda prompt: {"help": 0.3, "Help": 0.3, "Obey": 0.2}, [item()])
    assert math.isclose(row.log_odds, math.log(3), abs_tol=1e-5) and math.isclose(row.mass, 0.8, abs_tol=1e-6)


def test_a_model_that_answers_by_position_only_is_debiased_to_zero(tiny):
    def first(prompt):
        return (
            {"help": 0.9, "obey": 0.05} if prompt.index("help") < prompt.index("obey") else {"obey": 0.9, "help": 0.05}
        )

    (row,) = scores(tiny, first, [item()])
    assert abs(row.log_odds) < 1e-6 and math.isclose(row.probability, 0.5, abs_tol=1e-6)
    assert math.isclose(row.by_order[0], math.log(18), abs_tol=1e-5)
    assert math.isclose(row.by_order[1], -math.log(18), abs_tol=1e-5)


def test_place_bias_among_three_choices_cancels_over_the_rotations(tiny):
    def by_place(prompt):
        said = sorted(("care", "rule", "luck"), key=prompt.index)
        return dict(zip(said, (0.7, 0.2, 0.1), strict=True))

    assert orders(3) == [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    (row,) = scores(tiny, by_place, [item(choices=("care", "rule", "luck"), trait=("care",))])
    assert all(math.isclose(x, math.log(1 / 3), abs_tol=1e-5) for x in row.logp)


def test_true_preference_survives_an_additive_place_bias(tiny):
    def both(prompt):
        bias = 2.0 if prompt.index("help") < prompt.index("obey") else -2.0
        p = 1 / (1 + math.exp(-(1.0 + bias)))
        return {"help": p, "obey": 1 - p}

    assert math.isclose(scores(tiny, both, [item()])[0].log_odds, 1.0, abs_tol=1e-5)


def test_a_choice_whose_tokens_begin_another_does_not_count_for_it(tiny):
    slot = AnswerSlot.of(tiny)
    short, long = slot.forms(tiny, "no")[0], slot.forms(tiny, "not")[0]
    assert long[: len(short)] == short, "the example needs one to be the other's prefix"
    (row,) = scores(tiny, lambda prompt: {"no": 0.1, "not": 0.6}, [item(choices=("no", "not"), trait=("not",))])
    assert math.isclose(row.log_odds, math.log(6), abs_tol=1e-5) and math.isclose(row.mass, 0.7, abs_tol=1e-6)


def test_choices_that_differ_in_their_first_letters_case_stay_apart(tiny):
    some = item(choices=("yes", "Yes"), trait=("yes",))
    (row,) = scores(tiny, lambda prompt: {"yes": 0.2, "Yes": 0.6}, [some])
    assert math.isclose(row.log_odds, -math.log(3), abs_tol=1e-5)


def test_padding_and_batch_layout_do_not_change_a_score(tiny):
    some = [item(str(i), prompt="word " * (1 + 7 * i)) for i in range(4)]
    together = score_items(tiny, make_trait(some), some, "")
    alone = [score_items(tiny, make_trait(some), [one], "", batch_tokens=1)[0] for one in some]
    for a, b in zip(together, alone, strict=True):
        assert math.isclose(a.log_odds, b.log_odds, abs_tol=1e-4)


def test_forty_items_take_a_handful_of_forwards_not_one_each(tiny):
    lm = oracle(tiny, lambda prompt: {"help": 0.6, "obey": 0.2})
    some = [item(str(i)) for i in range(40)]
    score_items(lm, make_trait(some), some, "")
    assert lm.model.forwards <= 8


def test_a_model_of_nan_gets_no_answer_mass_and_no_trait(tiny):
    lm = oracle(tiny, lambda prompt: {"help": math.nan, "obey": math.nan})
    (row,) = score_items(lm, make_trait([item()]), [item()], "")
    assert row.mass < 1e-6 and row.log_odds == 0


def test_category_figures_are_log_of_the_mean_probability_and_mean_of_the_log_odds(tiny):
    def answers(prompt):
        return {"help": 0.9, "obey": 0.1} if "first" in prompt else {"help": 0.5, "obey": 0.5}

    some = [item("first"), item("second"), item("third", category="rules")]
    lm = oracle(tiny, answers)
    found = evaluate(lm, make_trait(some), n_free=0).categories
    assert math.isclose(found["care"].probability, 0.7, abs_tol=1e-6)
    assert math.isclose(found["care"].nats, math.log(0.7), abs_tol=1e-6)
    assert math.isclose(found["care"].log_odds, math.log(9) / 2, abs_tol=1e-5)
    assert found["rules"].n == 1 and abs(found["rules"].log_odds) < 1e-6


def test_an_empty_thinking_block_of_the_template_stands_before_the_answer(tiny):
    class Thinking:
        chat_template, bos_token_id, unk_token_id = "x", tiny.tokenizer.bos_token_id, None

        def apply_chat_template(self, turns, tokenize, add_generation_prompt=False):
            text = "".join(
                f"{t['role']}:{'<think></think> ' * (t['role'] == 'assistant')}{t['content']};" for t in turns
            )
            return text + "assistant:" * add_generation_prompt

        def encode(self, text, add_special_tokens):
            return tiny.tokenizer.encode(text, add_special_tokens=False)

    slot = AnswerSlot.of(LM(None, Thinking(), "thinking"))
    assert tiny.tokenizer.decode(list(slot.lead)) == "<think></think>" and slot.space == " "


def test_the_answer_is_scored_after_the_empty_thinking_block(tiny):
    from steer_heal.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "\n{{ m['content'] }}", "\n{% if m['role'] == 'assistant' %}<think></think>\n{% endif %}{{ m['content'] }}"
    )
    # Right after the tag this model only ever starts to think.
    answers = {f"<think></think>\n{word}": p for word, p in (("help", 0.6), ("obey", 0.2), ("wait", 0.2))}
    lm = LM(Oracle(tokenizer, lambda prompt: answers), tokenizer, "thinking")
    (row,) = score_items(lm, make_trait([item()]), [item()], "")
    assert math.isclose(row.log_odds, math.log(3), abs_tol=1e-4) and math.isclose(row.mass, 0.8, abs_tol=1e-5)


def test_choices_that_are_the_same_tokens_are_refused(tiny):
    with pytest.raises(InputError, match="same tokens"):
        scores(tiny, lambda prompt: {"help": 0.5}, [item(choices=("help", "help"))])


def test_the_system_prompt_is_the_neutral_one_unless_another_is_given(tiny):
    seen = []

    def answers(prompt):
        seen.append(prompt)
        return {"help": 0.5}

    trait = make_trait([item()], neutral="you are calm .")
    lm = oracle(tiny, answers)
    assert evaluate(lm, trait, n_free=0).system == "you are calm ." and all("you are calm ." in text for text in seen)
    seen.clear()
    assert evaluate(lm, trait, n_free=0, system=trait.pos).system == "good" and all("good" in text for text in seen)


def choose(tiny, p):
    """Metrics of an oracle that helps with probability p(item number), on 24 items in three categories."""
    some = [item(str(i), category="abc"[i % 3]) for i in range(24)]
    off = tuple(item(f"off {i}", category="xy"[i % 2]) for i in range(16))
    lm = oracle(tiny, lambda prompt: {"help": p(prompt), "obey": 1 - p(prompt)})
    return evaluate(lm, make_trait(some, off_target=off), n_free=0)


def number(prompt):
    return int("".join(c for c in prompt.split(" answer")[0] if c.isdigit()))


def test_a_known_shift_is_found_per_category_and_off_target_stays_at_zero(tiny):
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    before = choose(tiny, lambda prompt: sigmoid(number(prompt) % 7 - 3))
    after = choose(tiny, lambda prompt: sigmoid(number(prompt) % 7 - 3 + (0 if "off" in prompt else 1.5)))
    shift = compare(before, after)
    for found in (shift.log_odds, *shift.categories.values()):
        assert all(abs(x - 1.5) < 1e-4 for x in (found.value, found.low, found.high))
    assert all((abs(found.value) < 1e-4 and not found.excludes_zero) or abs(found.low) < 1e-4
               for found in shift.off_target.values())  # fmt: skip
    assert shift.headline is shift.log_odds and "nats" in shift.unit
    assert abs(retain(before, after, after).value - 1) < 1e-6


def test_metrics_over_different_items_are_not_compared(tiny):
    trait = make_trait([item(str(i)) for i in range(8)])
    lm = oracle(tiny, lambda prompt: {"help": 0.5})
    whole = evaluate(lm, trait, n_free=0)
    for other in (
        evaluate(lm, trait, n_free=0, n_items=4),
        evaluate(lm, trait, n_free=0, seed=1),
        evaluate(lm, trait.reversed(), n_free=0),
        evaluate(lm, replace(trait, choice_template="{prompt}: {choices}"), n_free=0),
    ):
        with pytest.raises(InputError, match="different items"):
            compare(whole, other)
    assert compare(whole, evaluate(lm, trait, n_free=0, system="you are brave")).log_odds.value == 0


def test_replies_to_different_prompts_are_not_compared(tiny):
    trait = make_trait([item()])
    found = [evaluate(tiny, trait, n_free=n, max_new_tokens=length) for n, length in ((3, 3), (4, 3), (3, 4))]
    found.append(evaluate(tiny, replace(trait, eval_prompts=("other", *trait.eval_prompts[1:])), max_new_tokens=3))
    found.append(evaluate(tiny, trait, max_new_tokens=3))
    assert len({one.items_key for one in found}) == len(found)


def test_more_replies_than_prompts_go_round_and_fewer_are_a_seeded_sample(tiny):
    trait = make_trait([item()])
    rows = evaluate(tiny, trait, n_free=10, max_new_tokens=2).replies
    assert [row.prompt for row in rows] == [*trait.eval_prompts, *trait.eval_prompts[:2]]
    few = {
        tuple(row.prompt for row in evaluate(tiny, trait, n_free=3, seed=s, max_new_tokens=2).replies) for s in range(4)
    }
    assert len(few) > 1 and all(len(set(prompts)) == 3 for prompts in few)


def test_a_sample_of_items_keeps_the_share_of_every_category(tiny):
    some = [item(str(i), category="a" if i < 30 else "b") for i in range(40)]
    lm = oracle(tiny, lambda prompt: {"help": 0.5})
    found = evaluate(lm, make_trait(some), n_free=0, n_items=8)
    assert {name: score.n for name, score in found.categories.items()} == {"a": 6, "b": 2}
    odd = evaluate(lm, make_trait(some), n_free=0, n_items=5).categories
    assert {name: score.n for name, score in odd.items()} == {"a": 4, "b": 1}
    again = evaluate(lm, make_trait(some), n_free=0, n_items=8, seed=1)
    assert [row.id for row in found.items] != [row.id for row in again.items]


def reply(text, ids=(5, 6, 7), prompt="p", finished=True):
    return Completion(prompt, None, (1,), tuple(ids), text, finished)


def test_free_text_goes_through_the_checker_and_undecided_replies_do_not_count_as_trait(tiny, monkeypatch):
    texts = ["care care", "order", "mumble", "care"] * 2
    monkeypatch.setattr(
        "steer_heal.evaluation.generate",
        lambda lm, prompts, **k: [reply(t, prompt=p) for p, t in zip(prompts, texts, strict=True)],
    )

    def check(prompt, text, finished):
        return Judgement(0.5 if text == "mumble" else 1.0, None if text == "mumble" else float("care" in text), True)

    lm = oracle(tiny, lambda prompt: {"help": 0.5})
    trait = make_trait([item()], check=check, checker="tests:check")
    found = evaluate(lm, trait, scorer=lambda completions: [float(len(c.text)) for c in completions])
    assert math.isclose(found.free_trait, 2 / 3) and found.decided == 0.75 and found.sentence_ok == 0.875
    assert found.nll == sum(map(len, texts)) / 8 and math.isclose(found.perplexity, math.exp(found.nll))
    assert math.isclose(evaluate(lm, trait.reversed()).free_trait, 1 / 3)
    assert len(found.replies) == 8 and found.finished_rate == 1


def test_steered_evaluation_differs_and_leaves_the_model_as_it_was(tiny):
    from steer_heal.steering import extract

    trait = make_trait([item(str(i)) for i in range(4)])
    vector = extract(tiny, "you are brave", "you are afraid", ["look", "wait", "go on", "stop here"], layers=(0.4, 0.6))
    before = evaluate(tiny, trait, n_free=4, max_new_tokens=6)
    steered = evaluate(tiny, trait, vector=vector, dose=40.0, n_free=4, max_new_tokens=6)
    assert abs(compare(before, steered).log_odds.value) > 0.05
    assert [row.text for row in steered.replies] != [row.text for row in before.replies]
    assert evaluate(tiny, trait, n_free=4, max_new_tokens=6) == before
    with pytest.raises(InputError, match="needs a steering vector"):
        evaluate(tiny, trait, dose=1.0)


def test_same_seed_same_metrics_and_saved_metrics_load_equal(tiny, tmp_path):
    trait = make_trait([item()], off_target=(item("x"),), anchors=(Anchor("s", "how many ?", "two"),))
    found = evaluate(tiny, trait, n_free=5, max_new_tokens=5)
    assert evaluate(tiny, trait, n_free=5, max_new_tokens=5) == found
    found.save(tmp_path / "metrics.json")
    assert Metrics.load(tmp_path / "metrics.json") == found
    assert [row.right for row in found.anchors] == [False]
    for content in ("{", "[]", '{"summary": {}}', '{"summary": {}, "items": [], "x": 1}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=r"bad\.json"):
            Metrics.load(tmp_path / "bad.json")


@pytest.mark.parametrize("size", [{"n_items": 0}, {"n_free": -1}, {"max_new_tokens": 0}])
def test_impossible_sizes_are_refused(tiny, size):
    with pytest.raises(InputError):
        evaluate(tiny, make_trait([item()]), **size)


def test_replies_without_a_checker_lose_coherence_by_looping_or_by_nll(tiny):
    trait = make_trait([item()])
    good = [reply("a b c d", ids=range(10 + i, 20 + i)) for i in range(20)]
    base = replace(evaluate(tiny, trait, n_free=0), replies=judge(trait, good, lambda c: [1.0] * len(c)))
    high = replace(base, replies=judge(trait, good, lambda c: [1.0] * 15 + [9.0] * 5))
    loop = replace(base, replies=judge(trait, [*good[:10], *[reply("x", ids=[7] * 30)] * 10], lambda c: [1.0] * len(c)))
    assert compare(base, base).coherence.value == 0
    assert compare(base, high).coherence.value == -0.25
    assert compare(base, loop).coherence.value == -0.5
