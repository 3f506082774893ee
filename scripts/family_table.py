"""Try every stage on a tiny random model of each family, and write docs/families.md.

    uv run python scripts/family_table.py

The families and what is tried are those of tests/families.py. Knows nothing of pretrained models.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from steer_heal.commands.script import run_script

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "families.md"
sys.path.append(str(ROOT / "tests"))

from families import OTHERS, REFUSED, UNLIKE, Tried, make, tried  # noqa: E402

ABOUT = """# Model families

Tried on a random model of each: four blocks of width 32, in float32 on a CPU. Blocks and head are found and compared
with the model's own logits, a vector is compared with a naive mean difference, steered and undone, a heal lowers the
nll, its adapter is folded, exported, loaded by plain PEFT with the same logits, and taken out bit for bit. No
pretrained model of them was run. `uv run python scripts/family_table.py` writes this page; the tests try some again,
`uv run pytest -m slow tests/test_families.py` the others.

Share: of the weights in the adapted blocks, those that get an adapter; in brackets, those without the experts
([`experts`](how-to/model.md#which-layers-learn)). Other sizes have other shares.

| family | adapters on | share |
| --- | --- | --- |"""
ELSE = """
## Refused

Families whose blocks hand on several streams or lie in one another, or whose state reads pads. `load` and `wrap`
say so in one line:

| family | what is said |
| --- | --- |"""


@dataclass(frozen=True)
class Arguments:
    """Tries all families; there is nothing to choose."""


def row(family: str, found: Tried) -> str:
    """One line of the table."""
    dense = "" if found.dense == found.reach else f" ({found.dense:.2f})"
    return f"| `{family}` | {', '.join(found.modules)} | {found.reach:.2f}{dense} |"


def refusal(family: str) -> str:
    """What is said of a family that is refused."""
    from steer_heal.errors import InputError
    from steer_heal.model import wrap

    made = make(family)
    try:
        wrap(made.model, made.tokenizer, family)
    except InputError as problem:
        return f"| `{family}` | {problem} |"
    raise ValueError(f"{family} is not refused any more: try it with the others")


def write_page() -> None:
    """Try them all; a family that fails stops it."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(one, tried(one, Path(folder) / one)) for one in sorted([*UNLIKE, *OTHERS])]
    PAGE.write_text("\n".join([ABOUT, *rows, ELSE, *map(refusal, REFUSED)]) + "\n", encoding="utf-8")


main = partial(run_script, Arguments, lambda given: write_page(), about=__doc__, name="family_table")


if __name__ == "__main__":
    sys.exit(main())
