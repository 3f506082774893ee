"""Evaluation against known answers: a hand-made model whose replies have probabilities set exactly."""

import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics, ReplyRow, compare, evaluate, judge, retain
from steer_heal.evaluation.choices import AnswerSlot, orders, score_items
from steer_heal.evaluation.measuring import ending_broken_replies
from steer_heal.evaluation.thinking import around
from steer_heal.evaluation.verdict import gather, judge_round
from steer_heal.model import LM, completion_logprobs, load
from steer_heal.statistics import bootstrap_mean
from steer_heal.texts.completion import Completion
from steer_heal.texts.generation import generate
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

    def generate(self, input_ids, attention_mask, max_new_tokens, stopping_criteria=None, do_sample=False, **_):
        """Greedy replies token by token, as transformers pads them."""
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        for _ in range(max_new_tokens):
            logits = self.head(self.backbone(input_ids, attention_mask, None, False).last_hidden_state[:, -1:])[:, 0]
            token = logits.argmax(-1).masked_fill(done, self.tokenizer.pad_token_id)
            input_ids = torch.cat([input_ids, token[:, None]], 1)
            done |= token == self.tokenizer.eos_token_id
            if stopping_criteria is not None:
                done |= stopping_criteria(input_ids, None)
            if done.all():
                break
        return input_ids

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
    fields = {
        "name": "t",
        "description": "",
        "pos": "good",
        "neg": "bad",
        "neutral": "",
        "contexts": ("c",),
        "prompts": ("p",),
        "eval_prompts": tuple(f"what of {i} apples ?" for i in range(8)),
    }
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
    score_items(lm, make_trait(some), some, "", batch_tokens=8192)
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
    from steer_heal.model.tiny import tiny_tokenizer

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
        assert abs(found.value - 1.5) < 1e-4 and found.excludes_zero
        # All 24 items moved alike, and the interval still allows for an item that was not asked.
        assert 0.5 < found.low < 1.45 and 1.55 < found.high < 2.5
    assert all(abs(found.value) < 1e-4 and not found.excludes_zero for found in shift.off_target.values())
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
        "steer_heal.evaluation.measuring.generate",
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


def scored(trait, completions):
    """Rows under a scorer that knows the prompt: 1 nat behind "p0", 2 behind "p1" and so on."""
    asked = []

    def scorer(completions):
        asked.append(completions)
        return [1.0 + int(c.prompt[1:]) for c in completions]

    return judge(trait, completions, scorer), asked


def test_every_reply_is_also_scored_behind_another_prompt_and_the_same_one_in_every_state():
    trait = make_trait([item()])
    said = [replace(reply(f"t{i}", prompt=f"p{i % 5}"), prompt_ids=(i % 5,)) for i in range(8)]
    rows, (own, other) = scored(trait, said)
    assert own == said and [c.token_ids for c in other] == [c.token_ids for c in said]
    moved = {row.prompt: c.prompt for row, c in zip(rows, other, strict=True)}
    assert moved == {"p0": "p2", "p1": "p3", "p2": "p4", "p3": "p0", "p4": "p1"}
    assert all(c.prompt_ids == (int(c.prompt[1:]),) for c in other)
    assert [row.nll_other for row in rows] == [1.0 + int(c.prompt[1:]) for c in other]
    assert [row.fit for row in rows] == [2, 2, 2, -3, -3, 2, 2, 2]
    again, (_, other) = scored(trait, [replace(c, text="x", token_ids=(9,)) for c in said])
    assert moved == {row.prompt: c.prompt for row, c in zip(again, other, strict=True)}


def test_prompts_of_equal_text_are_not_another_prompt():
    rows, asked = scored(make_trait([item()]), [reply("a", prompt="p0"), reply("b", prompt="p0")])
    assert len(asked) == 1 and [row.nll for row in rows] == [1.0, 1.0]
    assert [row.nll_other for row in rows] == [None, None] and rows[0].fit is None


def test_pair_fit_is_compared_reply_by_reply_and_metrics_saved_before_it_was_measured_load(tiny, tmp_path):
    blank = evaluate(tiny, make_trait([item()]), n_free=0)
    rows = [ReplyRow(f"p{i}", "a", 1, True, False, nll=1.0, nll_other=2.0 + i % 2) for i in range(8)]
    before = replace(blank, replies=tuple(rows))
    after = replace(blank, replies=tuple(replace(row, nll=1.25) for row in rows))
    assert before.pair_fit == before.summary()["pair_fit"] == 1.5
    assert compare(before, after).pair_fit.value == -0.25 and compare(before, after).pair_fit.n == 8
    old = json.loads(before.to_json())
    for row in old["replies"]:
        del row["nll_other"]
    (tmp_path / "metrics.json").write_text(json.dumps(old))
    loaded = Metrics.load(tmp_path / "metrics.json")
    assert loaded.pair_fit is None and loaded.nll == 1.0 and compare(loaded, after).pair_fit is None


