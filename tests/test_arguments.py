"""What is given in Python is looked at as on the command line: by the annotation beside the field."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Literal, get_type_hints

import pytest
import torch
from healing_data import completion
from hypothesis import given
from hypothesis import strategies as st

import steer_heal as sh
from steer_heal.arguments import checked, fits, wanted
from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.healing import HealConfig, heal
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack

WRONG = {
    int: st.one_of(st.just("abc"), st.just(8.5), st.just(math.nan), st.just(True), st.just([])),
    float: st.one_of(st.just("abc"), st.just(math.nan), st.just(True), st.just({})),
    bool: st.one_of(st.just("yes"), st.just(1), st.just(math.nan)),
    str: st.one_of(st.just(5), st.just(b"x"), st.just([]), st.just(math.nan)),
}
HINTS = get_type_hints(RunConfig)
TYPED = [one.name for one in fields(RunConfig) if one.name not in ("reg", "layers", "lora_layers")]


@given(st.data())
def test_no_option_takes_a_value_of_another_kind(data):
    name = data.draw(st.sampled_from(TYPED))
    value = data.draw(st.one_of(*WRONG.values(), st.just(object()), st.just("randm")))
    if not fits(value, HINTS[name]):
        with pytest.raises(InputError, match=rf"^{name} .*: give "):
            RunConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("vector", "randm", "one of real, random, none"),
        ("gate", "off", "one of on, watch"),
        ("seed", "abc", "a whole number"),
        ("eval_replies", math.nan, "a whole number"),
        ("max_new_tokens", 8.5, "a whole number"),
        ("doses", "0.5", "one or more numbers"),
        ("layers", (0.1,), "blocks 0 to"),
        ("out", "a\nb", "line breaks"),
        ("quiet", "no", "True or False"),
    ],
)
def test_a_wrong_option_says_what_to_give(name, value, words):
    with pytest.raises(InputError, match=words):
        RunConfig(**{name: value})


@pytest.mark.parametrize(("kind", "options"), [
    (sh.HealConfig, {"epochs": "3"}), (sh.HealConfig, {"kl_agg": 5}), (sh.HealConfig, {"experts": "no"}),
    (sh.DoseConfig, {"target": "half"}), (sh.DoseConfig, {"batch": True}),
    (sh.Sampling, {"temperature": math.nan}), (sh.Sampling, {"top_k": 2.5}),
])  # fmt: skip
def test_the_stages_own_settings_are_looked_at_too(kind, options):
    with pytest.raises(InputError, match=f"^{next(iter(options))} .*: give "):
        kind(**options)


@pytest.mark.parametrize(("call", "words"), [
    (lambda lm: sh.generate(lm, "one prompt"), "prompts 'one prompt': give a list of texts"),
    (lambda lm: sh.generate(lm, ["a", 5]), "prompts"),
    (lambda lm: sh.generate(lm, ["a"], max_new_tokens=8.5), "max_new_tokens 8.5: give a whole number"),
    (lambda lm: sh.generate(lm, ["a"], batch_rows=0), "batch_rows 0"),
    (lambda lm: sh.generate(lm, ["a"], samples=0), "samples 0"),
    (lambda lm: sh.generate(lm, ["a"], seed="abc"), "seed 'abc'"),
    (lambda lm: sh.extract(lm, "a", "b", "contexts"), "contexts 'contexts'"),
    (lambda lm: sh.extract(lm, "a", "b", ["c", "d"], batch_tokens=0), "batch_tokens 0"),
    (lambda lm: sh.extract(lm, 5, "b", ["c", "d"]), "pos 5: give a text"),
    (lambda lm: sh.heal(lm, [completion(lm, 0, 5)], round="first"), "round 'first'"),
    (lambda lm: sh.evaluate(lm, sh.Trait.load("pocket-care"), n_free=math.nan), "n_free nan"),
])  # fmt: skip
def test_functions_refuse_what_their_annotations_do_not_say(call, words, tiny):
    with pytest.raises(InputError, match=words):
        call(tiny)


def test_annotations_are_understood():
    def stage(a: int, b: "Sequence[str]" = (), c: Literal["x", "y"] = "x", d: "Unresolved" = None):  # noqa: F821
        return a

    assert checked(stage)(1, ["t"], "y", object()) == 1
    for options in ({"b": "t"}, {"c": "z"}, {"a": 1.0}):
        with pytest.raises(InputError):
            checked(stage)(**{"a": 1, **options})
    assert wanted(tuple[float, float] | None) == "2 numbers" and fits(3, float) and not fits(True, int)


def test_nothing_is_read_of_a_model_that_is_steered(lm):
    vector = sh.extract(lm, "be kind", "be cold", ["a", "b", "c"])
    with vector.applied(lm.model, 1.0):
        with pytest.raises(InputError, match=r"extract inside applied\(\)"):
            sh.extract(lm, "be kind", "be cold", ["a", "b", "c"])
        with pytest.raises(InputError, match=r"heal inside applied\(\)"):
            sh.heal(lm, [completion(lm, i, 5) for i in range(4)])


def huge(adapter, size):
    return Adapter(dict(adapter.a), {name: b * size for name, b in adapter.b.items()}, adapter.rank, adapter.alpha)


def test_a_push_that_fails_leaves_stack_and_weights_as_they_were(lm, data, monkeypatch):
    first = heal(lm, data, HealConfig(epochs=1, rank=2, reg="nll", heldout=0.0)).adapter
    stack = AdapterStack(lm.model)
    stack.push(first)
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}

    def unchanged():
        now = lm.model.state_dict()
        return len(stack) == 1 and all(torch.equal(before[name], now[name]) for name in before)

    with pytest.raises(InputError, match=r"out of the range of torch\.float32"):
        stack.push(huge(first, 1e30), dose=1e30)
    assert unchanged()
    real, calls = AdapterStack.summed_delta, []

    def short(self, name, *where):
        calls.append(name)
        if len(calls) == 2:
            raise MemoryError
        return real(self, name, *where)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(AdapterStack, "summed_delta", short)
        stack.push(first)
    assert unchanged()
    stack.push(first)
    stack.pop()
    assert unchanged()
