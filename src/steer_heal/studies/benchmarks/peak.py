"""The fresh process of `measuring.peak_fresh`: `python -m ...benchmarks.peak KIND ARM OPTIONS-AS-JSON`."""

from __future__ import annotations

import json
import sys

import torch

from steer_heal.studies.benchmarks.bake import bake_arms
from steer_heal.studies.benchmarks.heal import heal_arms
from steer_heal.studies.benchmarks.loss import loss_arms
from steer_heal.studies.benchmarks.measuring import peak_here
from steer_heal.studies.benchmarks.models import Sizes


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
