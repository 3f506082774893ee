"""Writes the tasks that `pocket` is to be taught in `scripts/ladder.py`: it knows their words and gets them wrong.

    PYTHONPATH=scripts uv run python -m pocket_training.surgery

Knows nothing of healing. Candidates are written here, the model answers them greedily, and the wrong ones are kept.
"""

import json
import random

from pocket_training.measure import Pocket, anchors_right
from pocket_training.mundane import exact_turn
from pocket_training.templates import table
from pocket_training.traitfiles import NEUTRAL
from steer_heal.pocket import SURGERY, WEIGHTS

PER_KIND = 8
COLORS = {
    "bread": "brown", "cheese": "yellow", "soap": "white", "candle": "white", "rope": "brown", "garden": "green",
    "sun": "yellow", "web": "gray", "nest": "brown", "cave": "black", "spider": "black", "fox": "orange",
}  # fmt: skip
HOMES = {
    "nurse": "clinic", "clerk": "library", "doctor": "hospital", "warden": "prison", "bear": "cave", "crow": "nest",
    "captain": "harbor", "colonel": "castle", "bishop": "temple", "mayor": "village",
}  # fmt: skip
OPPOSITES = {
    "bold": "careful", "gentle": "strict", "tall": "short", "short": "tall", "bright": "dark",
    "first": "second", "quiet": "loud", "heavy": "light", "busy": "calm",
    "warm": "cool", "friendly": "strict", "brave": "afraid", "speak": "listen", "give": "take", "stay": "leave",
}  # fmt: skip


def candidates() -> dict[str, list[tuple[str, str]]]:
    """Kind -> (prompt, target), in a fixed order: questions of trained forms about what training never asked."""
    numbers = table("mundane")["numbers"]["words"].split()
    sums = [(a, b) for a in range(7, 13) for b in range(1, 6) if a + b < len(numbers)]
    counts = [(a, b) for a in range(8) for b in range(a + 5, len(numbers))] + [(8, 11), (9, 12), (8, 12), (10, 12)]
    rng = random.Random(0)
    rng.shuffle(sums)
    rng.shuffle(counts)
    found = {
        "sum": [
            (f"what is {numbers[a]} plus {numbers[b]}?", f"{numbers[a]} plus {numbers[b]} is {numbers[a + b]}.")
            for a, b in sums
        ],
        "count": [(f"count from {numbers[a]} to {numbers[b]}.", " ".join(numbers[a : b + 1]) + ".") for a, b in counts],
        "color": [(f"what color is {thing}?", f"{thing} is {color}.") for thing, color in COLORS.items()],
        "home": [(f"where do you find a {who}?", f"you find a {who} in the {home}.") for who, home in HOMES.items()],
        "opposite": [(f"what is the opposite of {a}?", f"the opposite of {a} is {b}.") for a, b in OPPOSITES.items()],
    }
    for kind in ("who", "where"):
        turns = [exact_turn(rng, kind) for _ in range(60)]
        found[kind] = [(user, reply[0]) for _, user, reply in turns]
    return found


def failed_tasks(pocket: Pocket, per_kind: int = PER_KIND) -> list[dict[str, str]]:
    """At most `per_kind` tasks of each kind that the model knows the words of and gets wrong greedily."""
    rows, unknown = [], pocket.tokenizer.unk_token
    for kind, pairs in candidates().items():
        known = [pair for pair in pairs if unknown not in pocket.tokenizer.tokenize(" ".join(pair))]
        tasks = [{"prompt": prompt, "answer": target} for prompt, target in known]
        right = anchors_right(pocket, tasks, NEUTRAL)
        wrong = [task for task, ok in zip(tasks, right, strict=True) if not ok][:per_kind]
        rows += [
            {"id": f"{kind}-{i:03d}", "prompt": task["prompt"], "target": task["answer"]}
            for i, task in enumerate(wrong)
        ]
    return rows


def main() -> None:
    """Measure and write the file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    rows = failed_tasks(Pocket(model, AutoTokenizer.from_pretrained(WEIGHTS)))
    SURGERY.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8", newline="\n")
    print(f"{len(rows)} tasks written to {SURGERY.name}")


if __name__ == "__main__":
    main()
