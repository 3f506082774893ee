"""Named arms x seeds: run what is missing, here, on Ray or on Slurm; then the tables and plots that compare them.

    uv run python scripts/arms.py --seeds 10 11 12 --n-rounds 10            # `just results`
    uv run python scripts/arms.py --arms default nll --seeds 0 --arm tight="--reg kl_rev --tau .1"
    uv run --extra ray python scripts/arms.py --on ray --address auto       # as tasks of a cluster
    uv run python scripts/arms.py --tables --out out/arms                   # run nothing, only compare

Writes arms.md, arms.csv and three plots to OUT. The same command again goes on where it was. Knows nothing of the
method; the arms are options of `python -m steer_heal.run`.
"""

import os
import sys
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores belong to the runs

from steer_heal.commands.script import run_script
from steer_heal.studies.arms import Arguments, arms
from steer_heal.studies.arms.running import AGAIN, told


def work(arguments: Arguments) -> int:
    """Print the page and what failed; returns the exit code."""
    return told("arms", *arms(arguments))


main = partial(run_script, Arguments, work, about=__doc__, name="arms", interrupted=AGAIN)

if __name__ == "__main__":
    sys.exit(main())
