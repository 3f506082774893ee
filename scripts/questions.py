"""Open questions of earlier work: the runs they need, what each came to, and one table with a verdict for each.

    uv run python scripts/questions.py                      # all fourteen; `just questions`
    uv run python scripts/questions.py --questions 7 11     # two of them, with the runs they need
    uv run python scripts/questions.py --tables             # run no arm, ask what is finished

Writes questions.md and a file per answer to OUT. The same command again goes on where it was. Knows nothing of the
method.
"""

import os
import sys
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores belong to the runs

from steer_heal.commands.script import run_script
from steer_heal.studies.arms.running import AGAIN, told
from steer_heal.studies.questions import Arguments, ask


def work(arguments: Arguments) -> int:
    """Print the page and what failed; returns the exit code."""
    return told("questions", *ask(arguments))


main = partial(run_script, Arguments, work, about=__doc__, name="questions", interrupted=AGAIN)

if __name__ == "__main__":
    sys.exit(main())