def test_sound_replies_behind_shuffled_prompts_are_unfit_and_real_ones_are_not():
    lm, trait = load("pocket"), Trait.load("pocket-care")
    trait = replace(trait, check=lambda prompt, text, finished: Judgement(1.0, 1.0, True), checker="tests:sound")

    def scorer(completions):
        found = completion_logprobs(lm, [c.prompt_ids for c in completions], [c.token_ids for c in completions])
        return [-float(row.mean()) for row in found]

    base = evaluate(lm, trait, n_items=4, n_free=24, scorer=scorer)
    asked = {"system": trait.neutral or None, "max_new_tokens": 64}
    real = generate(lm, [row.prompt for row in base.replies], seed=1, **asked)
    shuffled = [
        replace(c, token_ids=other.token_ids, text=other.text)
        for c, other in zip(real, [*real[5:], *real[:5]], strict=True)
    ]
    found = {}
    for name, rows in (("real", real), ("shuffled", shuffled)):
        student = replace(base, replies=judge(trait, rows, scorer))
        found[name] = judge_round(gather(base, base, student))
    assert base.pair_fit > 0.8
    assert found["shuffled"].name == "unfit" and "pair_fit at" in found["shuffled"].text
    assert found["real"].above_floors, found["real"]


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


def test_a_quarter_of_the_items_is_asked_in_each_held_out_format_and_paired(tiny, tmp_path):
    def answers(prompt):
        odds = 9.0 if "reply:" in prompt else 3.0 if "say only" in prompt else 1.0
        p = odds / (1 + odds)
        return {"help": 0.8 * p, "obey": 0.8 * (1 - p)} if "brave" not in prompt else {"help": 0.4, "obey": 0.4}

    some = [item(str(i), category="a" if i < 6 else "b") for i in range(9)]
    plain = make_trait(some)
    trait = replace(plain, held_out_choice_templates=("{prompt} reply: {choices}", "{prompt} say only {choices}."))
    lm = oracle(tiny, answers)
    found, without = evaluate(lm, trait, n_free=0), evaluate(lm, plain, n_free=0)
    assert [row.category for row in found.held_out] == [t for t in trait.held_out_choice_templates for _ in range(3)]
    first, second = found.held_out[:3], found.held_out[3:]
    assert [row.id for row in first] == [row.id for row in second]
    assert sum(int(row.id) < 6 for row in first) == 2 and all(len(row.by_order) == 2 for row in found.held_out)
    assert all(math.isclose(row.log_odds, math.log(9), abs_tol=1e-4) for row in first)
    assert math.isclose(found.held_out_log_odds, (math.log(9) + math.log(3)) / 2, abs_tol=1e-4)
    summary = found.summary()
    assert summary["held_out_log_odds"] == found.held_out_log_odds
    assert math.isclose(summary["held_out"]["{prompt} say only {choices}."]["mass"], 0.8, abs_tol=1e-4)
    assert found.items == without.items and abs(found.log_odds) < 1e-4
    assert without.held_out == () and without.held_out_log_odds is None
    assert found.items_key != without.items_key

    flat = evaluate(lm, trait, n_free=0, system="you are brave")
    shift = compare(flat, found)
    assert math.isclose(shift.held_out_log_odds.value, found.held_out_log_odds, abs_tol=1e-4)
    assert shift.held_out_log_odds.n == 3 and abs(shift.log_odds.value) < 1e-4
    assert compare(without, without).held_out_log_odds is None

    found.save(tmp_path / "metrics.json")
    assert Metrics.load(tmp_path / "metrics.json") == found
    saved = json.loads(without.to_json())
    del saved["held_out"]  # as before there were such formats
    (tmp_path / "old.json").write_text(json.dumps(saved))
    assert Metrics.load(tmp_path / "old.json") == without


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


