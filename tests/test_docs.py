"""What the documentation tells a reader to type works as printed: every code block, command, option and link."""

import ast
import json
import re
import tomllib
from pathlib import Path

import doc_commands
import doc_pages
import pytest
import yaml
from doc_pages import PAGES, ROOT, anchors, blocks, inline_code, kind_of, links, name
from script_modules import script

from steer_heal.errors import InputError
from steer_heal.trait import Anchor, Item, Trait, Vignette
from steer_heal.trait.file import OPTIONAL, REQUIRED
from steer_heal.trait.rows import make_rows, read_rows

README, CI = ROOT / "README.md", ROOT / ".ci" / "run"
COMMANDS = ("uv run ", "python -m steer_heal", "python scripts/", "steer-heal ", "scripts/")
PLACEHOLDERS = re.compile(r"\.\.\.$|^COMMAND$|^RUN$")


def of_kind(kind):
    """All blocks of one kind, as parameters that name page and line."""
    found = [block for page in PAGES for block in blocks(page) if block.kind == kind]
    return [pytest.param(block, id=block.place) for block in found]


def pages(*kinds):
    """Pages that have a block of one of these kinds."""
    return [pytest.param(page, id=name(page)) for page in PAGES if any(b.kind in kinds for b in blocks(page))]


house = script("house_map")
every_page = pytest.mark.parametrize("page", PAGES, ids=name)


@every_page
def test_every_block_is_of_a_kind_that_is_run_loaded_or_a_formula(page):
    for block in blocks(page):
        kind, why = kind_of(block.language, block.text)
        assert kind != "unknown", f"{block.place}: {why}"


@pytest.mark.parametrize("page", pages("python"))
def test_python_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {"__name__": "page"}
    for block in blocks(page):
        if block.kind == "python":
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), names)


