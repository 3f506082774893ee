"""Texts labelled good or broken, made from hand-written pieces: what the filter is tried on. No stage imports them.

Knows nothing of the filter.
"""

from __future__ import annotations

import random

from steer_heal.studies.labelled_texts.broken import BROKEN, spliced
from steer_heal.studies.labelled_texts.good import JOINED, joined, long_text, small_vocabulary
from steer_heal.studies.labelled_texts.pieces import Pieces

__all__ = ["Pieces", "labelled"]


def labelled(given: Pieces) -> list[dict[str, str]]:
    """All texts, family by family, with label, family and split; each family has a random stream of its own."""
    good = {family: joined(given, family, random.Random(family)) for family in JOINED}
    good["short_answers"] = given.of("short_answers")
    good["long_text"] = long_text(given, random.Random("long_text"))
    good["small_vocabulary"] = small_vocabulary(given, random.Random("small_vocabulary"))
    broken = {family: maker(given, random.Random(family)) for family, maker in BROKEN.items()}
    for family in ("refusal", "narration"):
        broken[family] = spliced(given, family, random.Random(family))
    rows = []
    for label, families in (("good", good), ("broken", broken)):
        for family, texts in families.items():
            split = "held_out" if family in given.held_out else "tune"
            rows += [{"text": t, "label": label, "family": family, "split": split} for t in dict.fromkeys(texts)]
    return rows
