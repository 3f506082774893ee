"""How results are shown in a notebook: a repr of one short line, figures as an HTML table, series as a small plot.

Knows nothing of what they mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from html import escape

LONGEST = 400
"""A repr stays under this many characters."""
INK = "#888"
COLOURS = ("#4c72b0", "#dd8452", "#55a868")


def brief(self: object) -> str:
    """`__repr__` of a dataclass: the fields that are not at their default, long values by their kind and size."""
    shown = [
        f"{one.name}={_value(getattr(self, one.name))}"
        for one in fields(self)
        if one.repr and not _is_default(one, getattr(self, one.name))
    ]
    text = f"{type(self).__name__}({', '.join(shown)})"
    return text if len(text) < LONGEST else f"{text[: LONGEST - 6]} ...)"


def _is_default(one: Field, value: object) -> bool:
    if isinstance(value, str | int | float | tuple | None) and one.default is not MISSING:
        return value == one.default
    return one.default_factory is not MISSING and isinstance(value, Collection) and not len(value)


def _value(value: object) -> str:
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:50]!r}..."
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int | None):
        return repr(value)
    if hasattr(value, "shape"):
        return f"<{type(value).__name__} {'x'.join(map(str, value.shape))}>"
    if isinstance(value, Collection):
        inside = list(value.values() if isinstance(value, Mapping) else value)
        if len(inside) <= 6 and all(isinstance(one, int | float | None) or len(str(one)) < 20 for one in inside):
            return str(value)
        return f"<{len(inside)} {type(inside[0]).__name__}>"
    words = str(value) if type(value).__str__ is not object.__str__ else ""
    return words if 0 < len(words) <= 60 else f"<{type(value).__name__}>"


def number(value: object) -> str:
    """A figure with three significant digits, nothing for None, other things as they are."""
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> str:
    """An HTML table; figures are shortened, texts escaped."""

    def line(kind: str, cells: Sequence[object]) -> str:
        return f"<tr>{''.join(f'<{kind}>{escape(number(cell))}</{kind}>' for cell in cells)}</tr>"

    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return f"<table>{caption}{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"


def plot(series: Mapping[str, Sequence[float]], labels: Sequence[object], about: str) -> str:
    """Lines over the same labels as an SVG of 320 by 150 pixels, from 0 to the largest value or 1."""
    top = max(1.0, *(value for values in series.values() for value in values))
    step = 260 / max(1, len(labels) - 1)

    def points(values: Sequence[float]) -> str:
        return " ".join(f"{40 + i * step:.1f},{110 - 90 * value / top:.1f}" for i, value in enumerate(values))

    parts = [f"<path d='M40 20V110H300' fill='none' stroke='{INK}'/>"]
    words: list[tuple[float, int, str, object, str]]
    words = [(170, 12, "middle", about, INK), (36, 114, "end", 0, INK), (36, 24, "end", top, INK)]
    for i, ((name, values), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        parts.append(f"<polyline points='{points(values)}' fill='none' stroke='{colour}' stroke-width='2'/>")
        words.append((40 + 100 * i, 142, "start", name, colour))
    words += [(40 + i * step, 124, "middle", x, INK) for i, x in enumerate(labels) if i % (len(labels) // 12 + 1) == 0]
    parts += [
        f"<text x='{x:g}' y='{y}' text-anchor='{anchor}' fill='{colour}'>{escape(number(word))}</text>"
        for x, y, anchor, word, colour in words
    ]
    return f"<svg width='320' height='150' font-size='10' font-family='sans-serif'>{''.join(parts)}</svg>"
