"""A run in a few figures, and what it was made with: cards, options that differ from the defaults, environment.

Knows nothing of pages.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steer_heal.config import RunConfig
from steer_heal.ledger import Ledger, plain
from steer_heal.report.folder import environment_of
from steer_heal.report.headline import event
from steer_heal.report.tables import interval, number, sure

MOVED = ("surely up", "surely down")
NOT_OPTIONS = ("schema_version", "out", "quiet")


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
    found = []
    if shift["free_trait"]:
        found.append(_card("Trait, free text", base, healed, "free_trait", shift["free_trait"], ("up", "down")))
    found.append(_card("Trait, log-odds (nats)", base, healed, "log_odds", shift["log_odds"], ("up", "down"), True))
    if base["sentence_ok"] is not None:
        found.append(_card("Coherence", base, healed, "sentence_ok", shift["sentence_ok"], ("better", "worse")))
    elif shift["coherence"]:
        word = sure(shift["coherence"], "better", "worse")
        found.append(Card("Coherence", "", "", interval(shift["coherence"]), word, word == "surely worse"))
    off = {name: s for name, s in shift["off_target"].items() if s["value"] is not None}
    if off:
        name = max(off, key=lambda name: abs(off[name]["value"]))
        states = ({"v": state["off_target"][name]["log_odds"]} for state in (base, healed))
        found.append(_card(f"Off target: {name} (nats)", *states, "v", off[name], ("up", "down"), True, MOVED))
    return found


def _card(
    label: str, base: Mapping, healed: Mapping, key: str, shift: Mapping, words: tuple[str, str], signed: bool = False,
    unwanted: Sequence[str] = ("surely down", "surely worse"),
) -> Card:  # fmt: skip
    before, after = (number(state[key], 2, signed) for state in (base, healed))
    word = sure(shift, *words)
    return Card(label, before, after, interval(shift), word, word in unwanted)


def options(ledger: Ledger) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """(name, value, default) of options that differ from the defaults, and (name, value) of all others."""
    usual = plain(RunConfig().to_dict())
    named = {name: ledger.config[name] for name in ("model", "fast_dev_run")}
    of_model = plain(RunConfig(**named).to_dict())  # defaults that follow the model are its own, not pocket's
    usual |= {name: value for name, value in of_model.items() if name not in named}
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
