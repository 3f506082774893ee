"""Teach a model what it fails at several settings, and gate each against what it could do before.

    uv run python scripts/ladder.py --seeds 0 1 2                     # pocket, the tasks it ships for this
    uv run python scripts/ladder.py --rows my_rows.jsonl --model ./folder --anchors my_anchors.jsonl
    uv run python scripts/ladder.py --run out/RUN --round 0           # a round's kept completions as the rows

Every setting starts from the same weights and, by seed, the same initial adapter: heal, bake, gate, keep or revert,
archive. Writes ladder.md, ladder.csv and the adapters with their decisions to OUT. Knows nothing of steering.
"""

import sys
from functools import partial

from steer_heal.commands.script import run_script
from steer_heal.studies.ladder import Arguments, climb

main = partial(run_script, Arguments, lambda given: print(f"\n{climb(given)[1]}"), about=__doc__, name="ladder")


if __name__ == "__main__":
    sys.exit(main())
