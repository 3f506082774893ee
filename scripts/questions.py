"""Open questions of earlier work: the runs they need, what each came to, and one table with a verdict for each.

    uv run python scripts/questions.py                      # all fourteen; `just questions`
    uv run python scripts/questions.py --questions 7 11     # two of them, with the runs they need
    uv run python scripts/questions.py --tables             # run no arm, ask what is finished

Writes questions.md and a file per answer to OUT. The same command again goes on where it was. Knows nothing of the
method.
"""

import os
import sys
from collections.abc import Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores belong to the runs

from steer_heal.commands.script import run_script
from steer_heal.studies.questions import Arguments, ask


def show(arguments: Arguments) -> int:
    """Print the page and what failed; returns the exit code."""
    failures, text = ask(arguments)
    print(f"\n{text}")
    for failure in failures:
        print(f"questions: {failure}", file=sys.stderr)
    return 1 if failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 some run failed, 2 unusable input, 130 interrupted."""
    again = "the same command goes on with the runs that are missing"
    return run_script(Arguments, show, argv, __doc__, "questions", again)


if __name__ == "__main__":
    sys.exit(main())
