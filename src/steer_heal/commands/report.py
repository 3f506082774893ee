"""`steer-heal report RUN`: write a run's pages again from what its folder holds.

Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from steer_heal.commands.folders import complete, finished_run
from steer_heal.errors import InputError

USAGE = "steer-heal report RUN"
PURPOSE = "Write report.html, summary.md and the plots of a finished run again, from what its folder holds."


@dataclass(frozen=True)
class Options:
    """Which run."""

    run: tyro.conf.Positional[str]
    """The run's folder."""


def main(options: Options) -> int:
    """Write the pages; every figure comes from the folder."""
    from steer_heal.report import write_pages

    ledger = finished_run(options.run)
    try:
        with complete(ledger):
            written = write_pages(ledger)
    except OSError as problem:
        raise InputError(f"run folder {options.run!r}: cannot be written ({problem.strerror})") from problem
    for path in written:
        print(path)
    return 0
