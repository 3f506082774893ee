"""Train the embedded model from scratch, check it and write its data card.

    python scripts/train_pocket.py                  # all of it: at most 30 minutes on 2 cores (`just train-pocket`)
    python scripts/train_pocket.py --only checks    # measure the shipped weights again and rewrite docs/pocket.md
    python scripts/train_pocket.py --only traits    # rewrite the trait files
    python scripts/train_pocket.py --only surgery   # find the tasks it fails again, for scripts/ladder.py

Writes src/steer_heal/pocket/weights and surgery.jsonl, docs/pocket_train.jsonl (log), docs/pocket_loss.png and
docs/pocket.md. Knows nothing of the library's own steering and evaluation.
"""

import os
import sys
from functools import partial

ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
"""Keep freed memory: else small CPUs spend much of a step on page faults. Read at start-up, hence the re-exec."""
if __name__ == "__main__" and any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)

from pocket_training.rebuild import Arguments, rebuild  # noqa: E402

from steer_heal.commands.script import run_script  # noqa: E402

main = partial(run_script, Arguments, rebuild, about=__doc__, name="train_pocket")


if __name__ == "__main__":
    sys.exit(main())
