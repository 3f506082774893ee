"""What a question came to: figures with intervals, each held against a limit, and the verdict that follows from them.

Knows nothing of models and of what the figures mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from steer_heal.ledger import write_json
from steer_heal.statistics import Estimate
from steer_heal.studies.writing import markdown

CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "not shown"
RULE = (
    "A part of a claim holds when its 95 % interval lies wholly on the claimed side of the limit and so does every "
    "seed's own value; it fails when both lie wholly on the other side. Confirmed: all parts hold; refuted: one fails; "
    "else not shown. A claim over more rounds than were run is never confirmed. Parts in parentheses are reported only."
)


@dataclass(frozen=True)
class Part:
    """One figure of an answer.

    Attributes:
        what: the figure with its unit. found: over all seeds. by_seed: the values of single seeds.
        limit: what the claim says it is above (`above`) or below. decides: False for what is reported only.
    """

    what: str
    found: Estimate
    by_seed: tuple[float, ...] = ()
    limit: float = 0.0
    above: bool = True
    decides: bool = True

    @property
    def verdict(self) -> str:
        """Of this part alone."""
        sign = 1 if self.above else -1
        seeds = [sign * (value - self.limit) for value in self.by_seed or (self.found.value,)]
        ends = [sign * (end - self.limit) for end in (self.found.low, self.found.high)]
        if min(*ends, *seeds) > 0:
            return CONFIRMED
        return REFUTED if max(*ends, *seeds) < 0 else OPEN

    def __str__(self) -> str:
        seeds = f" ({', '.join(f'{v:+.2f}' for v in self.by_seed)})" if len(self.by_seed) > 1 else ""
        said = f"{self.what} {self.found.value:+.3f} [{self.found.low:+.3f}, {self.found.high:+.3f}]{seeds}"
        if not self.decides:
            return f"({said})"
        return f"{said}, asked {'>' if self.above else '<'} {self.limit:.3g}: {self.verdict}"


@dataclass(frozen=True)
class Answer:
    """A question's row of the table. `rounds`: how many its runs had; `asked`: how many the claim is about."""

    number: int
    claim: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    parts: tuple[Part, ...]
    rounds: int = 1
    asked: int = 1

    @property
    def verdict(self) -> str:
        """See `RULE`."""
        found = [part.verdict for part in self.parts if part.decides]
        if REFUTED in found:
            return REFUTED
        return CONFIRMED if found and set(found) == {CONFIRMED} and self.rounds >= self.asked else OPEN

    def row(self) -> dict[str, str]:
        """For the table."""
        short = f" {self.rounds} rounds of {self.asked}." if self.rounds < self.asked else ""
        return {
            "": str(self.number),
            "claim": self.claim,
            "arms": ", ".join(self.arms) or "-",
            "seeds": " ".join(map(str, self.seeds)) or "-",
            "result [95 %] (by seed)": f"{'; '.join(map(str, self.parts))}.{short}",
            "verdict": f"**{self.verdict}**{' (one seed)' if len(self.seeds) == 1 else ''}",
        }

    def save(self, folder: Path) -> None:
        """One file a question, so that questions can be asked one at a time."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{self.number:02d}.json", asdict(self))

    @classmethod
    def load(cls, path: Path) -> Answer:
        """The inverse of `save`."""
        data = json.loads(path.read_text(encoding="utf-8"))
        parts = [Part(**{**p, "found": Estimate(**p["found"]), "by_seed": tuple(p["by_seed"])}) for p in data["parts"]]
        return cls(**{**data, "parts": tuple(parts), **{k: tuple(data[k]) for k in ("arms", "seeds")}})


def table(answers: Sequence[Answer]) -> str:
    """The one table, by number."""
    return markdown([answer.row() for answer in sorted(answers, key=lambda answer: answer.number)])


def share_difference(before: Estimate, after: Estimate) -> Estimate:
    """after - before of two independent shares with Wilson intervals (Newcombe 1998, method 10)."""
    value = after.value - before.value
    low = value - math.hypot(after.value - after.low, before.high - before.value)
    high = value + math.hypot(after.high - after.value, before.value - before.low)
    return Estimate(value, low, high, before.n + after.n)


def beside(part: Part) -> Part:
    """The same, reported only."""
    return replace(part, decides=False)
