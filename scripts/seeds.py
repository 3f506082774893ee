"""The default run over several seeds, beside its controls: `uv run python scripts/seeds.py --seeds 0 1 2`.

Runs one process per (arm, seed), two at a time with one thread each; prints one table per arm and writes it to
`OUT/seeds.md`. A finished run is not run again. Knows nothing of the method; it reads run folders.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

from steer_heal.ledger import Ledger

ARMS: dict[str, list[str]] = {
    "default": ["--reg", "kl_rev"],
    "nll": ["--reg", "nll"],
    "unsteered": ["--reg", "kl_rev", "--vector", "none"],
    "random": ["--reg", "kl_rev", "--vector", "random"],
    "shuffled": ["--reg", "kl_rev", "--pairs", "shuffled"],
}


@dataclass(frozen=True)
class Arguments:
    """Arms times seeds of the main job."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every arm."""
    arms: tuple[str, ...] = ("default", "nll", "unsteered", "random", "shuffled")
    """Names of arms: default, nll, unsteered, random, shuffled."""
    out: Path = Path("out/seeds")
    """Folder of the runs and of the table."""
    workers: int = 2
    """Runs at a time."""
    options: tuple[str, ...] = ()
    """Further options for every run, such as --options=--n-rounds --options=10."""


def finished(folder: Path) -> Ledger | None:
    """The complete run below a folder, if there is one."""
    for config in folder.glob("*/config.json"):
        ledger = Ledger.open(config.parent)
        if ledger.events("end"):
            return ledger
    return None


def run(arm: str, seed: int, arguments: Arguments) -> Ledger:
    """One run in a process of its own. Raises RuntimeError when it fails for another reason than the method."""
    folder = arguments.out / f"{arm}_s{seed}"
    if found := finished(folder):
        return found
    command = [sys.executable, "-m", "steer_heal.run", *ARMS[arm], "--seed", str(seed), "--out", str(folder), "--quiet"]
    done = subprocess.run([*command, *arguments.options], capture_output=True, text=True, check=False)
    found = finished(folder)
    if done.returncode not in (0, 3) or found is None:
        raise RuntimeError(f"{arm} seed {seed} failed:\n{done.stderr[-2000:]}")
    print(f"{arm} seed {seed}: {found.events('end')[-1]['verdict']}", flush=True)
    return found


COLUMNS = ("trait", "log-odds", "sentence ok", "4-grams", "words", "entropy")
KEYS = ("free_trait", "log_odds", "sentence_ok", "distinct4", "words", "token_entropy")


def spread(values: list[float | None]) -> str:
    """Median and range over seeds."""
    found = [v for v in values if v is not None]
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})" if found else "-"


def table(arm: str, ledgers: list[Ledger]) -> str:
    """Base, prompted, and per round steered and healed: median and range over the seeds."""
    baselines = [ledger.events("baseline")[0] for ledger in ledgers]
    states = {name: [b[name] for b in baselines] for name in ("base", "prompted")}
    for ledger in ledgers:
        for e in ledger.events("evaluate"):
            for name in ("steered", "healed"):
                states.setdefault(f"{e['round']} {name}", []).append(e[name])
    ends = [ledger.events("end")[-1] for ledger in ledgers]
    lines = [
        f"### {arm}",
        "",
        f"`python -m steer_heal.run {' '.join(ARMS[arm])}`, seeds {', '.join(str(x.config['seed']) for x in ledgers)}; "
        f"verdicts: {', '.join(e['verdict'] for e in ends)}; "
        f"best rounds: {', '.join(str(e['best_round']) for e in ends)}; "
        f"seconds: {', '.join(format(e['seconds'], '.0f') for e in ends)}",
        "",
        "| | n | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " --- |" * (1 + len(COLUMNS)),
    ]
    for name, found in states.items():
        cells = [spread([state[key] for state in found]) for key in KEYS]
        lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    shifts = [
        f"seed {ledger.config['seed']} round {e['round']}: trait {e['shift']['free_trait']['value']:+.2f} "
        f"[{e['shift']['free_trait']['low']:+.2f}, {e['shift']['free_trait']['high']:+.2f}]"
        for ledger in ledgers
        for e in ledger.events("evaluate")[-1:]
    ]
    return "\n".join([*lines, "", "Last round against base, paired 95 % intervals: " + "; ".join(shifts) + "."])


def main(arguments: Arguments) -> None:
    """Run what is missing, then print and write the tables."""
    jobs = [(arm, seed) for arm in arguments.arms for seed in arguments.seeds]
    with ThreadPoolExecutor(arguments.workers) as pool:
        ledgers = list(pool.map(lambda job: run(*job, arguments), jobs))
    tables = [
        table(arm, [ledger for (name, _), ledger in zip(jobs, ledgers, strict=True) if name == arm])
        for arm in arguments.arms
    ]
    (arguments.out / "seeds.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    print("\n\n".join(tables))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
