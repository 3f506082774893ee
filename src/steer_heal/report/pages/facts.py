"""A run as pages hold it: its tables with legends, its result in a few cards, its gate, its options and environment.

Knows nothing of pages.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest

from steer_heal.config import RunConfig
from steer_heal.config.follows_model import mixed_in
from steer_heal.evaluation.verdict import OF_BASE
from steer_heal.evaluation.wording import Term, most, wording
from steer_heal.ledger import Ledger, plain
from steer_heal.report import expectations
from steer_heal.report.headline import event
from steer_heal.report.pages.folder import base_of, environment_of, shown_round
from steer_heal.report.tables import (
    ROUND_LEGEND,
    VIGNETTE_LEGEND,
    against_legend,
    against_table,
    anchors_lost,
    decided,
    gate_reasons,
    interval,
    number,
    round_table,
    state_legend,
    state_table,
    sure,
    vignette_table,
)

NOT_OPTIONS = ("schema_version", "out", "quiet", "track")
SHIFT_COLUMNS = ["round", "verdict", "free-text trait", "log-odds (nats)", "coherence", "off-target (nats)"]
SHIFT_COLUMNS += ["words, 4-grams, entropy, fit / base", "anchors lost"]


@dataclass(frozen=True)
class Table:
    """Columns, rows and what the columns mean."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: str = ""


def tables(ledger: Ledger) -> dict[str, Table]:
    """By name; `vignettes` only for a run that asked them, `manner` and `words` only where a round was measured."""
    events, end = ledger.events(), event(ledger, "end")
    states = [(t["name"], t["state"]) for t in end["trajectory"]]
    of_controls = expectations.legend(events, "content", "above_controls", "pairs")
    found = {
        "should": Table(expectations.COLUMNS, expectations.table(events)),
        "state": Table(*state_table(states), state_legend(states)),
        "shift": Table(SHIFT_COLUMNS, shift_rows(ledger)),
        "rounds": Table(*round_table(events), ROUND_LEGEND),
        "against": Table(*against_table(end["against"]), f"{against_legend(end)} {of_controls}".strip()),
    }
    found |= changed_words(ledger)
    if shifts := vignette_table(ledger.events("evaluate")):
        found["vignettes"] = Table(*shifts, VIGNETTE_LEGEND)
    return found


LISTED = {"words": 6, "pairs": 4}
"""Most increased and most decreased ones that a table lists."""
WORDS_LEGEND = (
    "Words and pairs of neighbouring words in the replies to the held-out prompts, with how often they were said. z: "
    "log-odds ratio with an informative Dirichlet prior over its standard error (Monroe et al. 2008); many are "
    "compared and words come in replies, so a z near 2 is a hint and no test."
)


def changed_words(ledger: Ledger) -> dict[str, Table]:
    """What changed in the words between base and the replies that the page shows: `manner` and `words`."""
    if (shown := shown_round(ledger)) is None:
        return {}
    found, healed = wording(base_of(ledger), shown.healed), f"healed, round {shown.number}"
    figures = {
        "words in quotation marks (dialogue), share": found.dialogue,
        'sentences with a "!", share': found.exclaimed,
        "words per sentence": found.sentence,
    }
    manner = [
        [name, number(one.before, 2), number(one.after, 2), interval(asdict(one.shift))]
        for name, one in figures.items()
        if one
    ]
    sides = [most(getattr(found, kind), n) for kind, n in LISTED.items()]
    rows = [(*_said(a), *_said(b)) for up, down in sides for a, b in zip_longest(up, down)]
    heads = [head for way in ("more", "less") for head in (f"said {way} often", "base -> healed", "z")]
    return {
        "manner": Table(["in the replies", "base", healed, "healed - base [95 %]"], manner),
        "words": Table(heads, rows, WORDS_LEGEND if rows else "No word is surely said more or less often."),
    }


def _said(term: Term | None) -> tuple[str, str, str]:
    return ("", "", "") if term is None else (term.text, f"{term.before} -> {term.after}", f"{term.z:+.1f}")


