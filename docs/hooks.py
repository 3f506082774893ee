"""Pages of the site that are made when it is built: README and others from the root, notebook, map, reference.

Links of the pages stay those of the repository, so that every page can be read there too; here they are turned into
the site's. Knows nothing of what the pages say.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

import griffe
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import house_map  # noqa: E402

FROM_THE_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "spec.md": "spec.md",
    "examples/stories/README.md": "how-to/stories.md",
}
"""Pages outside docs/ and their place in the site."""
NOTEBOOKS = tuple(path.stem for path in (ROOT / "docs").glob("*.ipynb"))
LINK = re.compile(r"(\]\()([^)\s:#]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config) -> Files:
    """Add what is made from the repository."""

    def page(place: str, text: str | bytes) -> None:
        files.append(File.generated(config, place, content=text))

    for path, place in FROM_THE_ROOT.items():
        page(place, (ROOT / path).read_text(encoding="utf-8"))
    for notebook in NOTEBOOKS:
        resources = {"unique_key": notebook}  # names of pictures
        text, made = MarkdownExporter().from_filename(str(ROOT / "docs" / f"{notebook}.ipynb"), resources)
        page(f"{notebook}.md", text)
        for name, content in made["outputs"].items():
            page(name, content)
    page("reference/map.md", house_map.house_map())
    page("reference/index.md", public_names())
    folders = [room for room in house_map.rooms() if (house_map.PACKAGE / room).is_dir()]
    for room in folders:
        page(f"reference/{room}.md", room_page(room))
    files_of_their_own = [room for room in house_map.rooms() if room not in folders and not room.startswith("_")]
    page("reference/shared.md", "\n".join(["# Files beside the rooms", "", *map(directive, files_of_their_own)]))
    return files


def on_page_markdown(markdown: str, *, page, config, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = {place: path for path, place in FROM_THE_ROOT.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def turned(match: re.Match) -> str:
        before, target, anchor, after = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        place = FROM_THE_ROOT.get(path, path.removeprefix("docs/").replace(".ipynb", ".md"))
        if files.get_file_from_path(place) is None:
            return match[0]
        return before + posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".") + (anchor or "") + after

    return LINK.sub(turned, markdown)


def public_names() -> str:
    """The page of `steer_heal.__all__`: each name with its first sentence, leading to its room."""
    package = griffe.load("steer_heal", search_paths=[str(house_map.PACKAGE.parent)], try_relative_path=False)
    rows = []
    for name in package.exports:
        found = package[name].final_target if package[name].is_alias else package[name]
        said = " ".join(found.docstring.value.partition("\n\n")[0].split()) if found.docstring else ""
        rows.append(f"| [`{name}`][{found.path}] | {said.replace('|', '&#124;')} |")
    about = "What `import steer_heal as sh` offers; these names stay. Each is described in the room of its stage."
    table = "\n".join(["| name | what it is |", "| --- | --- |", *rows])
    return f"# The public names\n\n{about}\n\n{table}\n"


def room_page(room: str) -> str:
    """One room: what it hands on, then its modules."""
    return f"# {room}\n\n{directive(room)}    options:\n      show_submodules: true\n"


def directive(module: str) -> str:
    """What mkdocstrings turns into a module's reference."""
    return f"::: steer_heal.{module}\n"
