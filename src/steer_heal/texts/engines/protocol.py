"""`Engine`: rows in, token ids out; whoever deals rows out to several machines is an engine around another one.

Knows nothing of models and of how a token is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from steer_heal.shown import brief

if TYPE_CHECKING:
    from steer_heal.model import LM
    from steer_heal.steering import SteeringVector
    from steer_heal.texts.sampling import Sampling

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One reply to sample: token ids of its prompt, its dose, and its seed, None for the most probable token."""

    prompt_ids: Ids
    dose: float
    seed: int | None

    __repr__ = brief


@runtime_checkable
class Engine(Protocol):
    """What samples rows of one call together.

    `steers`: it samples under a dose. `check` raises InputError for a model that it cannot sample. `rows` says how many
    of so many tokens each (prompt and reply) it takes at once.
    """

    name: str
    steers: bool

    def check(self, lm: LM) -> None: ...

    def rows(self, lm: LM, tokens: int) -> int: ...

    def sample(
        self,
        lm: LM,
        rows: Sequence[Row],
        vector: SteeringVector | None,
        max_new_tokens: int,
        sampling: Sampling,
        tick: Callable[[int, int], None],
    ) -> list[Ids]:
        """The replies of the model as it is now, each up to and including its end token, in the order of the rows.

        Args:
            tick: called now and then with how many replies have ended and how many tokens there are.

        Raises:
            torch.OutOfMemoryError: too many rows; the caller asks again for fewer.
            Cut: Ctrl-C.
        """
        ...


class Cut(KeyboardInterrupt):
    """Ctrl-C while rows were sampled; `replies` has what each row had come to."""

    def __init__(self, replies: Sequence[Ids]):
        super().__init__("interrupted")
        self.replies = replies