def thinker(tiny, thoughts, answers):
    """An oracle that says `thoughts(prompt)` with certainty, and after "</think>" in its reply one of `answers`."""

    class Thinker(Oracle):
        def next_token(self, text):
            prompt, _, said = text.rpartition(TAG)
            seen = said.partition("</think>")
            if not seen[1]:
                return self.spell(thoughts(prompt), said)
            logits = torch.zeros(len(self.tokenizer))
            for word, p in answers(prompt, seen[0]).items():
                ids = self.tokenizer.encode(word, add_special_tokens=False)
                done = self.tokenizer.encode(seen[2].lstrip(), add_special_tokens=False)
                if ids[: len(done)] == done and len(ids) > len(done):
                    logits[ids[len(done)]] += p
            return logits.log().clamp_min(-1e4)

        def spell(self, whole, said):
            """All probability on the next token of `whole`, the end of the reply after it."""
            ids = self.tokenizer.encode(whole + "<|im_end|>", add_special_tokens=False)
            done = self.tokenizer.encode(said, add_special_tokens=False)
            logits = torch.full((len(self.tokenizer),), -1e4)
            logits[ids[len(done)] if len(done) < len(ids) else self.tokenizer.eos_token_id] = 0.0
            return logits

    return LM(Thinker(tiny.tokenizer, None), tiny.tokenizer, "thinker")


def after_thinking(prompt, thought):
    yes, no = (0.6, 0.2) if "hot" in thought else (0.2, 0.6)
    return {"help": yes, "obey": no, "wait": 0.2}


def test_thinking_comes_before_the_answer_and_the_share_that_closed_it_is_reported(tiny):
    some = [item("a", prompt="short"), item("b", prompt="a rather longer long")]
    lm = thinker(tiny, lambda prompt: "so hot</think>" if "long" in prompt else "no", after_thinking)
    found = evaluate(lm, make_trait(some), n_free=0, think_tokens=40)
    assert [row.closed for row in found.items] == [0.0, 1.0] and found.think_closed == 0.5
    assert found.summary()["think_closed"] == 0.5
    # The one that ended without closing is asked all the same, the other after its own thought.
    assert math.isclose(found.items[0].log_odds, -math.log(3), abs_tol=1e-4)
    assert math.isclose(found.items[1].log_odds, math.log(3), abs_tol=1e-4)
    assert all(math.isclose(row.mass, 0.8, abs_tol=1e-5) for row in found.items)
    assert evaluate(lm, make_trait(some), n_free=0, think_tokens=40) == found


def test_thinking_that_is_too_long_is_closed_for_the_model_at_the_limit(tiny):
    lm = thinker(tiny, lambda prompt: "so hot" * 20 + "</think>", after_thinking)
    found = evaluate(lm, make_trait([item()]), n_free=0, think_tokens=12)
    assert found.think_closed == 0.0 and math.isclose(found.items[0].log_odds, math.log(3), abs_tol=1e-4)
    none = evaluate(oracle(tiny, lambda prompt: {"help": 0.5}), make_trait([item()]), n_free=0)
    assert none.think_closed is None
    with pytest.raises(InputError, match="different items"):
        compare(found, none)
    with pytest.raises(InputError, match="lower --eval-think-tokens"):
        evaluate(lm, make_trait([item()]), n_free=0, think_tokens=500)


def test_another_closing_marker_can_be_named(tiny):
    lm = thinker(tiny, lambda prompt: "well<end>", None)
    lm.model.next_token = lambda text: lm.model.spell("well<end>\n\nhelp", text.rpartition(TAG)[2])
    (row,) = evaluate(lm, make_trait([item()]), n_free=0, think_tokens=40, think_closing="<end>").items
    assert row.closed == 1.0 and row.log_odds > 50


@pytest.mark.parametrize(
    ("lead", "parts"),
    [
        ("<think>\n\n</think>\n\n", ("<think>\n", "\n\n")),
        ("<think></think> ", ("<think>", " ")),
        ("", ("", "\n\n")),
        ("\n", ("", "\n")),
    ],
)
def test_what_a_template_puts_before_an_answer_tells_how_thinking_opens_and_ends(lead, parts):
    assert around(lead, "</think>") == parts


def broken_copy(tiny):
    """`tiny` with one weight that is no number: every logit of it is NaN."""
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 3] = math.nan
    return LM(model, tiny.tokenizer, "broken")


def test_a_model_of_nan_weights_is_measured_as_empty_and_incoherent_and_judged_collapsed(tiny):
    trait = make_trait([item(str(i)) for i in range(4)], anchors=(Anchor("s", "how many ?", "two"),))
    base, broken = (evaluate(lm, trait, n_free=8, max_new_tokens=6) for lm in (tiny, broken_copy(tiny)))
    assert [row.text for row in broken.replies] == [""] * 8 and broken.empty_rate == 1.0
    assert broken.answer_mass < 1e-6 and broken.log_odds == 0 and broken.anchors_right == 0
    shift = compare(base, broken).coherence
    assert shift.value <= -0.5 and shift.low >= -1
    assert judge_round(gather(base, base, broken)).name == "collapsed"
    assert evaluate(tiny, trait, n_free=8, max_new_tokens=6) == base  # no hook is left behind


