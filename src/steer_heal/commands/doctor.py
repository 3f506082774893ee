"""`steer-heal doctor`: what is installed, on what machine, and whether the method's foundations hold here.

Knows nothing of how a check is done (`checks`); exit code 1 when one fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

USAGE = "steer-heal doctor [--model MODEL]"
PURPOSE = (
    "Versions, device and memory; then, on a model: a dose of 0 changes no bit, the chunked loss equals the plain one, "
    "adapters fold and leave without a trace, and a tiny round runs through. Exit code 1 when one of them fails."
)


@dataclass(frozen=True)
class Options:
    """What to check on."""

    model: str = "tiny-random"
    """Model of the checks: tiny-random, pocket, a folder, a hub id."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16."""
    no_round: bool = False
    """Leave the tiny round out; it always runs on tiny-random."""


def main(options: Options) -> int:
    """Print the machine and one line per check."""
    from steer_heal import model as models
    from steer_heal.commands import checks
    from steer_heal.model.loading import resolve_device

    device = resolve_device(options.device)
    lm = models.load(options.model, device=options.device, dtype=options.dtype)
    for line in checks.machine(device):
        print(line)
    print(f"model    {lm.name}, {len(lm.blocks)} blocks of width {lm.width}, {lm.dtype} on {lm.device}")
    asked: dict[str, Callable[[], tuple[bool, str]]] = {
        "dose 0 is transparent": lambda: checks.dose_zero(lm),
        "chunked loss equals the model's": lambda: checks.chunked_loss(lm),
        "fold and undo": lambda: checks.fold_and_undo(lm),
    }
    if not options.no_round:
        asked["one tiny round"] = checks.tiny_round
    failed = 0
    for name, check in asked.items():
        started = time.perf_counter()
        good, detail = check()
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'}     {name}: {detail} ({time.perf_counter() - started:.1f} s)")
    print("all is well" if not failed else f"{failed} check(s) failed: do not trust a run on this machine")
    return min(failed, 1)
