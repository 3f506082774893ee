"""`report.html`: the whole run in one file that needs nothing else and lets nothing in.

Knows nothing of models. All texts are escaped by the template; the page's own rules forbid every load and every script
but the one that searches.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from steer_heal.evaluation.verdict import VERDICTS
from steer_heal.ledger import Ledger
from steer_heal.ledger.clock import duration
from steer_heal.report.headline import event, headline
from steer_heal.report.pages.facts import cards, environment_rows, gate_stories, options, tables
from steer_heal.report.pages.filtering import filtered_rounds
from steer_heal.report.pages.handover import snippets
from steer_heal.report.pages.replies import diary, side_by_side
from steer_heal.report.plots import DARK, LIGHT, Plot, plots
from steer_heal.report.tables import TONES, in_words

TEMPLATES = Environment(
    loader=PackageLoader("steer_heal.report.pages", "templates"),
    autoescape=select_autoescape(),
    undefined=StrictUndefined,
)
TEMPLATES.filters |= {"in_words": in_words, "duration": duration}


def html(ledger: Ledger, drawn: Sequence[Plot] | None = None) -> str:
    """The page of a finished run.

    Args:
        drawn: its pictures, where they are at hand already.

    Raises ValueError when the run has no `end` event, InputError when a file of the run is missing or damaged.
    """
    start, end = event(ledger, "start"), event(ledger, "end")
    script = TEMPLATES.get_template("report.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    changed, usual = options(ledger)
    of_result = {"headline": headline(ledger), "cards": cards(ledger), "tables": tables(ledger)}
    of_rounds = {"verdicts": ledger.events("verdict"), "gates": gate_stories(ledger)}
    of_texts = {"filtered": filtered_rounds(ledger), "shown": side_by_side(ledger), "diary": diary(ledger)}
    made_with = {"changed": changed, "usual": usual, "environment": environment_rows(ledger)}
    return TEMPLATES.get_template("report.html").render(
        **of_result,
        **of_rounds,
        **of_texts,
        **made_with,
        start=start,
        note=start.get("note"),
        end=end,
        name=ledger.folder.name,
        meaning=VERDICTS.get(end["verdict"], ""),
        tones=TONES,
        tone=TONES.get(end["verdict"], "fair"),
        plots=plots(ledger) if drawn is None else drawn,
        snippets=snippets(ledger),
        light=LIGHT.colours,
        dark=DARK.colours,
        script=script,
        digest=digest,
    )
