"""The map of the house is the tree, and the citation file is one that its readers take."""

import re
import tomllib

import pytest
import yaml
from doc_pages import ROOT
from script_modules import script

import steer_heal

PAGE = ROOT / "CONTRIBUTING.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
house = script("house_map")


def mapped(page):
    """Path and text of every line of the map."""
    return {m["path"]: m["text"] for line in page.splitlines() if (m := house.LINE.match(line))}


def test_the_map_names_every_package_and_module_and_no_other():
    package, scripts = ROOT / "src" / "steer_heal", ROOT / "scripts"
    files = {str(p.relative_to(package)) for p in package.rglob("*.py") if p.name != "__init__.py"}
    folders = {f"{p.parent.relative_to(package)}/" for p in package.rglob("*/__init__.py")}
    there = mapped(PAGE.read_text(encoding="utf-8"))
    helpers = {str(p.relative_to(ROOT)) for p in scripts.rglob("*.py") if p.name != "__init__.py"}
    assert set(there) == files | folders | helpers | {"scripts/pocket_training/"}, "run `just map`"
    assert all(len(text) > 20 for text in there.values())


def test_the_map_says_what_the_modules_say_of_themselves():
    assert house.main(["--check"]) == 0, "run `just map`"
    assert mapped(PAGE.read_text(encoding="utf-8"))["healing/bake/"] in (steer_heal.healing.bake.__doc__ or "")


def test_a_new_module_is_placed_in_its_folder_and_one_that_is_gone_goes():
    page = "# x\n\n- `a.py`: old words\n- `dose/`: Doses\n- `dose/walk.py`: Walks\n- `gone.py`: Gone\n\nEnd.\n"
    wanted = {"a.py": "A", "dose/": "Doses", "dose/walk.py": "Walks", "dose/new.py": "New", "b.py": "B"}
    page = house.refreshed(page, wanted)
    lines = page.splitlines()
    assert mapped(page) == wanted and "gone.py" not in page and lines[-1] == "End."
    assert lines.index("- `dose/new.py`: New") == lines.index("- `dose/walk.py`: Walks") + 1
    assert lines.index(house.UNPLACED) < lines.index("- `b.py`: B")
    assert house.refreshed(page, wanted) == page


def test_an_untrue_map_is_an_exit_code_and_refreshing_mends_it(tmp_path, capsys):
    page = tmp_path / "CONTRIBUTING.md"
    page.write_text(re.sub("^- `healing/bake/`.*\n", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert house.main(["--page", str(page), "--check"]) == 1 and "just map" in capsys.readouterr().err
    assert house.main(["--page", str(page)]) == 0 and house.main(["--page", str(page), "--check"]) == 0


def test_the_citation_has_what_cff_requires_and_is_of_this_version():
    allowed = {
        "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
        "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
        "repository-code", "title", "type", "url", "version",
    }  # fmt: skip
    assert {"authors", "cff-version", "message", "title"} <= set(CITATION) <= allowed
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    for author in CITATION["authors"]:
        assert ("name" in author) != ("family-names" in author) and all(isinstance(v, str) for v in author.values())
    assert CITATION["version"] == PROJECT["version"] and CITATION["license"] == PROJECT["license"]
    assert CITATION["keywords"] == PROJECT["keywords"] and CITATION["abstract"].rstrip(".") == PROJECT["description"]


@pytest.mark.parametrize("author", CITATION["authors"], ids=str)
def test_authors_are_those_of_the_licence(author):
    assert author["name"] in (ROOT / "LICENSE").read_text(encoding="utf-8")
