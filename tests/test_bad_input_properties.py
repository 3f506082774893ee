"""Whatever a trait file, an event log or a command line holds is used, or refused with one line; never a traceback."""

import json

from bad_files import toml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steer_heal.commands.folders import finished_run
from steer_heal.commands.options import options_of, parse
from steer_heal.commands.run import CommandLine
from steer_heal.errors import InputError
from steer_heal.trait import Trait

quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES = st.recursive(
    st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "prompt", "x"]), inner),
    max_leaves=5,
)
KEYS = "name pos neg neutral contexts prompts eval_prompts items off_target anchors models replay_prompts vignettes"
KEYS = (*KEYS.split(), "vignette_up", "choice_template", "checker")
FLAGS = sorted(options_of(CommandLine))


def refused_in_one_line(action) -> bool:
    """Whether the action was refused with an InputError of one line; any other exception goes on."""
    try:
        action()
    except InputError as problem:
        assert str(problem) and "\n" not in str(problem)
        return True
    return False


def test_the_sound_file_of_these_tests_is_sound(tmp_path):
    (tmp_path / "own.toml").write_text(toml(), encoding="utf-8")
    assert Trait.load(tmp_path / "own.toml").name == "own"


@quick
@given(st.binary(max_size=80))
def test_any_bytes_as_a_trait_file_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "own.toml").write_bytes(content)
    assert refused_in_one_line(lambda: Trait.load(tmp_path / "own.toml"))


@quick
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_key_of_a_trait_is_used_or_refused_in_one_line(tmp_path, key, value):
    (tmp_path / "own.toml").write_text(toml(**{key: value}), encoding="utf-8")
    refused_in_one_line(lambda: Trait.load(tmp_path / "own.toml"))


@quick
@given(st.lists(st.dictionaries(st.sampled_from(["stage", "round", "folded", "model"]), VALUES), max_size=4), st.data())
def test_any_events_are_refused_in_one_line(tmp_path, events, data):
    text = "".join(json.dumps(event) + "\n" for event in events)
    text = text[: data.draw(st.integers(0, len(text)))]
    (tmp_path / "config.json").write_text('{"schema_version": 1}')
    (tmp_path / "events.jsonl").write_text(text, encoding="utf-8")
    assert refused_in_one_line(lambda: finished_run(tmp_path))


@quick
@given(VALUES)
def test_any_configuration_is_refused_in_one_line(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "events.jsonl").write_text("")
    assert refused_in_one_line(lambda: finished_run(tmp_path))


@quick
@given(st.lists(st.sampled_from(FLAGS) | st.from_regex(r"\A[-=a-z0-9.]{1,6}\Z"), min_size=1, max_size=4))
def test_any_words_are_parsed_and_checked_or_refused_in_one_line(words):
    refused_in_one_line(lambda: parse(CommandLine, words, "run").config())
