"""The arms that the questions read, each run once however many questions read it, and the options all of them share.

Knows nothing of the questions' rules.
"""

from __future__ import annotations

from steer_heal.studies.arms.definitions import BUILT_IN, OPEN, WATCH, Arm

SIZES = ("--n-rounds", "2", "--n-min", "40", "--walk-batch", "56", "--eval-items", "24", "--eval-replies", "40")
COMMON = (*WATCH, *SIZES)
"""Small runs of which nothing is taken back: a minute and a half each on an idle core."""

LONGER = ("--n-rounds", "3")
BARRIER = ("--reg", "kl_rev", *OPEN)

ARMS = (
    Arm("open-nll", ("--reg", "nll", *OPEN, *LONGER)),
    Arm("open-kl", (*BARRIER, *LONGER)),
    Arm("prev", (*BARRIER, "--reference", "prev", *LONGER)),
    Arm("bounded", ("--reg", "nll", *OPEN, "--replay", "0.3", "--accumulate", "128")),
    Arm("ramp", (*BARRIER, "--lam-power", "-0.5")),
    Arm("cvar", (*BARRIER, "--kl-agg", "cvar")),
    Arm("p95", (*BARRIER, "--kl-agg", "p95")),
    Arm("max", (*BARRIER, "--kl-agg", "max")),
    BUILT_IN["tokens"],
    BUILT_IN["default"],
    BUILT_IN["shuffled"],
)
"""open-nll and open-kl: sampled tokens, no coherence filter and doses past the knee, so that the barrier has something
to hold. prev, ramp and the aggregates differ from open-kl in one option, bounded from open-nll in its rows. tokens has
the filter and the walk; default and shuffled learn from a teacher."""
