"""What is done with finished runs: their pages again, several side by side.

Knows nothing of training; every figure comes from the runs' events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from steer_heal.commands.folders import complete, finished_run, read_object, runs_in
from steer_heal.commands.options import console, shown
from steer_heal.errors import InputError, printable
from steer_heal.ledger import Ledger
from steer_heal.ledger.clock import duration

LEGEND = (
    "All figures are of the best standing round's student, a dash where none stands. trait: share of held-out "
    "free-text replies on the trait's side; log-odds: of the trait's answer in forced choice, nats; both against the "
    "run's own base, paired, with 95 % intervals over items, not over seeds; sentence ok: share of sound sentences; "
    "coherence: that, or without a checker the share of replies that neither loop nor surprise the original; "
    "4-grams: distinct ones; words: per reply; KL to base: on the training texts, nats per token; reverted: rounds "
    "that the gate took out again."
)
UNIMPORTANT = ("out", "quiet", "schema_version")
Run = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class Report:
    """Write report.html, summary.md and the plots of a finished run again, from what its folder holds.

    Attributes:
        run: The run's folder.
    """

    run: Run

    def __call__(self) -> int:
        """Write the pages; every figure comes from the folder."""
        ledger = finished_run(self.run)
        from steer_heal.report import write_pages

        try:
            with complete(ledger):
                written = write_pages(ledger)
        except OSError as problem:
            raise InputError(f"run folder {self.run!r}: cannot be written ({problem.strerror})") from problem
        for path in written:
            print(printable(str(path)))
        return 0


@dataclass(frozen=True)
class Compare:
    """Several finished runs side by side: result, trait, coherence, cost; and the options in which they differ.

    Attributes:
        runs: Folders of finished runs, at least two; a folder that holds runs, such as out, stands for all in it.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]

    def __call__(self) -> int:
        """Print the table."""
        ledgers = [finished_run(folder) for folder in runs_in(self.runs)]
        if (given := len(ledgers)) < 2:
            raise InputError(f"{given} run{'s' * (given != 1)} given: compare takes at least two different ones")
        from steer_heal.report.printing import table

        out, names, rows = console(200), short_names([ledger.folder for ledger in ledgers]), []
        for name, ledger in zip(names, ledgers, strict=True):
            with complete(ledger):
                rows.append({"run": name, **figures(ledger)})
        out.print(table("", list(rows[0]), [list(row.values()) for row in rows]))
        out.print(LEGEND)
        differing = differences([options_of_run(ledger) for ledger in ledgers])
        if differing:
            out.print("options that differ:")
            out.print(table("", ["option", *names], [[option, *values] for option, values in differing.items()]))
        if len({items_key(ledger) for ledger in ledgers}) > 1:
            out.print("These runs were measured on different items: their figures do not compare, shifts hardly.")
        return 0


def figures(ledger: Ledger) -> dict[str, str]:
    """A run's figures by the column in which `compare` shows them."""
    from steer_heal.report.tables import STATE, interval, number

    end = ledger.events("end")[-1]
    best = next((e for e in ledger.events("evaluate") if e["round"] == end["best_round"]), None)
    heal = next((e for e in ledger.events("heal") if e["round"] == end["best_round"]), None)
    shift = best["shift"] if best else {}
    told = {column.head: column.told(best and best["healed"]) for column in STATE}
    return {
        "verdict": end["verdict"],
        "best": "-" if end["best_round"] is None else str(end["best_round"]),
        "rounds": str(len(ledger.events("evaluate"))),
        "trait": told["trait"],
        "trait - base": interval(shift.get("free_trait")),
        "log-odds - base": interval(shift.get("log_odds")),
        "coherence - base": interval(shift.get("coherence"), 3),
        **{head: told[head] for head in ("sentence ok", "4-grams", "words", "fit")},
        "KL to base": number(heal["figures"].get("kl_base_after") if heal else None),
        "reverted": str(sum(not e["stands"] for e in ledger.events("gate"))),
        "time": duration(end["seconds"]),
    }


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