def shift_rows(ledger: Ledger) -> list[list[str]]:
    """Per round: paired shifts of the healed student against base, its diversity, its anchors and its verdict."""
    verdicts = {e["round"]: e["verdict"] for e in ledger.events("verdict")}
    gates = {e["round"]: e for e in ledger.events("gate")}
    rows = []
    for e in ledger.events("evaluate"):
        shift, healed, base = e["shift"], e["healed"], e["base"]
        ratios = [f"{healed[name] / base[name]:.2f}" for name in OF_BASE if healed.get(name) and base.get(name)]
        off = "; ".join(f"{name} {interval(found)}" for name, found in shift["off_target"].items())
        shown = [interval(shift["free_trait"]), interval(shift["log_odds"]), interval(shift["coherence"], 3)]
        ends = [off or "-", " ".join(ratios) or "-", anchors_lost(gates[e["round"]])]
        rows.append([str(e["round"]), verdicts[e["round"]], *shown, *ends])
    return rows


@dataclass(frozen=True)
class GateStory:
    """What the gate decided on a round, and the reasons that decided."""

    outcome: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.outcome}: {'; '.join(self.reasons)}"


def gate_stories(ledger: Ledger) -> dict[int, GateStory]:
    """By round: what the gate decided, and why."""
    return {e["round"]: GateStory(decided(e), tuple(gate_reasons(e))) for e in ledger.events("gate")}


@dataclass(frozen=True)
class Card:
    """One figure of the result: from base to healed, its shift with the interval, and how sure it is in words.

    `unwanted`: it surely moved, and should not have: coherence down, or anything off the target.
    """

    label: str
    before: str
    after: str
    shift: str
    word: str
    unwanted: bool = False


def cards(ledger: Ledger) -> list[Card]:
    """Trait, coherence and the largest movement off the target of the result's round; empty without a result."""
    best = next((e for e in ledger.events("evaluate") if e["round"] == event(ledger, "end")["best_round"]), None)
    if best is None:
        return []
    shift, base, healed = best["shift"], best["base"], best["healed"]
    worse = ("surely down", "surely worse")

    def card(label: str, moved: Mapping, before: str, after: str, up: str = "up", down: str = "down") -> Card:
        word = sure(moved, up, down)
        return Card(label, before, after, interval(moved), word, word in worse)

    found = []
    if shift["free_trait"]:
        levels = (number(state["free_trait"], 2) for state in (base, healed))
        found.append(card("Trait, free text", shift["free_trait"], *levels))
    levels = (number(state["log_odds"], 2, signed=True) for state in (base, healed))
    found.append(card("Trait, log-odds (nats)", shift["log_odds"], *levels))
    if shift["coherence"]:
        known = base.get("coherence") is not None  # older runs have the shift alone
        levels = (number(state["coherence"], 2) if known else "" for state in (base, healed))
        found.append(card("Coherence", shift["coherence"], *levels, "better", "worse"))
    off = {name: moved for name, moved in shift["off_target"].items() if moved["value"] is not None}
    if off:
        name = max(off, key=lambda name: abs(off[name]["value"]))
        levels = (number(state["off_target"][name]["log_odds"], 2, signed=True) for state in (base, healed))
        word = sure(off[name], "up", "down")
        label = f"Off target: {name} (nats)"
        found.append(Card(label, *levels, interval(off[name]), word, word.startswith("surely")))
    return found


def options(ledger: Ledger) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """(name, value, default) of options that differ from the defaults, and (name, value) of all others."""
    usual = plain(RunConfig().to_dict())
    named = {name: ledger.config[name] for name in ("model", "fast_dev_run")}
    of_model = plain(RunConfig(**named).to_dict())  # defaults that follow the model are its own, not pocket's
    usual |= {name: value for name, value in of_model.items() if name not in named}
    usual |= mixed_in(RunConfig(**named).model_name, usual["targets"])  # settled with the trait
    ours = {name: value for name, value in ledger.config.items() if name not in NOT_OPTIONS}
    other = [(name, _told(value), _told(usual.get(name))) for name, value in ours.items() if value != usual.get(name)]
    return other, [(name, _told(value)) for name, value in ours.items() if value == usual.get(name)]


def environment_rows(ledger: Ledger) -> list[tuple[str, str]]:
    """What the run was made with, name and value."""
    found = environment_of(ledger)
    rows = [("command", shlex.join(map(str, found.get("argv", ())))), ("device", event(ledger, "start")["device"])]
    for name, value in found.items():
        if name == "versions":
            rows += [(library, _told(version)) for library, version in value.items()]
        elif name != "argv":
            rows.append((name.replace("_", " "), _told(value)))
    return rows


def _told(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