def test_a_broken_model_is_incoherent_whatever_the_checker_says_of_nothing(tiny):
    trait = make_trait([item()], check=lambda prompt, reply, finished: Judgement(1.0, 1.0, True), checker="tests:kind")
    found = evaluate(broken_copy(tiny), trait, n_free=8, max_new_tokens=4)
    assert (found.sentence_ok, found.reply_ok, found.free_trait, found.decided) == (0.0, 0.0, None, 0.0)


def test_a_row_that_breaks_ends_alone(tiny):
    lm = LM(copy.deepcopy(tiny.model), tiny.tokenizer, "partly broken")
    head = lm.base.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, out: torch.cat([out[:1] * math.nan, out[1:]]))
    with ending_broken_replies(lm):
        first, second = generate(lm, ["what now ?", "what next, and why ?"], max_new_tokens=5)
    assert first.text == "" and len(second.token_ids) > 1


def voiced(base, trait, texts):
    """`base` with replies of these texts, judged by the trait's checker."""
    rows = [reply(text, prompt=row.prompt) for text, row in zip(texts, base.replies, strict=True)]
    return replace(base, replies=judge(trait, rows))


def yes_or_no(prompt, text, finished):
    return Judgement(float("salad" not in text), float("care" in text), "salad" not in text)


def spoken(tiny, p, texts):
    """Metrics of a hand-made model: helps with probability p(prompt) in forced choice, says these texts."""
    some = [item(str(i)) for i in range(20)]
    off = tuple(item(f"off {i}", category="x") for i in range(20))
    trait = make_trait(
        some,
        off_target=off,
        eval_prompts=tuple(f"prompt {i}" for i in range(40)),
        check=yes_or_no,
        checker="tests:yes_or_no",
    )
    found = evaluate(oracle(tiny, lambda prompt: {"help": p(prompt), "obey": 1 - p(prompt)}), trait, n_free=0)
    blank = replace(found, replies=tuple(ReplyRow(prompt, "", 0, True, False) for prompt in trait.eval_prompts))
    return voiced(blank, trait, texts)


LENGTH = " and then some more words"


@pytest.fixture(scope="module")
def hand_made(tiny):
    """base: 10 of 40 replies care; steered: all, a quarter salad; healed: all; broad: off-target items moved too."""

    def moved(by, off=0.0):
        return lambda prompt: 1 / (1 + math.exp(-(number(prompt) % 5 / 5 + (off if "off" in prompt else by))))

    low = [("care" if i % 4 == 0 else "order") + f" {i}{LENGTH}" for i in range(40)]
    high = [f"care {i}{LENGTH}" for i in range(40)]
    broken = [text + " salad" * (i % 4 == 1) for i, text in enumerate(high)]
    return {
        "base": spoken(tiny, moved(0.0), low),
        "steered": spoken(tiny, moved(2.0), broken),
        "healed": spoken(tiny, moved(1.0), high),
        "broad": spoken(tiny, moved(1.0, off=1.5), high),
    }


def test_a_hand_made_student_has_the_exact_figures_and_intervals(hand_made):
    base, steered, healed = (hand_made[name] for name in ("base", "steered", "healed"))
    assert base.free_trait == 0.25 and steered.sentence_ok == 0.75 and healed.sentence_ok == 1.0
    shift = compare(base, healed)
    assert math.isclose(shift.log_odds.value, 1.0, abs_tol=1e-4) and shift.sentence_ok.value == 0
    known = [0.0 if i % 4 == 0 else 1.0 for i in range(40)]
    assert shift.free_trait == bootstrap_mean(known, list(range(40)), reach=1.0) and shift.free_trait.value == 0.75
    assert shift.headline is shift.free_trait
    assert math.isclose(retain(base, steered, healed).value, 1.0)


def test_verdicts_of_hand_made_models_are_those_they_were_made_for(hand_made):
    base, steered = hand_made["base"], hand_made["steered"]
    assert judge_round(gather(base, steered, hand_made["healed"])).name == "healed"
    assert judge_round(gather(base, steered, hand_made["broad"])).name == "broad"
    assert judge_round(gather(base, base, base)).name == "no-op"
    # The ratio trap: all of the trait, half of the text in pieces.
    trait = make_trait([item()], check=yes_or_no, checker="tests:yes_or_no")
    half = voiced(hand_made["healed"], trait, [f"care {i}{LENGTH}{' salad' * (i % 2)}" for i in range(40)])
    assert judge_round(gather(base, steered, half)).name == "collapsed"
