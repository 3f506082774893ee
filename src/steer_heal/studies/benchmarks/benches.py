"""The benches by name: the options of each, and what prints its figures. As a program, the fresh process of one arm.

Knows nothing of what they measure. `python -m steer_heal.studies.benchmarks.benches KIND ARM OPTIONS-AS-JSON` runs one
arm once and prints its peak memory, for `measuring.peak_fresh`.
"""

from __future__ import annotations

import json
import sys

import torch

from steer_heal.studies.benchmarks.bake import BakeBench, bake_arms, bench_bake
from steer_heal.studies.benchmarks.generate import GenerateBench, bench_generate
from steer_heal.studies.benchmarks.gpu import GpuBench, bench_gpu
from steer_heal.studies.benchmarks.heal import HealBench, bench_heal, heal_arms
from steer_heal.studies.benchmarks.loss import LossBench, bench_loss, loss_arms
from steer_heal.studies.benchmarks.measuring import peak_here
from steer_heal.studies.benchmarks.models import Sizes
from steer_heal.studies.benchmarks.passes import ExtractBench, FilterBench, bench_extract, bench_filter

BENCHES = {
    "gpu": (GpuBench, bench_gpu),
    "generate": (GenerateBench, bench_generate),
    "extract": (ExtractBench, bench_extract),
    "filter": (FilterBench, bench_filter),
    "heal": (HealBench, bench_heal),
    "bake": (BakeBench, bench_bake),
    "loss-memory": (LossBench, bench_loss),
}


def main(kind: str, name: str, options: str) -> None:
    """Prepare one arm, run it once, print its figures."""
    chosen = json.loads(options)
    if kind == "loss":
        torch.set_num_threads(chosen.pop("threads"))
        arms = loss_arms(**chosen, names=[name])
    else:
        arms = {"heal": heal_arms, "bake": bake_arms}[kind](Sizes(**chosen), [name])
    print(json.dumps(peak_here(arms[name])))


if __name__ == "__main__":
    main(*sys.argv[1:])
