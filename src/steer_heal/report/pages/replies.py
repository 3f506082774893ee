"""Replies to the same held-out prompts: base, steered and healed side by side, and the diary of one question.

Knows nothing of pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from steer_heal.evaluation import Metrics, ReplyRow
from steer_heal.ledger import Ledger
from steer_heal.model.chat import fill_persona
from steer_heal.report.headline import event
from steer_heal.report.pages.folder import Measured, base_of, measured, shown_round


@dataclass(frozen=True)
class Reply:
    """What one model said, with its figures. `kind`: base, steered or healed."""

    kind: str
    name: str
    row: ReplyRow


@dataclass(frozen=True)
class SideBySide:
    """One held-out prompt and a reply per model."""

    prompt: str
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Shown:
    """All held-out prompts. `told` says whose replies these are."""

    told: str
    prompts: tuple[SideBySide, ...]


@dataclass(frozen=True)
class Entry:
    """A round in the diary; `fate` is its verdict and what the gate did."""

    number: int
    fate: str
    best: bool
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Diary:
    """One question, base's reply, and a steered and a healed reply per round."""

    prompt: str
    base: Reply
    entries: tuple[Entry, ...]


def side_by_side(ledger: Ledger) -> Shown:
    """Every held-out prompt with the replies of base, and of the result's round, or else of the last measured one."""
    base, shown = base_of(ledger), shown_round(ledger)
    if shown is None:
        told = "No round came to a measurement: these are the original model's replies alone."
        return Shown(told, tuple(SideBySide(asked(base, b), (of_base(b),)) for b in base.replies))
    told = f"Steered and healed of round {shown.number}, the run's result."
    if event(ledger, "end")["best_round"] is None:
        told = f"No round stands; steered and healed are those of the last measured round, {shown.number}."
    rows = zip(base.replies, shown.steered.replies, shown.healed.replies, strict=True)
    return Shown(told, tuple(SideBySide(asked(base, b), (of_base(b), *pair(shown, s, h))) for b, s, h in rows))


def asked(base: Metrics, row: ReplyRow) -> str:
    """The prompt as the model read it, with the neutral persona in its slot."""
    return fill_persona(row.prompt, base.system)[0]


def of_base(row: ReplyRow) -> Reply:
    """The original model's reply."""
    return Reply("base", "base", row)


def pair(shown: Measured, steered: ReplyRow, healed: ReplyRow) -> tuple[Reply, Reply]:
    """A round's steered and healed reply."""
    name = f"steered, dose {shown.steered.dose:.2f}"
    return Reply("steered", name, steered), Reply("healed", f"healed, round {shown.number}", healed)


def diary(ledger: Ledger) -> Diary | None:
    """One steered and one healed reply per round to the first of the held-out prompts, which nobody chose."""
    base = base_of(ledger)
    if not base.replies:
        return None
    best, entries = event(ledger, "end")["best_round"], []
    verdicts = {e["round"]: e["verdict"] for e in ledger.events("verdict")}
    stands = {e["round"]: e["stands"] for e in ledger.events("gate")}
    for number in (e["round"] for e in ledger.events("evaluate")):
        shown = measured(ledger, number)
        fate = verdicts[number] if stands.get(number, True) else f"{verdicts[number]}, reverted"
        replies = pair(shown, shown.steered.replies[0], shown.healed.replies[0])
        entries.append(Entry(number, fate, number == best, replies))
    return Diary(asked(base, base.replies[0]), of_base(base.replies[0]), tuple(entries))
