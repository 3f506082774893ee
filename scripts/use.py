"""Adapters in use: scaled, two traits at once, under another and the opposing prompt, after neutral fine-tuning.

    uv run python scripts/use.py --seeds 20 21 22                 # default runs on pocket, care and warmth, come first
    uv run python scripts/use.py --run out/RUN                    # a finished run's result, or a PEFT adapter's folder

Everything is paired with the original model on the same items. Writes use.md and use.csv to OUT and keeps the runs
there. Knows nothing of how adapters are trained.
"""

import sys
from functools import partial

from steer_heal.commands.script import run_script
from steer_heal.studies.use import Arguments, use_adapters

main = partial(run_script, Arguments, lambda given: print(f"\n{use_adapters(given)[1]}"), about=__doc__, name="use")


if __name__ == "__main__":
    sys.exit(main())
