"""Does a budget carry over between models? One heal per budget, on every model, trait and dose given, in one table.

    uv run python scripts/carry_over.py pocket,trait=pocket-care,doses=0.5/1 pocket,trait=pocket-warmth,doses=0.5/1

A case is a model, then option=value of a run. Per dose: sample steered texts, keep the coherent ones, measure in nats
what the steering itself caused on them, heal on the same rows without a barrier (nll), under a budget in nats (--tau)
and under one relative to what the steering caused (--tau-rel). Writes carry_over.md and carry_over.csv to OUT. Knows
nothing of rounds: everything is a first round.
"""

import sys
from functools import partial

from steer_heal.commands.script import run_script
from steer_heal.studies.carry_over import Arguments, carry_over

main = partial(run_script, Arguments, lambda given: print(f"\n{carry_over(given)}"), about=__doc__, name="carry_over")


if __name__ == "__main__":
    sys.exit(main())
