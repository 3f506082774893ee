"""The documentation as the tests see it: pages, their code blocks by kind, inline code, links and headings."""

import ast
import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "spec.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
)
KINDS = ("python", "bash", "toml", "json", "text")
PROGRAMS = ("uv", "pip", "python", "steer-heal", "just", "git")


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        kind: one of `KINDS` or `unknown`; a block without a language that begins with a program's name is `bash`.
        line: of its first line of code in the page, counted from 1.
    """

    page: Path
    line: int
    kind: str
    language: str
    text: str

    @property
    def place(self):
        return f"{name(self.page)}:{self.line}"


def name(page):
    """A page's path in the repository."""
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


@cache
def tokens(page):
    """The page's Markdown tokens, tables included."""
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page):
    """Every code block of a page, fenced or indented; one that is of no kind has the kind `unknown`."""
    found = []
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            line = token.map[0] + (2 if token.type == "fence" else 1)
            kind, _ = kind_of(token.info.strip(), token.content)
            found.append(Block(page, line, kind, token.info.strip(), token.content))
    return found


def kind_of(language, text):
    """What a block is, and where no test would run or load it `unknown` and what to do."""
    if not language and text.split()[:1] and text.split()[0] in PROGRAMS:
        return "bash", ""
    if language not in KINDS:
        return "unknown", f"fence it as one of {', '.join(KINDS)} (text: a formula)"
    if language == "text" and (what := runnable(text)):
        return "unknown", f"{what} in a text block would never be run: fence it as what it is"
    return language, ""


def runnable(text):
    """What in a text could be run; None for a formula or a drawing."""
    for line in text.splitlines():
        if line.split()[:1] and line.split()[0] in PROGRAMS and len(line.split()) > 1:
            return f"the command {line.strip()!r}"
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except SyntaxError:
        return None
    told = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.With)
    return "Python" if any(isinstance(node, told) for node in nodes) else None


def inline_code(page):
    """Every `code span` of a page with its line."""
    return [
        (token.map[0] + 1, child.content)
        for token in tokens(page)
        if token.type == "inline"
        for child in token.children
        if child.type == "code_inline"
    ]


def links(page):
    """Targets of the page's links and pictures that do not lead out of the repository."""
    found = set()
    for token in tokens(page):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target and not re.match(r"[a-z]+:", target):
                found.add(target)
    return sorted(found)


def anchors(page):
    """Anchors of the page's headings, as GitHub makes them."""
    found = []
    for opening, content in pairwise(tokens(page)):
        if opening.type == "heading_open":
            plain = "".join(child.content for child in content.children)
            found.append(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
    return found
