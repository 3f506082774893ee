"""Dose against trait, coherence and perplexity, with the knee marked: `uv run python scripts/csweep.py`.

    uv run python scripts/csweep.py                                         # pocket, doses 0 to 3
    uv run python scripts/csweep.py --doses auto --target-kl 1.0            # doses around a divergence of 1 nat
    uv run python scripts/csweep.py --model ./folder --trait care-over-authority --layers 0.45 0.55 --doses auto
    uv run python scripts/csweep.py --model tiny-random --n-free 8 --n-items 8 --max-new-tokens 16

Writes `csweep.txt` (table, knee, one whole reply per dose), `csweep.csv` and `csweep.png`.
"""

import sys
from functools import partial

from steer_heal.commands.script import run_script
from steer_heal.studies.dose_sweep import Arguments, sweep_doses

main = partial(run_script, Arguments, lambda given: print(sweep_doses(given)), about=__doc__, name="csweep")


if __name__ == "__main__":
    sys.exit(main())
