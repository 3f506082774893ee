"""The map of the house is the tree, and the citation file is one that its readers take."""

import re
import tomllib

import pytest
import yaml
from doc_pages import ROOT
from script_modules import script
from test_house import ROOMS

import steer_heal

PAGE = ROOT / "CONTRIBUTING.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
house = script("house_map")


LINE = re.compile(r"^- `(?P<path>[^`]+)`: (?P<text>.*)$", re.MULTILINE)


def mapped():
    """By heading of the map, path and text of every line."""
    parts = re.split(r"^## (.*)$", house.house_map(), flags=re.MULTILINE)[1:]
    return {
        room: {m["path"]: m["text"] for m in LINE.finditer(text)}
        for room, text in zip(parts[::2], parts[1::2], strict=True)
    }


def test_the_map_names_every_package_and_module_and_no_other():
    for room, lines in mapped().items():
        folder = {"scripts": ROOT / "scripts"}.get(room, house.PACKAGE / room)
        if not folder.is_dir():
            continue  # the files beside the rooms
        files = {str(p.relative_to(folder)) for p in folder.rglob("*.py") if p.name != "__init__.py"}
        folders = {f"{p.parent.relative_to(folder)}/" for p in folder.rglob("*/__init__.py")} - {"./"}
        assert set(lines) == files | folders, room
        assert all(len(text) > 20 for text in lines.values()), room


def test_the_map_has_the_rooms_in_the_order_of_the_column():
    assert [room for room in mapped() if (house.PACKAGE / room).is_dir()] == [
        room for row in ROOMS for room in row if (house.PACKAGE / room).is_dir()
    ]


def test_the_map_says_what_the_modules_say_of_themselves():
    found = mapped()
    assert found["healing"]["bake/"] in (steer_heal.healing.bake.__doc__ or "")
    (beside,) = [lines for lines in found.values() if "errors.py" in lines]
    assert beside["errors.py"] in " ".join(steer_heal.errors.__doc__.split())


def test_the_page_of_rules_names_the_rooms_in_their_order():
    folders = [room for row in ROOMS for room in row if (house.PACKAGE / room).is_dir()]
    assert "  ".join(folders) in PAGE.read_text(encoding="utf-8")


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
