"""The console of all that is printed: texts are texts, whatever signs of markup or control characters they hold.

Knows nothing of what is shown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from steer_heal.errors import printable


class Terminal(Console):
    """A console without markup; a control character in a text is shown and does nothing.

    `width`: columns where there is no terminal.
    """

    def __init__(self, width: int = 120, **options):
        super().__init__(highlight=False, markup=False, **options)
        if not self.is_terminal:
            self.width = width

    def on_broken_pipe(self) -> None:
        """Nobody reads any more, as behind `| head -1`: nothing is shown, and what works goes on to its end."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments as rich makes them; only its own control codes are codes."""
        for one in super().render(renderable, options):
            yield one if one.control else Segment(printable(one.text), one.style)
