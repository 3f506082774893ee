"""The ledger of a run in the processes that do not own its folder: the first one has it, nothing of theirs stays.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from steer_heal.ledger.files import plain
from steer_heal.ledger.run_folder import SCHEMA_VERSION, Ledger
from steer_heal.processes import first, told


class Follower(Ledger):
    """A ledger in a folder that is gone with the process; `shown` is the run's own, which the first process has."""

    def __init__(self, shown: Path, config: Mapping):
        self._place = TemporaryDirectory(prefix="steer_heal-")
        super().__init__(Path(self._place.name))
        self.shown = shown
        self.write_json("config.json", {"schema_version": SCHEMA_VERSION, **config})
        (self.folder / "rounds").mkdir()

    def part(self, name: str, config: Mapping) -> Ledger:
        """A follower of a part of the run."""
        return Follower(self.shown / name, plain(config))

    @contextmanager
    def round_folder(self, round: int) -> Iterator[Path]:
        """A folder to fill, which nobody keeps."""
        with TemporaryDirectory(dir=self.folder) as folder:
            yield Path(folder)

    def settle(self) -> None:
        """The first process seals the run."""


def led(make: Callable[[], Ledger]) -> Ledger:
    """The ledger that `make` gives in the first process; in the others one that follows it."""
    ledger = make() if first() else None
    shown, config = told(lambda: (ledger.shown, ledger.config))
    return ledger or Follower(shown, config)