@pytest.mark.parametrize("block", of_kind("bash"))
def test_commands_are_ones_that_their_programs_take(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    lines = list(doc_commands.command_lines(block.text))
    assert lines
    for words in lines:
        doc_commands.check(words)
    assert not [path for path in tmp_path.iterdir() if path.name != "examples"], "reading a command wrote something"


@pytest.mark.parametrize("block", of_kind("toml"))
def test_toml_loads_and_traits_are_what_the_reader_takes(block, tmp_path):
    if "commands" in tomllib.loads(block.text):
        return  # a control row: tests/test_control_rows.py runs it
    every_key = re.sub(r"^# (?:optional: )?(\w+ = )", r"\1", block.text, flags=re.MULTILINE)
    for number, text in enumerate((block.text, every_key)):
        data = tomllib.loads(text)
        if "pos" in data or "neg" in data:
            folder = tmp_path / str(number)
            folder.mkdir()
            trait = trait_from(text, data, folder)
            assert trait.items and (trait.check is not None) == ("checker" in data)
    assert set(tomllib.loads(every_key)) <= {*REQUIRED, *OPTIONAL}


def trait_from(text, data, folder):
    """The trait of a page's TOML; data files that it names get the rows of its comments, or such as fit."""
    rows = {
        "items": {"id": "a", "prompt": "Which?", "choices": ["jump", "wait"], "trait": "jump", "category": "walls"},
        "anchors": {"id": "a", "prompt": "2 + 2?", "answer": "4", "check": "exact"},
        "vignettes": {"id": "a", "foundation_coarse": "Care", "text": "You see a dog being kicked."},
    }
    rows["off_target"] = rows["items"]
    for key, value in data.items():
        if not isinstance(value, str):
            continue
        if value.endswith(".jsonl"):
            shown = re.search(rf"^{key} = .*?# (\{{.*\}})$", text, flags=re.MULTILINE)
            (folder / value).write_text(shown[1] if shown and is_json(shown[1]) else json.dumps(rows[key]))
        elif value.endswith(".txt"):
            (folder / value).write_text("".join(f"{key} number {i}\n" for i in range(8)))
        elif key == "checker":
            module, _, function = value.partition(":")
            (folder / f"{module}.py").write_text(f"def {function}(prompt, reply, finished):\n    return None\n")
    (folder / "trait.toml").write_text(text, encoding="utf-8")
    return Trait.load(folder / "trait.toml")


def is_json(text):
    """Whether a text is JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("block", of_kind("json"))
def test_json_loads_and_rows_are_what_their_reader_takes(block, tmp_path):
    rows = [json.loads(line) for line in block.text.splitlines() if line.strip()]
    for place, row in enumerate(rows):
        if "foundation_coarse" in row:
            path = tmp_path / f"{place}.jsonl"
            path.write_text(json.dumps(row))
            assert len(read_rows(path, Vignette)) == 1
        elif "choices" in row or "answer" in row:
            make_rows(Item if "choices" in row else Anchor, [(row, block.place)], tmp_path, builtin=False)
        else:
            raise AssertionError(f"{block.place}: rows of which file? Say so by its columns, or teach this test")


@every_page
def test_commands_within_the_text_are_ones_that_their_programs_take(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line, code in inline_code(page):
        if code.startswith(COMMANDS) and " " in code and not PLACEHOLDERS.search(code.split()[1]):
            for words in doc_commands.command_lines(code):
                words = ["python", *words] if words[0].startswith("scripts/") else words
                try:
                    doc_commands.check(words)
                except (InputError, SystemExit, doc_commands.UnknownCommand) as problem:
                    raise AssertionError(f"{name(page)}:{line}: {code}: {problem}") from problem


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_commands_in_the_docstring_of_a_script_are_ones_that_it_takes(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    typed = re.findall(r"(?:^ *|`)((?:uv run )?python scripts/[^`\n]*)", text, flags=re.MULTILINE)
    assert typed
    for words in doc_commands.command_lines("\n".join(typed)):
        doc_commands.check(words)


@every_page
def test_options_within_the_text_exist(page):
    for line, code in inline_code(page):
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code):
            assert flag in doc_commands.known_flags(), f"{name(page)}:{line}: no command has {flag}"


@every_page
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists() and other.is_relative_to(ROOT), f"{name(page)}: {target}"
        assert not anchor or anchor in anchors(other), f"{name(page)}: {other.name} has no heading #{anchor}"


def test_the_site_has_every_page_the_notebook_and_a_reference_of_every_room():
    def leaves(entry):
        return (
            [entry]
            if isinstance(entry, str)
            else [x for one in entry for x in leaves(one)]
            if isinstance(entry, list)
            else [x for one in entry.values() for x in leaves(one)]
        )

    places = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    rooms = [room for room in house.rooms() if (house.PACKAGE / room).is_dir()]
    wanted = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    wanted |= {f"reference/{one}.md" for one in ("index", "map", "shared", *rooms)}
    wanted |= {"index.md", "quickstart.md", "own-model.md", "contributing.md", "spec.md", "how-to/stories.md"}
    assert set(places) == wanted and len(places) == len(wanted)


def test_the_readme_leads_to_the_how_to_pages_the_stages_and_the_results():
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in links(README)}
    stages = [ROOT / "docs" / f"{stage}.md" for stage in ("steering", "heal", "bake", "evaluation", "loop")]
    others = [ROOT / name for name in ("CONTRIBUTING.md", "spec.md", "docs/results.md", "docs/quickstart.ipynb")]
    wanted = {*(ROOT / "docs" / "how-to").glob("*.md"), *stages, *others}
    assert wanted <= linked, wanted - linked


def test_figures_of_the_readme_and_of_the_results_are_those_of_the_runs(capsys):
    assert script("readme").main(["--check"]) == 0, capsys.readouterr().err


def test_a_figure_that_was_typed_is_seen(tmp_path, capsys, monkeypatch):
    readme, page = script("readme"), tmp_path / "README.md"
    page.write_text(README.read_text(encoding="utf-8").replace("| base |", "| base | 9.99", 1), encoding="utf-8")
    monkeypatch.setattr(readme, "PAGES", (page,))
    assert readme.main(["--check"]) == 1 and "just readme" in capsys.readouterr().err
    assert readme.main([]) == 0 and page.read_text(encoding="utf-8") == README.read_text(encoding="utf-8")


def test_a_block_that_nothing_fills_is_refused():
    with pytest.raises(InputError, match="nothing-of-this"):
        script("readme").filled("<!-- figures: nothing-of-this -->\n<!-- end -->", {})


@pytest.mark.parametrize(("path", "most"), [("README.md", 120), ("CONTRIBUTING.md", 150), ("docs/results.md", 150)])
def test_a_page_for_newcomers_is_no_longer_than_it_may_be(path, most):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= most


@every_page
def test_lines_are_of_readable_length(page):
    """Rows of tables, rows of JSON and options of one case cannot be broken."""
    widest, fixed = (100, ()) if page == README else (120, ("|", '{"', "        STORIES260K,"))
    lines = page.read_text(encoding="utf-8").splitlines()
    long = [number for number, line in enumerate(lines, 1) if len(line) > widest and not line.startswith(fixed)]
    assert not long, f"{name(page)}: lines {long} have over {widest} characters"


def test_ci_types_the_commands_of_the_readme():
    typed = [line for block in blocks(README) if block.kind == "bash" for line in block.text.splitlines()]
    main, tests = "pip install uv && uv run python -m steer_heal.run --reg kl_rev", "uv run pytest"
    assert main in typed and tests in typed
    script = CI.read_text(encoding="utf-8")
    assert tests in script and main.split(" && ")[1] in script


@pytest.mark.parametrize(
    "text",
    [
        "```\nx = 1\n```",
        "```rust\nfn main() {}\n```",
        "    x = whatever(this, is)",
        "```text\nuv run pytest\n```",
        "```text\nimport steer_heal\n```",
    ],
)
def test_a_block_that_nothing_would_run_is_refused(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"Words.\n\n{text}\n")
    (block,) = blocks(page)
    assert block.kind == "unknown" and kind_of(block.language, block.text)[1]


@pytest.mark.parametrize(
    "line",
    [
        "rm -rf out",
        "uv run python -m steer_heal.run --reg kl_rev --n-ronds 3",
        "uv run python -m steer_heal.run --lr fast",
        "uv run python -m steer_heal.run --n-rounds 0",
        "steer-heal exprot RUN --to x",
        "steer-heal export RUN",
        "uv run python scripts/arms.py --sedes 0",
        "uv run python scripts/nothing.py",
        "uv run python scripts/build_word_pairs.py --quick",
        "uv run just nothing",
        "uv run pytest tests/test_nothing.py",
        "uv run python scripts/carry_over.py pocket,nothing=1",
    ],
)
def test_a_wrong_command_is_refused(line):
    with pytest.raises((InputError, SystemExit, AssertionError)):
        for words in doc_commands.command_lines(line):
            doc_commands.check(words)


def test_commands_of_a_block_are_told_apart():
    text = "# words\npip install uv && uv run pytest  # more words\npython x.py --a 1 \\\n    --b 'two words'\n\n"
    assert list(doc_commands.command_lines(text)) == [
        ["pip", "install", "uv"],
        ["uv", "run", "pytest"],
        ["python", "x.py", "--a", "1", "--b", "two words"],
    ]


def test_blocks_and_links_of_a_page_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n[x](y.md#z)\n\n- item\n  ```python\n  a = 1\n  ```\n\n      uv run pytest\n\nEnd `--x`\n"
    )
    assert [(b.kind, b.line, b.text) for b in blocks(page)] == [
        ("python", 6, "a = 1\n"),
        ("bash", 9, "uv run pytest\n"),
    ]
    assert links(page) == ["y.md#z"] and anchors(page) == ["a-b-c"] and inline_code(page)[1] == (11, "--x")
    assert kind_of("text", "y = a + b") == ("text", "") and Path(doc_pages.__file__).parent == ROOT / "tests"
