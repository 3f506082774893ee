"""Re-heal one round of a run over a grid of regularisers x seeds, and rank what comes of it.

    uv run python scripts/heal_sweep.py out/RUN --round 0 --seeds 0 1 2
    uv run python scripts/heal_sweep.py out/RUN --round 1 --grid nll kl_rev,lam=0.1 kl_rev,lam=1,kl_agg=cvar

Model, trait and every option that the grid does not name come from the run; writes sweep.md, sweep.csv and sweep.png
to RUN/sweep_KK. Knows nothing of how completions were sampled and filtered: it reads a run folder.
"""

import sys
from functools import partial

from steer_heal.commands.script import run_script
from steer_heal.studies.reheal import Arguments, sweep

main = partial(run_script, Arguments, lambda given: print(f"\n{sweep(given)[1]}"), about=__doc__, name="heal_sweep")


if __name__ == "__main__":
    sys.exit(main())
