"""Prompt, distillation, DPO, contrastive weights, learned vectors and steer_heal, compared at equal coherence.

    uv run python scripts/arena.py                                        # all arms, seeds 20 to 22, on all cores
    uv run python scripts/arena.py --arms prompt contrastive --seeds 20   # a sceptic's rerun of one arm
    uv run python scripts/arena.py --tune --seeds 0 1 2                   # the learning rates

Writes arena.md, arena.csv and arena.png (or tuning.md) to OUT; what is finished there is not run again.
"""

import sys
from functools import partial

from steer_heal.commands.script import run_script
from steer_heal.studies.arena import Arguments, arena

main = partial(run_script, Arguments, lambda given: print(f"\n{arena(given)}"), about=__doc__, name="arena")


if __name__ == "__main__":
    sys.exit(main())
