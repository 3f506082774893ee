"""`summary.md`: a run for pasting, verdict first.

Knows nothing of models. What they said is quoted so that no sign of it is read as Markdown or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from steer_heal.ledger import Ledger
from steer_heal.report.filtering import borderline
from steer_heal.report.headline import event, headline
from steer_heal.report.plots import Plot
from steer_heal.report.stories import SHIFT_COLUMNS, gate_stories, shift_rows, trajectory
from steer_heal.report.tables import (
    AGAINST_COLUMNS,
    ROUND_LEGEND,
    VIGNETTE_LEGEND,
    against_legend,
    against_rows,
    round_table,
    state_legend,
    state_table,
    vignette_table,
)

SIGNS = re.compile(r"([\\`*_\[\]<>#|~])")
"""What Markdown would read as more than text."""


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(lines)


def quoted(text: str) -> str:
    """A text as a quote, its signs as they are."""
    return "\n".join("> " + SIGNS.sub(r"\\\1", line) for line in text.splitlines())


def summary(ledger: Ledger, plots: Sequence[Plot] = ()) -> str:
    """Verdict, what a reader asks first, the tables, the plots and a few full completions.

    Args:
        plots: pictures that lie beside it.
    """
    start, end = event(ledger, "start"), event(ledger, "end")
    texts = [
        f"**{name}**, dose {c.dose:.2f}\n\n{quoted(c.prompt)}\n>\n{quoted(c.text or '(empty)')}\n"
        for name, c in borderline(ledger)
    ]
    shifts = vignette_table(ledger.events("evaluate"))
    vignettes = ["## Vignettes, healed against base", markdown_table(*shifts), VIGNETTE_LEGEND] if shifts else []
    each = shift_rows(ledger)
    measured = ["## Healed against base, paired, 95 % intervals", markdown_table(SHIFT_COLUMNS, each)] if each else []
    columns, rows = round_table(ledger.events())
    trained = ["## What each round did", markdown_table(columns, rows), ROUND_LEGEND] if rows else []
    parts = [
        f"# {end['verdict']}",
        end["text"],
        f"Model {start['model']}, trait {start['trait']}, reg {start['reg']}, seed {start['seed']}, "
        f"{end['seconds']:.0f} s.{f' Ended early: {ended}' if (ended := end['ended_by']) else ''}",
        start.get("note") or "",
        "## In short",
        "\n".join(f"- **{question}** {answer}" for question, answer in headline(ledger)),
        "## Base -> steered -> healed",
        markdown_table(*state_table(trajectory(ledger))),
        state_legend(trajectory(ledger)),
        *measured,
        *vignettes,
        *trained,
        "## Against the prompted model and controls",
        markdown_table(AGAINST_COLUMNS, against_rows(end["against"])),
        against_legend(end),
        "## Verdict and gate, round by round",
        "\n".join(round_stories(ledger)),
        *(f"## {plot.heading}\n\n![{plot.heading}]({plot.name}.png)\n\n{plot.reading}" for plot in plots),
        *(["## Completions of the last round, in full", *texts] if texts else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def round_stories(ledger: Ledger) -> list[str]:
    """Per round one line: the verdict in words, and what the gate decided and why."""
    gates = gate_stories(ledger)
    return [
        f"- round {e['round']}: **{e['verdict']}**. {e['text']}"
        + (f" Gate: {gates[e['round']]}." if e["round"] in gates else "")
        for e in ledger.events("verdict")
    ]
