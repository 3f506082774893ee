"""The run folder: events, atomic rounds, plain JSON."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_heal.errors import InputError
from steer_heal.ledger import Ledger, plain


def test_events_are_appended_in_order_and_reach_the_listeners(tmp_path):
    ledger, heard = Ledger.create(tmp_path, "a run", {"seed": 1}), []
    ledger.listeners.append(heard.append)
    ledger.record("one", 0, value=1.5)
    ledger.record("two", 0, value=[1, 2])
    assert [e["stage"] for e in ledger.events()] == ["one", "two"] and heard == ledger.events()
    assert ledger.events("two")[0]["value"] == [1, 2]


def test_a_round_appears_whole_or_not_at_all(tmp_path):
    ledger = Ledger.create(tmp_path, "run", {})
    with pytest.raises(KeyError), ledger.round_folder(0) as folder:
        (folder / "half.txt").write_text("half")
        raise KeyError
    assert not (ledger.folder / "rounds" / "00").exists()
    with ledger.round_folder(0) as folder:
        assert not list(folder.iterdir())  # what the failed attempt wrote is gone
        for left in ("00.interrupted", "00.interrupted.partial"):
            (ledger.folder / "rounds" / left).mkdir()
        (folder / "whole.txt").write_text("whole")
    assert (ledger.folder / "rounds" / "00" / "whole.txt").read_text() == "whole"
    assert [p.name for p in (ledger.folder / "rounds").iterdir()] == ["00"]


def test_runs_started_in_the_same_second_get_folders_of_their_own(tmp_path):
    folders = {Ledger.create(tmp_path, "run", {}).folder for _ in range(5)}
    assert len(folders) == 5


def test_a_part_of_a_run_is_a_ledger_of_its_own_inside_the_folder(tmp_path):
    ledger = Ledger.create(tmp_path, "run", {"seed": 1})
    part = ledger.part("controls/unsteered", {"seed": 2})
    part.record("one", 0)
    with part.round_folder(0) as folder:
        (folder / "file").write_text("")
    assert Ledger.open(ledger.folder / "controls" / "unsteered").config["seed"] == 2
    assert not ledger.events() and part.events()[0]["stage"] == "one"
    assert (ledger.folder / "controls" / "unsteered" / "rounds" / "00" / "file").is_file()


def test_label_cannot_leave_the_output_folder(tmp_path):
    folder = Ledger.create(tmp_path, "../../etc/x_./folder", {}).folder
    assert folder.parent == tmp_path


def test_config_and_environment_say_how_to_repeat_the_run(tmp_path):
    ledger = Ledger.create(tmp_path, "run", {"lr": 0.1})
    environment = json.loads((ledger.folder / "environment.json").read_text())
    assert ledger.config["lr"] == 0.1 and Ledger.open(ledger.folder).config == ledger.config
    assert environment["versions"]["torch"] and environment["argv"] and environment["imported_from"]


def test_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written.*--out"):
        Ledger.create(tmp_path / "file", "run", {})


def test_opening_something_else_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        Ledger.open(tmp_path)
    (tmp_path / "config.json").write_text('{"schema_version": 99}')
    with pytest.raises(InputError, match="schema 99"):
        Ledger.open(tmp_path)


def test_results_table_gets_its_header_once(tmp_path):
    ledger = Ledger.create(tmp_path, "run", {})
    for value in (1.0, None):
        ledger.append_result({"name": "a\tb", "value": value})
    assert (tmp_path / "results.tsv").read_text().splitlines() == ["name\tvalue", "a b\t1.0000", "a b\t"]


def test_lines_of_another_version_are_put_under_todays_columns(tmp_path):
    (tmp_path / "results.tsv").write_text("name\told\tvalue\na\t9\t1.0000\n")
    Ledger.create(tmp_path, "run", {}).append_result({"name": "b", "new": 2, "value": 3})
    assert (tmp_path / "results.tsv").read_text().splitlines() == ["name\tnew\tvalue", "a\t\t1.0000", "b\t2\t3"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
)


@settings(max_examples=40)
@given(JSON)
def test_plain_gives_strict_json(value):
    json.dumps(plain(value), allow_nan=False)


def test_plain_keeps_finite_numbers_and_refuses_objects():
    assert plain({1: (math.nan, 2.5, math.inf)}) == {"1": [None, 2.5, None]}
    with pytest.raises(TypeError, match="object"):
        plain(object())


@pytest.mark.parametrize(("was", "now"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_a_switch_that_has_three_values_now_is_read_from_runs_of_before(tmp_path, was, now):
    assert Ledger.create(tmp_path, "run", {"gradient_checkpointing": was}).config["gradient_checkpointing"] == now
