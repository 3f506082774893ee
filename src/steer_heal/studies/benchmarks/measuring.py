"""How the benches measure: arms in turns, paired ratios, targets said to be reached or missed, peak memory.

Knows nothing of what an arm does. Peak memory is read in a fresh process per arm, from Linux' /proc.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch

Arm = Callable[[], object]
Seconds = dict[str, list[float]]


def take_turns(arms: Mapping[str, Arm], repeats: int) -> tuple[Seconds, Seconds]:
    """Seconds of each arm by the wall clock and of the processor (all threads), in turns: A B C A B C ..."""
    wall, cpu = ({name: [] for name in arms} for _ in range(2))
    for _ in range(repeats):
        for name, arm in arms.items():
            started = time.perf_counter(), time.process_time()
            arm()
            wall[name].append(time.perf_counter() - started[0])
            cpu[name].append(time.process_time() - started[1])
    return wall, cpu


@dataclass(frozen=True)
class Race:
    """Figures by arm and turn: seconds by the wall clock and of the processor, or rates over them.

    Attributes:
        wall, cpu: by arm, one figure per turn. per: how the processor's figures are called.
    """

    wall: Seconds
    cpu: Seconds
    per: str = "in processor seconds"

    @classmethod
    def run(cls, arms: Mapping[str, Arm], repeats: int) -> Race:
        """The arms in turns."""
        return cls(*take_turns(arms, repeats))

    def rates(self, counts: Mapping[str, float]) -> Race:
        """Counts per second instead of seconds."""
        both = ({arm: [counts[arm] / s for s in found[arm]] for arm in found} for found in (self.wall, self.cpu))
        return Race(*both, per="per processor second")

    def ratio(self, top: str, bottom: str) -> str:
        """The ratio of neighbours in words, and that of the processor's figures."""
        return f"{spread(ratio(self.wall, top, bottom))}; {self.per} {spread(ratio(self.cpu, top, bottom))}"

    def against(self, what: str, top: str, bottom: str, target: float, at_most: bool) -> list[str]:
        """Two lines: the ratio against its target, and the same of the processor's figures."""
        line = against(what, ratio(self.wall, top, bottom), target, at_most)
        return [line, f"  the same {self.per}: {spread(ratio(self.cpu, top, bottom))}"]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median (min to max)."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratio(seconds: Seconds, top: str, bottom: str) -> list[float]:
    """Ratios of neighbours."""
    return [a / b for a, b in zip(seconds[top], seconds[bottom], strict=True)]


def against(what: str, values: Sequence[float], target: float, at_most: bool) -> str:
    """One line: the ratio, its target, and whether the median reaches it."""
    reached = median(values) <= target if at_most else median(values) >= target
    side = "at most" if at_most else "at least"
    return f"{what}: {spread(values)}; target {side} {target}: {'reached' if reached else 'MISSED'}"


def surroundings(sizes: object) -> str:
    """What the figures were measured on; other processes' load shows in the load average."""
    where = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}"
    return f"{sizes}\n{where}, torch {torch.__version__}"


def load_at_end() -> str:
    """The last line of a bench: a load above the threads in use says that others ran beside it."""
    return f"load average at the end {os.getloadavg()[0]:.1f}"


# ---------------------------------------------------------------- peak memory


def status(key: str) -> float:
    """A line of /proc/self/status in MiB (VmRSS: resident now, VmHWM: peak)."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))


def peak_here(arm: Arm) -> dict[str, float]:
    """Extra resident memory at the peak of one run of the arm, in MiB, and its seconds."""
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # the peak is from now on
    started = time.perf_counter()
    arm()
    return {"mib": status("VmHWM") - before, "seconds": time.perf_counter() - started}


def peak_fresh(kind: str, name: str, options: Mapping) -> dict[str, float]:
    """`peak_here` of one arm in a process of its own (`benchmarks.benches`). Raises RuntimeError when that fails."""
    command = [sys.executable, "-m", "steer_heal.studies.benchmarks.benches", kind, name, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind} {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peaks(kind: str, names: Sequence[str], sizes: object) -> str:
    """`plain 3 MiB, baked 4 MiB`: the peaks of several arms with the same sizes."""
    found = {name: peak_fresh(kind, name, asdict(sizes)) for name in names}
    return ", ".join(f"{name} {peak['mib']:.0f} MiB" for name, peak in found.items())
