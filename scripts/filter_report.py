"""What the model-free gates do to the labelled texts: share dropped and kept per family, with intervals, every miss.

    python scripts/filter_report.py                  # both splits, all misses
    python scripts/filter_report.py --split tune     # only the families that limits were chosen on

Knows nothing of models: perplexity is not used here.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

from steer_heal.coherence import CoherenceFilter

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "coherence_labelled.jsonl"


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p, w = hits / n, z * z / n
    centre, half = p + w / 2, z * math.sqrt(p * (1 - p) / n + w / n / 4)
    return max(0.0, (centre - half) / (1 + w)), min(1.0, (centre + half) / (1 + w))


def read(path: Path = DATA) -> list[dict[str, str]]:
    """The labelled texts."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main() -> None:
    """Print the tables and the misses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=("tune", "held_out", "both"), default="both")
    parser.add_argument("--quiet", action="store_true", help="tables only, no misses")
    args = parser.parse_args()
    filt = CoherenceFilter()
    for split in ("tune", "held_out") if args.split == "both" else (args.split,):
        groups: dict[tuple[str, str], list[tuple[bool, str]]] = defaultdict(list)
        misses = []
        for row in read():
            if row["split"] != split:
                continue
            broken = filt.judge_text(row["text"])
            right = bool(broken) == (row["label"] == "broken")
            groups[row["label"], row["family"]].append((right, row["text"]))
            if not right:
                misses.append((row["label"], row["family"], [rule.key for rule in broken], row["text"]))
        print(f"\n== {split} families: share judged right (good kept, broken dropped), 95 % Wilson interval")
        for label in ("good", "broken"):
            everything = [right for (lab, _), rows in groups.items() if lab == label for right, _ in rows]
            for (lab, family), rows in groups.items():
                if lab == label:
                    _print(f"{label:6s} {family}", [right for right, _ in rows])
            _print(f"{label:6s} ALL", everything)
        if not args.quiet:
            for label, family, rules, text in misses:
                shown = " ".join(text.split())
                print(f"\nMISS {label} / {family} {', '.join(rules)}\n  {shown}")


def _print(name: str, right: list[bool]) -> None:
    low, high = wilson(sum(right), len(right))
    print(f"{name:30s} {sum(right):4d} / {len(right):4d}  {sum(right) / len(right):6.1%}  [{low:.1%}, {high:.1%}]")


if __name__ == "__main__":
    main()
