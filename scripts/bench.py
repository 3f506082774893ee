"""What the stages cost, as ratios within one run: `uv run python scripts/bench.py heal` (or another bench).

    uv run python scripts/bench.py generate                # steered batches against plain ones and one at a time
    uv run python scripts/bench.py extract                 # extraction against full forward passes with the head
    uv run python scripts/bench.py filter                  # scoring in batches against one by one
    uv run python scripts/bench.py heal                    # kl_rev against plain nll and against a naive loop
    uv run python scripts/bench.py bake                    # a forward pass with three rounds baked in, or copied in
    uv run python scripts/bench.py loss-memory --positions 256 1024
    uv run python scripts/bench.py generate --preset 4b --device cuda --engines compiled  # on a GPU, bf16
    uv run python scripts/bench.py gpu                     # all that is asked of a GPU

Arms take turns (A B C A B C ...); a ratio is that of neighbours, shown as median (min to max). Peak memory is read in
a fresh process per arm. A target that is missed is said to be missed. Models are random and built in memory.
"""

import sys
from collections.abc import Sequence

from steer_heal.commands.script import guarded, run_script
from steer_heal.errors import InputError, nearest
from steer_heal.studies.benchmarks.benches import BENCHES


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and print one bench; 2 for unusable input."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(f"{__doc__.strip()}\n\n`scripts/bench.py BENCH --help` shows a bench's options.")
        return 0
    if name not in BENCHES:
        return guarded(_unknown, [name])
    kind, bench = BENCHES[name]
    about = f"scripts/bench.py {name}: {kind.__doc__}"
    return run_script(kind, lambda given: print(bench(given), flush=True), rest, about=about, name="bench")


def _unknown(words: list[str]) -> int:
    raise InputError(f"unknown bench {words[0]!r}{nearest(words[0], tuple(BENCHES))}: give one of {', '.join(BENCHES)}")


if __name__ == "__main__":
    sys.exit(main())
