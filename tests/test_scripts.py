"""Command lines of the scripts: help with every option, and one line with the nearest option for every mistake."""

from pathlib import Path

import pytest
from script_modules import script

from steer_heal.commands.options import options_of, parse
from steer_heal.commands.script import run_script
from steer_heal.errors import InputError

FOLDER = Path(__file__).parents[1] / "scripts"
WITHOUT_OPTIONS = {"client_table", "build_coherence_data", "build_word_pairs"}
TYPED = {
    "arena": (["--arm", "x"], "did you mean --arms?"),
    "arms": (["--seed", "3"], "did you mean --seeds?"),
    "bench": (["heal", "--repeat", "x"], "scripts/bench.py --help"),
    "carry_over": (["pocket", "--tua", "1"], "did you mean --tau?"),
    "csweep": (["--target-k", "1"], "did you mean --target-kl?"),
    "family_table": (["--familie"], "unknown option --familie"),
    "filter_report": (["--split", "both-of-them"], "--split both-of-them: give one of tune, held_out, both"),
    "heal_sweep": (["out/RUN", "--rond", "1"], "did you mean --round?"),
    "house_map": (["--chek"], "unknown option --chek"),
    "ladder": (["--share", "1"], "did you mean --shares?"),
    "matrix": (["--seeds", "a"], "--seeds a: give one or more whole numbers"),
    "questions": (["--question", "3"], "did you mean --questions?"),
    "readme": (["--chek"], "did you mean --check?"),
    "notebook": (["--timeout", "soon"], "--timeout soon: give a whole number"),
    "steering_pictures": (["--ot", "x"], "did you mean --out?"),
    "use": (["--scale", "1"], "did you mean --scales?"),
    "train_pocket": (["--only", "al"], "--only al: give one of all, train, checks, traits, surgery"),
}


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """Scripts import one another as they do when they are run."""
    monkeypatch.syspath_prepend(str(FOLDER))


def test_every_script_is_tried():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*TYPED, *WITHOUT_OPTIONS}


@pytest.mark.parametrize("name", [name for name in TYPED if name != "train_pocket"])
def test_a_mistyped_option_of_a_script_is_one_line_and_exit_code_2(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, expected = TYPED[name]
    assert script(name).main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and expected in shown.err and not list(tmp_path.iterdir())


def test_the_pocket_trainer_parses_as_the_others_do():
    words, expected = TYPED["train_pocket"]
    with pytest.raises(InputError, match=expected):
        parse(script("train_pocket").Arguments, words, "scripts/train_pocket.py")


@pytest.mark.parametrize("name", [name for name in TYPED if name != "train_pocket"])
def test_help_of_a_script_says_what_it_does_and_explains_every_option(name, capsys):
    module = script(name)
    words = ["heal"] if name == "bench" else []
    kind = module.BENCHES["heal"][0] if name == "bench" else module.Arguments
    assert module.main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in options_of(kind).values():
        assert option.positional or option.flag in shown, option
    assert name == "bench" or module.__doc__.strip().splitlines()[0] in shown


def test_an_unknown_bench_is_told_the_nearest_one(capsys):
    assert script("bench").main(["hea"]) == 2
    assert "did you mean 'heal'" in capsys.readouterr().err
    assert script("bench").main(["--help"]) == 0 and "bench.py heal" in capsys.readouterr().out


def test_a_scripts_exit_code_is_that_of_its_work(capsys):
    kind = script("csweep").Arguments

    def stopped(arguments):
        raise KeyboardInterrupt

    assert run_script(kind, lambda given: None, [], about="", name="any") == 0
    assert run_script(kind, lambda given: 1, [], about="", name="any") == 1
    assert run_script(kind, stopped, [], about="", name="any", interrupted="go on") == 130
    assert capsys.readouterr().err == "steer_heal: interrupted; go on\n"
