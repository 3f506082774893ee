"""`steer-heal compare RUN RUN ...`: several runs side by side, and the options in which they differ.

Knows nothing of models; every figure comes from the runs' events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from steer_heal.commands.folders import complete, finished_run, read_object, runs_in
from steer_heal.commands.options import shown
from steer_heal.errors import InputError
from steer_heal.ledger import Ledger
from steer_heal.report.printing import table
from steer_heal.report.tables import interval, number

USAGE = "steer-heal compare RUN RUN ..."
PURPOSE = "Several finished runs side by side: result, trait, coherence, cost; and the options in which they differ."
COLUMNS = ["run", "verdict", "best", "rounds", "trait", "trait - base", "log-odds - base", "sentence ok", "4-grams",
           "words", "KL to base", "reverted", "seconds"]  # fmt: skip
LEGEND = (
    "All figures are of the best standing round's student, a dash where none stands. trait: share of held-out "
    "free-text replies on the trait's side; log-odds: of the trait's answer in forced choice, nats; both against the "
    "run's own base, paired, with 95 % intervals over items, not over seeds; sentence ok: share of sound sentences; "
    "4-grams: distinct ones; words: per reply; KL to base: on the training texts, nats per token; reverted: rounds "
    "that the gate took out again."
)
UNIMPORTANT = ("out", "quiet", "schema_version")


@dataclass(frozen=True)
class Options:
    """Which runs."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of finished runs, at least two; a folder that holds runs, such as out, stands for all in it."""


def main(options: Options) -> int:
    """Print the table."""
    folders = runs_in(options.runs)
    ledgers = [finished_run(folder) for folder in folders]
    if len(folders) < 2:
        raise InputError(
            f"{len(folders)} run{'s' * (len(folders) != 1)} given: compare takes at least two different ones"
        )
    console = Console(highlight=False, width=None if Console().is_terminal else 200)
    names = short_names([ledger.folder for ledger in ledgers])
    rows = []
    for name, ledger in zip(names, ledgers, strict=True):
        with complete(ledger):
            rows.append([name, *row(ledger)])
    console.print(table("", COLUMNS, rows))
    console.print(LEGEND)
    differing = differences([options_of_run(ledger) for ledger in ledgers])
    if differing:
        rows = [[option, *map(str, values)] for option, values in differing.items()]
        console.print("options that differ:")
        console.print(table("", ["option", *names], rows))
    if len({items_key(ledger) for ledger in ledgers}) > 1:
        console.print("These runs were measured on different items: their figures do not compare, shifts hardly.")
    return 0


def row(ledger: Ledger) -> list[str]:
    """A run's figures (see `COLUMNS`), without its name."""
    end = ledger.events("end")[-1]
    best = next((e for e in ledger.events("evaluate") if e["round"] == end["best_round"]), None)
    heal = next((e for e in ledger.events("heal") if e["round"] == end["best_round"]), None)
    healed, shift = (best["healed"], best["shift"]) if best else ({}, {})
    divergence = heal["figures"].get("kl_base_after") if heal else None
    return [
        end["verdict"], "-" if end["best_round"] is None else str(end["best_round"]),
        str(len(ledger.events("evaluate"))), number(healed.get("free_trait"), 2), interval(shift.get("free_trait")),
        interval(shift.get("log_odds")), number(healed.get("sentence_ok")), number(healed.get("distinct4"), 2),
        number(healed.get("words"), 1), number(divergence), str(sum(not e["stands"] for e in ledger.events("gate"))),
        f"{end['seconds']:.0f}",
    ]  # fmt: skip


def options_of_run(ledger: Ledger) -> dict:
    """A run's options, with the model and trait that it used where they were left to their defaults."""
    start = ledger.events("start")[-1]
    return {**ledger.config, "model": start["model"], "trait": ledger.config.get("trait") or start["trait"]}


def differences(configs: Sequence[Mapping[str, object]]) -> dict[str, list[str]]:
    """Options whose values are not the same in all runs, with the value of each run."""
    names = dict.fromkeys(name for config in configs for name in config if name not in UNIMPORTANT)
    values = {name: [shown(config.get(name)) for config in configs] for name in names}
    return {name: some for name, some in values.items() if len(set(some)) > 1}


def short_names(folders: Sequence[Path]) -> list[str]:
    """Folder names, with their parents' where two are the same."""
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else f"{folder.resolve().parent.name}/{name}"
        for name, folder in zip(names, folders, strict=True)
    ]


def items_key(ledger: Ledger) -> str | None:
    """Hash of what the run was measured on; None where the run did not keep its base."""
    base = ledger.folder / "base.json"
    return read_object(base).get("items_key") if base.is_file() else None
