"""Colours of the report: one per kind of model in every picture and text, in a light and a dark rendering.

Knows nothing of runs. Kinds are also told apart by marker and line, so that no reader depends on colour.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Theme:
    """Colours as `#rrggbb`: of the models, of text, of quiet lines, and of the paper that a picture lies on."""

    base: str
    steered: str
    healed: str
    prompted: str
    control: str
    text: str
    muted: str
    line: str
    paper: str

    @property
    def colours(self) -> dict[str, str]:
        """By name, for a style sheet."""
        return asdict(self)


LIGHT = Theme(
    base="#6b7280", steered="#cf3e53", healed="#12835f", prompted="#2f6fd0", control="#8a5aa8", text="#1f2430",
    muted="#626b78", line="#d5d9e0", paper="#ffffff",
)  # fmt: skip
DARK = Theme(
    base="#9aa3b0", steered="#ff7d8a", healed="#4cc99a", prompted="#7fb2ff", control="#c79be6", text="#e4e7ec",
    muted="#9aa3b0", line="#3a414d", paper="#1a1e26",
)  # fmt: skip


def ramp(i: int, n: int) -> float:
    """Opacity of round i of n: from pale for early rounds to full for the last."""
    return 1.0 if n <= 1 else 0.3 + 0.7 * i / (n - 1)


def darkened(drawn: str) -> str:
    """An SVG drawn in light colours, in dark ones."""
    swap = dict(zip(LIGHT.colours.values(), DARK.colours.values(), strict=True))
    return re.sub("|".join(swap), lambda found: swap[found[0]], drawn)
