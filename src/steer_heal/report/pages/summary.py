"""`summary.md`: a run for pasting, verdict first.

Knows nothing of models. What they said is quoted so that no sign of it is read as Markdown or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from steer_heal.errors import printable
from steer_heal.ledger import Ledger
from steer_heal.ledger.clock import duration
from steer_heal.report.headline import event, headline
from steer_heal.report.pages.facts import Table, gate_stories, tables
from steer_heal.report.pages.filtering import borderline
from steer_heal.report.plots import Plot
from steer_heal.report.tables import in_words

SIGNS = re.compile(r"([\\`*_\[\]<>#|~])")
"""What Markdown would read as more than text."""


def one_line(text: object) -> str:
    """A text of one line, in which nothing is HTML, and nothing a link or a picture."""
    plain = printable(" ".join(str(text).split()))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    cells = [[one_line(cell).replace("|", "\\|") for cell in row] for row in (columns, ["---"] * len(columns), *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join(lines)


def with_legend(table: Table) -> Markup:
    """A Markdown table with what its columns mean."""
    parts = (markdown_table(table.columns, table.rows), table.legend and one_line(table.legend))
    return Markup("\n\n".join(part for part in parts if part))


def quoted(text: str) -> Markup:
    """A text as a quote, its signs as they are."""
    return Markup("\n".join("> " + SIGNS.sub(r"\\\1", printable(line)) for line in text.splitlines()))


TEMPLATES = Environment(
    loader=PackageLoader("steer_heal.report.pages", "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
    finalize=lambda value: value if isinstance(value, Markup) else one_line(value),
)
"""Of pages in Markdown: whatever is put into one is of one line."""
TEMPLATES.filters |= {"in_words": in_words, "duration": duration, "quoted": quoted, "markdown": with_legend}


def summary(ledger: Ledger, plots: Sequence[Plot] = ()) -> str:
    """Verdict, what a reader asks first, the tables, the plots and a few full completions.

    Args:
        plots: pictures that lie beside it.
    """
    return TEMPLATES.get_template("summary.md").render(
        start=event(ledger, "start"),
        end=event(ledger, "end"),
        headline=headline(ledger),
        tables=tables(ledger),
        verdicts=ledger.events("verdict"),
        gates=gate_stories(ledger),
        plots=plots,
        texts=borderline(ledger),
    )
