"""Help pages and mistyped options answer without torch; the public names are imported when they are asked for."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import steer_heal
from steer_heal import healing
from steer_heal.healing import barriers
from steer_heal.healing.config import CHOICES, KL_NAMES

HEAVY = ("torch", "transformers", "peft")
SCRIPT = """
import contextlib, importlib, io, json, sys
for module, words in json.load(sys.stdin):
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        code = importlib.import_module(module).main(words)
    print(json.dumps([code, [name for name in {heavy!r} if name in sys.modules], said.getvalue()]))
"""
RUN, ANY = "steer_heal.run", "steer_heal.commands.main"
WRONG_OF_A_RUN = ("--typo 1", "--lam abc", "--lam -1", "--lora-layers 0.9 0.1", "--kl-agg median", "--reg kl")
ANSWERED = (
    "--help", "run --help", "run --help heal", "chat --help", "doctor --help", "compare --help", "traits",
)  # fmt: skip
WRONG = ("chat --promt x", "doctor --modle x", "export --too x", "chat pocket --dose much")
MISTYPED = {
    "run --model ./nosuch": "check the spelling",
    "run --model pockt": "did you mean 'pocket'",
    "run --model=tests": "no config.json",
    "run --trait pocket-car": "did you mean 'pocket-care'",
    "run --trait nosuch.toml": "check the path",
    "run --anchors nosuch.jsonl": "check the path",
    "run --eval-vignettes nosuch.jsonl": "check the path",
    "run --resume nosuch": "no run folder",
    "chat ./nosuch": "check the spelling",
    "chat pockt --prompt Hello": "did you mean 'pocket'",
    "chat pocket --trait nosuch": "unknown trait",
    "doctor --model ./nosuch": "check the spelling",
    "report nosuch": "does not exist",
    "compare nosuch nosuch": "does not exist",
    "export nosuch --to x": "does not exist",
}


@pytest.fixture(scope="module")
def answers():
    """Of each command line, answered one after the other in a process of their own: exit code, which heavy libraries
    are imported by then, and what it complained."""
    lines = [(RUN, words) for words in WRONG_OF_A_RUN] + [(ANY, words) for words in (*ANSWERED, *WRONG, *MISTYPED)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(heavy=HEAVY)],
        input=json.dumps([(module, words.split()) for module, words in lines]),
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return {words: json.loads(told) for (_, words), told in zip(lines, done.stdout.splitlines(), strict=True)}


@pytest.mark.parametrize("words", WRONG_OF_A_RUN)
def test_a_wrong_option_of_a_run_is_refused_without_torch(words, answers):
    code, heavy, said = answers[words]
    assert (code, heavy) == (2, []) and said.startswith("steer_heal: ") and said.count("\n") == 1


@pytest.mark.parametrize("words", ANSWERED)
def test_help_and_the_list_of_traits_need_no_torch(words, answers):
    assert answers[words] == [0, [], ""]


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_option_of_a_command_is_refused_without_torch(words, answers):
    assert answers[words][:2] == [2, []]


@pytest.mark.parametrize("words", MISTYPED)
def test_a_mistyped_model_trait_run_or_file_is_refused_without_torch(words, answers):
    code, heavy, said = answers[words]
    assert (code, heavy) == (2, []) and MISTYPED[words] in said and said.count("\n") == 1


@pytest.mark.parametrize("package", [steer_heal, barriers, healing], ids=lambda package: package.__name__)
def test_every_public_name_is_there_listed_and_known_to_type_checkers(package):
    assert package.__all__ == sorted(set(package.__all__), key=package.__all__.index)
    assert set(package.__all__) <= set(dir(package))
    tree = ast.parse(Path(package.__file__).read_text("utf-8"))
    for_checkers = next(node.body for node in tree.body if isinstance(node, ast.If))
    lazy = {alias.name: node.module for node in for_checkers for alias in node.names}
    assert set(package.__all__) >= set(lazy)
    for name in package.__all__:
        found = getattr(package, name)
        assert name not in lazy or found is getattr(importlib.import_module(lazy[name]), name)


def test_the_contract_holds_what_notebooks_use():
    assert {"Probe", "Interrupted", "Sampling", "load", "extract", "run_rounds"} <= set(steer_heal.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error_and_modules_are_found():
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        steer_heal.nonesuch  # noqa: B018
    assert steer_heal.evaluation.probes is importlib.import_module("steer_heal.evaluation.probes")


def test_names_of_barriers_and_aggregates_are_those_that_can_be_computed():
    assert tuple(barriers.DIVERGENCES) == KL_NAMES and tuple(barriers.AGGREGATES) == CHOICES["kl_agg"]
