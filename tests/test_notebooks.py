"""What a notebook user meets: short reprs, tables and plots, names to complete, help that explains each field."""

import pydoc
import sys
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from healing_data import QUICK, completion
from hypothesis import given, settings
from hypothesis import strategies as st
from resume_runs import config
from script_modules import script

import steer_heal as sh
from steer_heal.ledger import Ledger
from steer_heal.report import tracking
from steer_heal.shown import LONGEST, brief, plot
from steer_heal.texts.coherence import FilterReport

DATACLASSES = [kind for name in sh.__all__ if is_dataclass(kind := getattr(sh, name))]


@dataclass(frozen=True)
class Anything:
    one: object
    two: object = 3
    three: dict = field(default_factory=dict)
    __repr__ = brief


@pytest.fixture(scope="module")
def metrics(tiny):
    trait = replace(sh.Trait.load("care-over-authority"), anchors=(), off_target=())
    return sh.evaluate(tiny, trait, n_items=8, n_free=0, vignettes=[])


@pytest.fixture(scope="module")
def judged(tiny):
    return sh.CoherenceFilter().only_repetition()(tiny, [completion(tiny, i, 8) for i in range(6)])


@pytest.fixture(scope="module")
def objects(tiny, metrics, judged):
    """One of many public kinds, as large as they are in use."""
    factors = {f"model.layers.{i}.mlp.up_proj": torch.ones(4, 64) for i in range(40)}
    adapter = sh.Adapter(factors, factors, 4, 8.0)
    return [
        tiny,
        sh.Trait.load("care-over-authority"),
        metrics,
        sh.compare(metrics, metrics),
        judged[0],
        sh.CoherenceFilter().report(judged),
        sh.CoherenceFilter(),
        sh.Verdict("healed", "word " * 200),
        adapter,
        sh.AdapterStack(tiny),
        sh.RunConfig(model="m" * 300),
        replace(QUICK, target_modules=("q_proj",) * 90),
        sh.reference_states(tiny, judged),
        sh.Healed(adapter, QUICK, ({"loss": 1.0},) * 500, ({"nll": 1.0},) * 9, {"kept_epoch": 1.0}, {}, {}),
        sh.walk_c(lambda kappa, n: judged, lambda some: some, sh.DoseConfig(n_min=8)),
        sh.extract(tiny, "You are kind.", "You are cruel.", ["Hi", "Why?", "What is rain?"], layers=1),
    ]


def test_every_public_object_has_a_repr_of_one_short_line(objects):
    for one in objects:
        assert type(one).__name__ in repr(one) and len(repr(one)) < LONGEST and "\n" not in repr(one), type(one)
    assert repr(sh.HealConfig(lr=0.5)) == "HealConfig(lr=0.5)"
    assert "contexts=<270 str>" in repr(objects[1]) and "a=<40 Tensor>" in repr(objects[8])


@pytest.mark.parametrize("kind", DATACLASSES, ids=lambda kind: kind.__name__)
def test_no_public_dataclass_has_the_repr_that_python_gives_it(kind):
    assert not getattr(kind.__repr__, "__wrapped__", None) and kind.__repr__ is not object.__repr__


VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=40, deadline=None)
@given(VALUES, VALUES)
def test_a_repr_is_short_whatever_is_in_it(one, two):
    assert len(repr(Anything(one, two))) < LONGEST
    assert repr(Anything(one)).startswith("Anything(one=") and "two" not in repr(Anything(1))


def test_figures_are_tables_and_quality_and_walk_have_a_plot(objects):
    shown = {type(one): one._repr_html_() for one in objects if hasattr(one, "_repr_html_")}
    plotted = {kind for kind, text in shown.items() if "<polyline" in text}
    assert plotted == {sh.SteeringVector, sh.Walk}
    assert plotted | {sh.Metrics, sh.Shift, sh.Verdict, FilterReport} == set(shown)
    for text in shown.values():
        ElementTree.fromstring(f"<div>{text}</div>")  # well formed
    metrics, vector = objects[2], objects[-1]
    assert f"<td>log_odds</td><td>{metrics.log_odds:.3g}</td>" in shown[sh.Metrics]
    assert f"<td>{vector.quality[1].auc:.3g}</td>" in shown[sh.SteeringVector]
    assert "<td>log_odds</td>" in shown[sh.Shift] and "kept 6 of 6" in shown[FilterReport]
    assert (vector * 2)._repr_html_().count("<tr>") == 2, "a derived vector has no quality"


def test_a_plot_puts_the_largest_value_at_the_top_and_none_at_the_bottom():
    tree = ElementTree.fromstring(plot({"a": [0.0, 4.0]}, [1, 2], "about"))
    assert tree.find("polyline").attrib["points"] == "40.0,110.0 300.0,20.0"


def test_the_package_completes_to_its_public_names_alone():
    assert sorted(dir(sh)) == sorted(sh.__all__)


@pytest.mark.parametrize("kind", [sh.HealConfig, sh.RunConfig, sh.DoseConfig])
def test_help_on_a_configuration_explains_every_field(kind):
    told = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    for one in fields(kind):
        assert f"\n |      {one.name}: " in told, one.name


def test_a_run_tells_every_event_as_it_is_recorded_and_a_tracker_every_number_of_them(tmp_path, undrawn, monkeypatch):
    logged, ended, told = [], [], []
    stand_in = SimpleNamespace(
        __spec__="some",
        init=lambda **given: SimpleNamespace(log=logged.append),
        finish=lambda: ended.append(len(logged)),
    )
    monkeypatch.setitem(sys.modules, "trackio", stand_in)  # the real ones: test_libraries.py
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    result = sh.run_rounds(config(tmp_path, n_rounds=1, track="trackio"), on_event=told.append)
    assert told == Ledger.open(result.folder).events() and {"start", "heal", "end"} <= {
        event["stage"] for event in told
    }
    (heal,) = (event for event in told if event["stage"] == "heal")
    steps = [row for row in logged if "step/loss" in row]
    assert [row["step/loss"] for row in steps] == [step["loss"] for step in heal["steps"]]
    assert [row["step/number"] for row in steps] == list(range(len(steps)))
    (row,) = (row for row in logged if "heal/figures/reach" in row)
    assert row["round"] == 0 and row["heal/seconds"] == heal["seconds"] and row["heal/lam/base"] == heal["lam"]["base"]
    assert ended == [len(logged)] and all(isinstance(value, int | float) for row in logged for value in row.values())


def test_a_tracker_that_is_not_installed_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(sh.InputError, match=r"pip install 'steer-heal\[wandb\]'"):
        sh.run_rounds(sh.RunConfig(track="wandb", fast_dev_run=True, out=str(tmp_path)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(sh.InputError, match="one of wandb, tensorboard, trackio"):
        sh.RunConfig(track="mlflow")


def test_the_page_of_what_works_with_what_is_the_one_that_its_command_writes():
    table = script("client_table")
    assert table.PAGE.read_text(encoding="utf-8") == table.page(), "run scripts/client_table.py"
    with pytest.raises(sh.InputError, match="0 tests begin so"):
        table.test_named("test_vectors.py::test_nothing_of_this")
