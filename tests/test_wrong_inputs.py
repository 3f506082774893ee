"""Wrong inputs of every kind end in one line: values, names, trait files, functions of the user, model folders.

They are generated (`wrong_inputs.py`), and the same in every run. A case fails where an exception, a second line or a
file comes of it; one that may be taken after all says so with its rule.
"""

import json
import math
import os
import random
import shutil
import typing
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
import torch
from bad_files import ITEM, toml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from wrong_inputs import DIGITS, HALF, JSON_VALUES, LONG, called, damages, places, retyped, told, wrong_values

import steer_heal as sh
from steer_heal import user_function
from steer_heal.commands.main import main
from steer_heal.config import RunConfig
from steer_heal.evaluation.anchors.tasks import load_tasks
from steer_heal.healing import HealConfig, reference_states
from steer_heal.healing.adapter import Adapter
from steer_heal.ledger import Ledger
from steer_heal.loop.preflight import check_fit
from steer_heal.model import loading
from steer_heal.steering import SteeringVector
from steer_heal.texts.dose import DoseConfig
from steer_heal.texts.generation import generate
from steer_heal.texts.sampling import Sampling
from steer_heal.trait import Anchor, Trait

OPTIONS = [
    (kind, one.name, value)
    for kind in (RunConfig, HealConfig, DoseConfig, Sampling)
    for one in fields(kind)
    for value in wrong_values(typing.get_type_hints(kind, include_extras=True)[one.name])
    if one.name != "reg" and not ("layers" in one.name and value == 5)
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No case asks the hub, and a function that does not end is stopped soon."""
    monkeypatch.setattr(loading, "_hub_answers", lambda: False)
    monkeypatch.setattr(user_function, "SECONDS", 0.5)


def failures(cases):
    """What became of the cases that were not refused; `cases` gives names and calls."""
    return {name: what for name, call in cases if (what := called(call)) != "refused"}


# -- values -----------------------------------------------------------------------------------------------------------


def test_no_option_takes_a_value_of_another_kind_or_size():
    assert len(OPTIONS) > 1500
    cases = ((f"{kind.__name__}.{name} {type(value)}", partial(kind, **{name: value})) for kind, name, value in OPTIONS)
    assert failures(cases) == {}


NUMBERS = [one.name for one in fields(RunConfig) if "float" in str(typing.get_type_hints(RunConfig)[one.name])]


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.sampled_from(NUMBERS), st.floats(3.1e38) | st.floats(max_value=-1e-9) | st.integers(10**39))
def test_no_number_is_taken_that_float32_does_not_hold_or_that_is_negative(name, value):
    if name == "lam_power" and -3e38 < value < 0:  # it may fall
        return
    assert called(lambda: RunConfig(**{name: value})) == "refused"


@pytest.mark.parametrize("call", [
    lambda lm: generate(lm, [HALF]), lambda lm: generate(lm, ["a"], doses=(math.inf,)),
    lambda lm: generate(lm, ["a"], seed=DIGITS), lambda lm: generate(lm, ["a"], system=HALF),
    lambda lm: generate(lm, ["what ?"], sh.extract(lm, "a", "b", ["c", "d"]) * 1e4, doses=(3e37,)),
    lambda lm: generate(lm, ["a"], sampling=Sampling(temperature=1e39)),
    lambda lm: sh.load("tiny-random", dtype=5), lambda lm: sh.load("tiny-random", temperature="x"),
    lambda lm: sh.load(5), lambda lm: sh.load("tiny-random", top_p=math.nan),
    lambda lm: sh.extract(lm, "a", "b", ["c", HALF]), lambda lm: sh.extract(lm, "a", "b", ["c", "d"], layers=[True]),
    lambda lm: reference_states(lm, "text"), lambda lm: reference_states(lm, [], batch_tokens="many"),
])  # fmt: skip
def test_functions_take_no_wrong_value(call, tiny):
    assert called(lambda: call(tiny)) == "refused"


def test_a_temperature_may_be_a_whole_number(tiny):
    assert len(generate(tiny, ["what ?"], max_new_tokens=2, sampling=Sampling(temperature=2))) == 1


WORDS = ("nan", "1e400", "9" * 5000, "-1", "randm", LONG, "[]", "~nosuchuser/x", "/dev/null/x")
FLAGS = ("lam", "seed", "doses", "layers", "max-new-tokens", "rank", "temperature", "threads", "trait", "anchors")


@pytest.mark.parametrize("flag", FLAGS)
def test_a_command_line_takes_no_wrong_word(flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = random.Random(flag)
    words = draw.sample(WORDS, 3) if flag not in ("lam", "seed") else draw.sample(["1e400", "randm", "[]", LONG], 3)
    for word in words:
        assert told(["run", "--dry-run", "--fast-dev-run", f"--{flag}", word], tmp_path) == "refused", word


# -- names of files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def names(tmp_path):
    """Names that no file can have, and things that are none."""
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    there = [str(tmp_path / name) for name in ("circle", "pipe", "file/below", "circle/below")]
    return [LONG, "/" + "x/" * 3000, "~nosuchuser", "~nosuchuser/a.toml", "a\0b", HALF, "/dev/zero", *there]


READERS = {
    "model": sh.load,
    "trait": lambda name: Trait.load(name),
    "trait by ending": lambda name: Trait.load(f"{name}.toml"),
    "anchors": load_tasks,
    "vignettes": lambda name: RunConfig(eval_vignettes=name).vignettes(),
    "vector": SteeringVector.load,
    "adapter": Adapter.load,
    "run": Ledger.open,
}
COMMANDS = ("report", "chat", "export {} --to new", "compare {} {}", "traits show", "traits check", "run --resume")


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_takes_a_name_that_no_file_has(reader, names):
    assert failures((name[:60], partial(READERS[reader], name)) for name in names) == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_a_name_that_no_file_has(command, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in names:
        words = (command if "{}" in command else f"{command} {{}}").split()
        if command == "chat":
            words += ["--prompt", "hi"]
        assert told([word.replace("{}", name) for word in words], tmp_path) == "refused", name


# -- traits -----------------------------------------------------------------------------------------------------------

TRAIT_KEYS = ("name", "pos", "neutral", "contexts", "prompts", "eval_prompts", "items", "off_target", "anchors",
              "vignettes", "choice_template", "held_out_choice_templates", "models", "checker")  # fmt: skip
TEMPLATES = ("{prompt}{choices", "{prompt!x} {choices}", "{prompt} {choices:>9}", "{prompt.x} {choices}", "{0} {1}",
             "{prompt[0]} {choices}", "{prompt:{choices}}", "{prompt} {prompt} {choices}", "{}", "}")  # fmt: skip
REGEXES = ("(", "a{99999999999999999999}", "(?P<a>x)(?P<a>x)", "*", "[z-a]", "\\", "(" * 5000 + ")" * 5000)


def anchor(**more):
    return {"id": "a", "prompt": "say", "answer": "2", **more}


TRAITS = {
    **{f"a template {one}": toml(choice_template=one) for one in TEMPLATES},
    **{f"a held-out template {one}": toml(held_out_choice_templates=[one]) for one in TEMPLATES},
    **{f"a regex {one[:30]}": toml(anchors=[anchor(check="regex", answer=one)]) for one in REGEXES},
    **{f"{key} deep": f"{key} = {'[' * 10**4}\n" for key in TRAIT_KEYS},
    **{f"{key} of digits": toml(**{key: None}) + f"{key} = {'9' * 10**4}\n" for key in TRAIT_KEYS},
    **{f"{key} a long name": toml(**{key: LONG + ".txt"}) for key in ("contexts", "prompts", "eval_prompts")},
    **{f"{key} a pipe": toml(**{key: "pipe.jsonl"}) for key in ("items", "off_target", "anchors", "vignettes")},
    **{f"{key} a circle": toml(**{key: "circle.txt"}) for key in ("contexts", "prompts", "eval_prompts")},
    **{f"{key} {value}": toml(**{key: value}) for key in TRAIT_KEYS for value in (5, True, [5], {"a": 1}, [[]], "\t")
       if (key, value) not in (("name", "\t"), ("neutral", "\t"), ("models", "\t"))},
    "NUL": "name = 'a\0b'",
    "a half": 'name = "\\ud800"',
    "an item of a half": toml(items="half.jsonl"),
    "an item nested deep": toml(items="deep.jsonl"),
    "an item of digits": toml(items="digits.jsonl"),
}  # fmt: skip


def test_no_trait_file_of_another_kind_is_taken(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "circle.txt").symlink_to("circle.txt")
    (tmp_path / "half.jsonl").write_text(json.dumps(ITEM | {"prompt": HALF}))
    (tmp_path / "deep.jsonl").write_text("[" * 10**5)
    (tmp_path / "digits.jsonl").write_text('{"id": ' + "9" * 10**5 + "}")
    path = tmp_path / "own.toml"

    def load(text):
        path.write_text(text)
        Trait.load(path)

    load(toml())
    assert len(TRAITS) > 120 and failures((name, partial(load, text)) for name, text in TRAITS.items()) == {}


CHECKERS = {
    "raises": "raise ZeroDivisionError('no\\nway')",
    "exits": "import sys; sys.exit(0)",
    "quits": "raise SystemExit",
    "returns nothing": "return None",
    "returns nan": "return Found(float('nan'), None, True)",
    "returns nan of a trait": "return Found(.5, float('nan'), True)",
    "returns infinity": "return Found(float('inf'), None, True)",
    "returns digits": "return Found(10 ** 400, None, True)",
    "returns texts": "return Found('a', None, True)",
    "recurses": "return check(prompt, reply, finished)",
    "does not end": "while True: pass",
    "runs out of memory": "raise MemoryError",
    "says stop": "raise StopIteration",
}
ASKED = {
    "raises": "1 / 0",
    "exits": "exit()",
    "returns nan": "return float('nan')",
    "returns nothing": "return None",
    "returns text": "return 'yes'",
    "recurses": "return run(a, b)",
    "does not end": "while True: pass",
}
FORMS = ("def check(): ...", "def check(a): ...", "class check: pass", "check = 5", "import sys; sys.exit(0)",
         "raise SystemExit", "raise KeyError", "while True: pass", "def check(", "\0", "x = " + "(" * 500)  # fmt: skip


@pytest.mark.parametrize("code", [*CHECKERS, *FORMS], ids=lambda code: code[:20].strip("\0"))
def test_no_checker_that_fails_is_found_later_than_before_the_run(code, tmp_path):
    found = "from collections import namedtuple\nFound = namedtuple('Found', 'sentence_ok trait reply_ok')\n"
    body = f"def check(prompt, reply, finished):\n    {CHECKERS.get(code)}\n"
    (tmp_path / "judging.py").write_text(found + body if code in CHECKERS else code)
    (tmp_path / "own.toml").write_text(toml(checker="judging:check"))
    assert called(lambda: Trait.load(tmp_path / "own.toml").check_functions()) == "refused"


@pytest.mark.parametrize("code", ASKED)
def test_no_anchors_function_that_fails_is_found_later_than_before_the_run(code, tmp_path):
    (tmp_path / "asking.py").write_text(f"def run(a, b):\n    {ASKED[code]}\n")
    (tmp_path / "a.jsonl").write_text(json.dumps(anchor(check="function", answer="asking:run")))
    sound = Trait.load("pocket-care")
    assert called(lambda: sound.check_functions(load_tasks(tmp_path / "a.jsonl"))) == "refused"


def test_a_search_that_does_not_end_is_stopped_in_one_line():
    assert called(lambda: Anchor("a", "say", "(a+)+$", "regex").passes("a" * 60 + "!")) == "refused"


def test_a_function_that_works_is_taken(tmp_path):
    (tmp_path / "asking.py").write_text("import numpy\ndef run(a, b):\n    return numpy.bool_(b == 'x')\n")
    (tmp_path / "a.jsonl").write_text(json.dumps(anchor(check="function", answer="asking:run")))
    (task,) = load_tasks(tmp_path / "a.jsonl")
    assert task.passes("x") and not task.passes("y")


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "model")


def replies(folder):
    """Loads a model and samples from it: one that is taken can be used."""
    lm = sh.load(folder)
    (reply,) = generate(lm, ["what about the rain ?"], max_new_tokens=2, seed=1)
    assert 0 < len(reply.token_ids) <= 2 and all(0 <= token < 480 for token in reply.token_ids)


KEY = "model.layers.1.mlp.up_proj.weight"
WEIGHTS = {
    "nan": lambda key, w: w * math.nan,
    "one nan": lambda key, w: w.index_fill(0, torch.tensor([0]), math.nan) if key == KEY else w,
    "infinite": lambda key, w: w / 0 if key == KEY else w,
    "zero": lambda key, w: w * 0,
    "whole": lambda key, w: w.to(torch.int64),
    "one whole": lambda key, w: w.to(torch.int8) if key == KEY else w,
    "switches": lambda key, w: w.bool(),
    "huge": lambda key, w: w * 1e37,
    "shorter": lambda key, w: w[:-1] if key == KEY else w,
    "flat": lambda key, w: w.flatten() if key == KEY else w,
    "complex": lambda key, w: w.to(torch.complex64) if key == KEY else w,
}
CHATS = {
    "fails": "{{ raise_exception('no') }}",
    "no template": "{% for",
    "unknown name": "{{ a.b.c }}",
    "never ends": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "ignores": "hello",
    "nothing": "",
    "a number": 5,
    "adds": "{{ 1 + messages }}",
    "divides": "{{ 1 // 0 }}",
    "too large": "{{ 'a' * 100000000000000 }}",
    "in a circle": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "of the system": "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}",
}
SETTINGS = {
    "num_beams": 4, "stop_strings": ["a"], "temperature": math.nan, "top_k": -3, "top_p": 1.5, "min_p": -1,
    "eos_token_id": 10**6, "pad_token_id": "x", "return_dict_in_generate": True, "suppress_tokens": [1], "max_time": 1,
    "guidance_scale": 2.0, "bad_words_ids": [[1]], "penalty_alpha": 0.5, "num_return_sequences": 3, "typical_p": 0.5,
    "watermarking_config": {"a": 1}, "min_new_tokens": 30, "no_repeat_ngram_size": 2, "cache_implementation": "none",
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_no_weights_are_taken_that_are_no_finite_numbers(name, model):
    weights = {key: WEIGHTS[name](key, value) for key, value in load_file(model / "model.safetensors").items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert called(lambda: replies(model)) == "refused"


@pytest.mark.parametrize("name", CHATS)
def test_no_chat_template_is_taken_that_does_not_show_the_user(name, model):
    (model / "chat_template.jinja").unlink()
    retyped(model / "tokenizer_config.json", ("chat_template",), CHATS[name])
    assert called(lambda: replies(model)) == "refused"


@pytest.mark.parametrize("key", SETTINGS)
def test_no_generation_config_is_taken_that_samples_in_another_way(key, model):
    retyped(model / "generation_config.json", (key,), SETTINGS[key])
    assert called(lambda: replies(model)) == "refused"


OPTIONAL = ("chat_template.jinja", "generation_config.json")
"""Files that a model need not have."""


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", *OPTIONAL]
)
def test_no_damaged_file_of_a_model_is_taken(file, sound, tmp_path):
    for name, damage in damages(1).items():
        if name == "flipped" or (name == "gone" and file in OPTIONAL):  # it may be another model, and a sound one
            continue
        folder = shutil.copytree(sound, tmp_path / f"{file}-{name}")
        damage(folder / file)
        what = called(partial(replies, folder))
        assert what == "refused", (name, what)


def mutations(sound, share):
    """(file, place, value) of a share of all values in a model's JSON files."""
    draw = random.Random(7)
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        for place in places(json.loads((sound / file).read_text())):
            if draw.random() < share:
                yield file, place, draw.choice(JSON_VALUES)


def try_mutations(sound, folder, share):
    """A model with another value is refused, or it can be loaded and gives tokens of its vocabulary (`replies`)."""
    tried = refused = 0
    for file, place, value in mutations(sound, share):
        shutil.copy(sound / file, folder / file)
        retyped(folder / file, place, value)
        what = called(lambda: replies(folder))
        shutil.copy(sound / file, folder / file)
        assert what in ("refused", "done"), (file, place, value, what)
        tried, refused = tried + 1, refused + (what == "refused")
    return tried, refused


def test_a_model_with_another_value_is_refused_or_can_be_used(sound, model):
    tried, refused = try_mutations(sound, model, 0.3)
    assert tried >= 15 and refused >= tried / 2


@pytest.mark.slow
def test_a_model_with_any_other_value_is_refused_or_can_be_used(sound, model):
    assert try_mutations(sound, model, 1.0)[0] >= 45


def test_a_trait_of_stories_and_a_chat_model_do_not_go_together(tiny, lm):
    story = Trait.load(Path(__file__).parents[1] / "examples" / "stories" / "stories-cheer.toml")
    chat, options = Trait.load("pocket-care"), RunConfig(fast_dev_run=True)
    assert called(lambda: check_fit(tiny, chat, options)) == "done"
    assert called(lambda: check_fit(tiny, story, options)) == "refused"
    lm.tokenizer.chat_template = None
    assert called(lambda: check_fit(lm, story, options)) == "done"
    assert called(lambda: check_fit(lm, chat, options)) == "refused"


@pytest.mark.parametrize(
    "words", ["--rank 65", "--rank 100000000", "--max-new-tokens 1024", "--max-new-tokens 999999999"]
)
def test_what_the_model_has_no_room_for_is_said_in_the_dry_run_too(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--dry-run"]):
        assert told(["run", "--model", "tiny-random", *words.split(), *more], tmp_path) == "refused"


def test_memory_that_runs_out_on_a_cpu_is_one_line(monkeypatch, capsys):
    def short(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(loading, "tiny_random", short)
    assert told(["run", "--model", "tiny-random", "--fast-dev-run", "--out", "/nowhere"]) == "refused"
    monkeypatch.setattr(loading, "tiny_random", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["run", "--model", "tiny-random", "--fast-dev-run", "--out", "/nowhere"])
