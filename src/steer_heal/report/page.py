"""`report.html`: the whole run in one file that needs nothing else and lets nothing in.

Knows nothing of models. All texts are escaped by the template; the page's own rules forbid every load and every script
but the one that searches.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from steer_heal.evaluation.verdict import VERDICTS
from steer_heal.ledger import Ledger
from steer_heal.report.facts import cards, environment_rows, options
from steer_heal.report.filtering import filtered_rounds
from steer_heal.report.handover import snippets
from steer_heal.report.headline import event, headline
from steer_heal.report.plots import Plot, plots
from steer_heal.report.plots.theme import DARK, LIGHT
from steer_heal.report.replies import diary, side_by_side
from steer_heal.report.stories import SHIFT_COLUMNS, gate_stories, shift_rows, trajectory
from steer_heal.report.tables import (
    AGAINST_COLUMNS,
    ROUND_LEGEND,
    TONES,
    VIGNETTE_LEGEND,
    against_legend,
    against_rows,
    round_table,
    state_legend,
    state_table,
    vignette_table,
)

TEMPLATES = PackageLoader("steer_heal.report", "templates")


@dataclass(frozen=True)
class Table:
    """Columns, rows and what the columns mean."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: str = ""


def html(ledger: Ledger, drawn: Sequence[Plot] | None = None) -> str:
    """The page of a finished run.

    Args:
        drawn: its pictures, where they are at hand already.

    Raises ValueError when the run has no `end` event, InputError when a file of the run is missing or damaged.
    """
    environment = Environment(loader=TEMPLATES, autoescape=select_autoescape(), undefined=StrictUndefined)
    start, end = event(ledger, "start"), event(ledger, "end")
    script = environment.get_template("report.js").render()
    changed, usual = options(ledger)
    return environment.get_template("report.html").render(
        start=start, note=start.get("note"), end=end, tone=TONES.get(end["verdict"], "fair"), tones=TONES,
        meaning=VERDICTS.get(end["verdict"], ""), headline=headline(ledger), cards=cards(ledger),
        plots=plots(ledger) if drawn is None else drawn, tables=tables(ledger), verdicts=ledger.events("verdict"),
        gates=gate_stories(ledger), filtered=filtered_rounds(ledger), shown=side_by_side(ledger),
        diary=diary(ledger), changed=changed, usual=usual, environment=environment_rows(ledger),
        snippets=snippets(ledger), name=ledger.folder.name, light=LIGHT.colours, dark=DARK.colours, script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def tables(ledger: Ledger) -> dict[str, Table]:
    """By name; `vignettes` only for a run that asked them."""
    end = event(ledger, "end")
    found = {
        "state": Table(*state_table(trajectory(ledger)), state_legend(trajectory(ledger))),
        "shift": Table(SHIFT_COLUMNS, shift_rows(ledger)),
        "rounds": Table(*round_table(ledger.events()), ROUND_LEGEND),
        "against": Table(AGAINST_COLUMNS, against_rows(end["against"]),
                         against_legend(end)),
    }  # fmt: skip
    if shifts := vignette_table(ledger.events("evaluate")):
        found["vignettes"] = Table(*shifts, VIGNETTE_LEGEND)
    return found
