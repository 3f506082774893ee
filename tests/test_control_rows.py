"""Each page of results ends with a control row: a cheap command of its study, and the figure that it gives today."""

import csv
import re
import shlex
import tomllib
from functools import cache

import pytest
from doc_pages import ROOT, blocks
from resume_runs import undrawn
from script_modules import script

from steer_heal import run

STUDIES = sorted((ROOT / "docs" / "results").glob("*.md"))
WITHOUT = {"tried": "a record of older states", "stories": "its model is not shipped", "speed": "times of a machine"}
"""Pages without a control row, and why."""

SLOW = ("barrier", "controls", "rounds", "ten-rounds", "arena", "carry-over", "heal-sweep", "matrix", "use")


def control_row(page):
    """The block of a page: commands, where the figure stands, what it was and how far it may be off."""
    found = [tomllib.loads(b.text) for b in blocks(page) if b.kind == "toml" and b.text.startswith("commands")]
    assert len(found) == 1, f"{page.name}: a page of results has one control row"
    return found[0]


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """Runs a command line in one folder for all pages, each line once; RUN is the run that an earlier line made."""
    folder = tmp_path_factory.mktemp("control")

    @cache
    def once(line):
        runs = sorted(folder.glob("out/control/run/*/config.json"))
        words = shlex.split(line.replace("out/RUN", str(runs[-1].parent)) if "out/RUN" in line else line)
        assert words[:3] == ["uv", "run", "python"], line
        match words[3:]:
            case ["-m", "steer_heal.run", *options]:
                code = run.main(options)
            case [path, *options]:
                code = script(path.removeprefix("scripts/").removesuffix(".py")).main(options)
        assert code == 0, line

    with pytest.MonkeyPatch.context() as patch, undrawn():
        patch.chdir(folder)
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield once


def rows():
    """Pages with a control row; one more run of the main job is slow, and a study that its own tests make whole."""
    for page in STUDIES:
        marks = [pytest.mark.slow] if page.stem in SLOW else []
        if page.stem not in WITHOUT:
            yield pytest.param(page, marks=marks, id=page.stem)


@pytest.mark.parametrize("page", list(rows()))
def test_the_control_row_of_a_study_gives_its_figure(page, typed, capsys):
    wanted = control_row(page)
    for line in wanted["commands"]:
        typed(line)
    if "printed" in wanted:
        found = float(re.search(wanted["printed"], capsys.readouterr().out)[1])
    else:
        with open(wanted["file"], encoding="utf-8", newline="") as file:
            (row,) = [
                r
                for r in csv.DictReader(file, delimiter="\t" if wanted["file"].endswith(".tsv") else ",")
                if all(r[k] == v for k, v in wanted["row"].items())
            ]
        found = float(row[wanted["column"]])
    assert found == pytest.approx(wanted["found"], abs=wanted["tolerance"])


def test_every_page_of_results_has_a_control_row_or_a_reason():
    assert {page.stem for page in STUDIES} >= set(WITHOUT)
    for page in STUDIES:
        assert (page.stem in WITHOUT) != ("## Control row" in page.read_text(encoding="utf-8")), page.name
