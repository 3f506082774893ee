"""What the filter does to labelled texts: share dropped and kept with intervals, misses in full.

uv run python scripts/filter_report.py                  # model-free gates, both splits, all misses
uv run python scripts/filter_report.py --split tune     # only the families that limits were chosen on
uv run python scripts/filter_report.py --pocket         # what perplexity adds, on `pocket` texts and its checker
"""

import sys
from functools import partial
from pathlib import Path

from steer_heal.commands.script import run_script
from steer_heal.studies.filter_report import Arguments, report

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"


def show(arguments: Arguments) -> None:
    """Print the report line by line."""
    for line in report(arguments, DATA):
        print(line, flush=True)


main = partial(run_script, Arguments, show, about=__doc__, name="filter_report")


if __name__ == "__main__":
    sys.exit(main())
