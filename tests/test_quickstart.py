"""The notebooks, run as a newcomer would: the quickstart ends in a figure, and their claims hold."""

import ast
import json
import re

import nbformat
import pytest
from doc_pages import ROOT, anchors
from script_modules import script

notebook = script("notebook")
FACTS = """
import json
print(json.dumps({
    "kept": len(kept) / len(replies),
    "kept_by_dose": {dose: sum(r.kept for r in judged if r.dose == dose) for dose in (0.5, 1.0)},
    "heldout": [figures["heldout_nll_before"], figures["heldout_nll_after"]],
    "fired": figures["prev_fired"],
    "trait": [shifts["healed"].log_odds.low, shifts["healed"].free_trait.low],
    "coherence": {name: [s.sentence_ok.low, s.sentence_ok.high] for name, s in shifts.items()},
    "depth": len(stack),
    "undone": undone,
    "changed": max(float(d.abs().max()) for d in map(healed.adapter.delta, healed.adapter.modules)),
    "module": sh.__file__,
}))
"""


@pytest.fixture(scope="module")
def committed():
    """The notebook as it is in the repository."""
    return nbformat.read(notebook.NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after a run in a folder of its own, with one more cell that tells what came of it."""
    run = nbformat.read(notebook.NOTEBOOK, as_version=4)
    run.cells.append(nbformat.v4.new_code_cell(FACTS))
    return notebook.execute(run, tmp_path_factory.mktemp("notebook"), timeout=240)


@pytest.fixture(scope="module")
def facts(executed):
    """What the last cell printed."""
    return json.loads(printed(executed.cells[-1]))


def printed(cell):
    """A cell's standard output."""
    return "".join(one.text for one in cell.outputs if one.get("name") == "stdout")


def pictures(run):
    """The PNG outputs of a notebook."""
    return [
        one.data["image/png"]
        for cell in run.cells
        for one in cell.get("outputs", ())
        if "image/png" in one.get("data", {})
    ]


def test_it_runs_on_this_package_and_ends_in_a_figure(executed, facts):
    import steer_heal

    assert facts["module"] == steer_heal.__file__
    assert len(pictures(executed)) == 1 and len(pictures(executed)[0]) > 5_000


def test_the_trait_rises_and_the_text_holds(facts):
    assert min(facts["trait"]) > 0.2, "nats of forced choice and share of free text, lower ends of the intervals"
    assert facts["coherence"]["steered"][1] < -0.1 < facts["coherence"]["healed"][0]


def test_the_filter_drops_and_the_barrier_fires(facts):
    assert 0.3 < facts["kept"] < 0.9 and facts["kept_by_dose"]["0.5"] > 2 * facts["kept_by_dose"]["1.0"]
    assert facts["heldout"][1] < facts["heldout"][0] and 0 < facts["fired"] < 1


def test_undo_is_exact_and_undoes_something(executed, facts):
    assert facts["undone"] and facts["depth"] == 0 and facts["changed"] > 1e-3
    assert "bit for bit: True" in printed(executed.cells[-3])


def test_committed_outputs_are_of_these_cells(committed, executed):
    for cell, run in zip(committed.cells, executed.cells[:-1], strict=True):
        if cell.cell_type == "code":
            kinds = [
                [(one.output_type, *sorted(one.get("data", ()))) for one in c.outputs] for c in (cell, strip_one(run))
            ]
            assert kinds[0] == kinds[1] and cell.outputs
            assert words(printed(cell)) == words(printed(run)) or "reply" in cell.source


def strip_one(cell):
    """The cell as it would be written."""
    return notebook.strip(nbformat.v4.new_notebook(cells=[cell])).cells[0]


def words(text):
    """The text without its figures, which other machines and library versions may shift."""
    return re.sub(r"[-+]?[\d.]+(e-?\d+)?|\s+", " ", text).split()


OTHER = ROOT / "docs" / "own-model.ipynb"
both = pytest.mark.parametrize("path", [notebook.NOTEBOOK, OTHER], ids=lambda path: path.stem)


@pytest.mark.slow
def test_a_model_of_another_family_is_healed_in_memory_exported_and_given_back(tmp_path):
    run = notebook.execute(nbformat.read(OTHER, as_version=4), tmp_path, timeout=500)
    made, wrapped, looked, healed, compared, replies, taken = (c for c in run.cells if c.cell_type == "code")
    assert printed(made).startswith("0e+00") and "my-qwen2" in printed(wrapped) and "auto: of 4" in printed(looked)
    assert "<polyline" in looked.outputs[-1].data["text/html"]
    assert any(name in healed.outputs[-1].data["text/html"] for name in ("healed", "moved", "throttled"))
    assert printed(taken).split() == ["True", "True"] and printed(replies).count("asked") >= 1
    assert "free_trait" in compared.outputs[-1].data["text/html"]


@both
def test_every_code_cell_follows_a_sentence_that_says_what_to_see(path):
    committed = nbformat.read(path, as_version=4)
    kinds = [cell.cell_type for cell in committed.cells]
    for place, cell in enumerate(committed.cells):
        if cell.cell_type == "code":
            ast.parse(cell.source)
            above = committed.cells[place - 1].source
            assert kinds[place - 1] == "markdown" and "**You should see**" in above and len(above.split()) > 12


@both
def test_committed_notebook_is_small_and_tells_nothing_of_a_machine(path):
    raw = path.read_text(encoding="utf-8")
    committed, text = nbformat.reads(raw, as_version=4), raw
    assert len(raw) < 300_000 and all(cell.outputs for cell in committed.cells if cell.cell_type == "code")
    for picture in pictures(committed):
        text = text.replace(picture, "")
    assert not re.search(
        r"/(tmp|home|root|usr|work|Users|private|mnt)/|[A-Z]:\\\\|\d{4}-\d\d-\d\d|127\.0\.0\.1|Traceback", text
    )
    assert (
        set(committed.metadata) == {"kernelspec", "language_info"} and committed.metadata.kernelspec.name == "python3"
    )
    assert committed == notebook.strip(nbformat.reads(raw, as_version=4)), "run `just notebook`"


@both
def test_its_links_lead_somewhere(path):
    committed = nbformat.read(path, as_version=4)
    texts = [cell.source for cell in committed.cells if cell.cell_type == "markdown"]
    targets = [target for text in texts for target in re.findall(r"\]\(([^)]+)\)", text)]
    assert len(targets) > 4
    for target in targets:
        path, _, anchor = target.partition("#")
        page = (ROOT / "docs" / path).resolve()
        assert page.is_file() and (not anchor or anchor in anchors(page)), target


def test_a_failing_cell_is_an_exit_code_and_nothing_is_written(tmp_path, capsys):
    path = tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    assert notebook.main(["--notebook", str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err and path.read_bytes() == before
