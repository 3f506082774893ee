"""Is what a heal learns content, or one cheap constant shift? Real or shuffled pairs x barrier off or on, same rows.

    uv run python scripts/matrix.py --seeds 0 1 2                 # one round on pocket per seed gives the rows
    uv run python scripts/matrix.py --run out/RUN --round 0       # a finished run's rows, seeds vary split and heal

Within a seed all cells share the kept rows, the held-out prompts and the initial adapter; nll is measured on held-out
REAL pairs. Writes matrix.md and matrix.csv to OUT. Knows nothing of how completions were sampled and filtered.
"""

import sys
from functools import partial

from steer_heal.commands.script import run_script
from steer_heal.studies.matrix import Arguments, build

main = partial(run_script, Arguments, lambda given: print(f"\n{build(given)[1]}"), about=__doc__, name="matrix")


if __name__ == "__main__":
    sys.exit(main())
