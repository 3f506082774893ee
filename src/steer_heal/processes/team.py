"""What the processes of a launcher do together: share work out, sum gradients, hear what the first one has.

Knows nothing of models and runs. Without a launcher, and outside `together`, there is one process, and nothing here
does anything.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from steer_heal.errors import InputError

if TYPE_CHECKING:
    from torch import nn

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: longer than any single batch takes."""
T = TypeVar("T")
Job = TypeVar("Job")


class LostError(InputError):
    """Another process has ended or does not answer."""


@dataclass(frozen=True)
class _Team:
    rank: int
    size: int
    words: Any
    """Group of torch.distributed for all but gradients; on the CPU, so that it takes none of an accelerator's memory.
    """
    alike: bool
    """Whether every process does all the work, side by side, as a model needs of which each has a share."""


_team: _Team | None = None
_says: bool | None = None
"""Whether this process tells the user of the failure that ended the team; None before there was one."""


def launched() -> int:
    """Processes that the launcher (`accelerate launch`, `torchrun`) started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """This process's number among those that work together now, from 0."""
    return _team.rank if _team else 0


def count() -> int:
    """Processes that share work out now."""
    return _team.size if _team and not _team.alike else 1


def alike() -> bool:
    """Whether all processes do the same work now, side by side."""
    return _team is not None and _team.alike


def first() -> bool:
    """Whether this is the process that owns the run folder and the screen."""
    return rank() == 0


def says(problem: BaseException) -> str | None:
    """What to put before a failure that is told to the user, such as `rank 1 of 2: `; None where another tells it.

    One process tells it: the one that failed first; as long as they have not met, the first one.
    """
    if launched() == 1:
        return ""
    if _says is None:
        return "" if os.environ.get("RANK") == "0" else None
    return f"rank {getattr(problem, 'rank', os.environ['RANK'])} of {launched()}: " if _says else None


@contextmanager
def together(alike: bool = False) -> Iterator[None]:
    """Inside, the launcher's processes are one; each has to call the same functions of this file in the same order.

    alike: no work is shared out, all do all of it; the first one has the folder and the screen.

    Raises InputError when they do not meet, LostError when one of them ends before its time.
    """
    global _team, _says
    if _team is not None or launched() == 1:
        yield
        return
    import torch.distributed as dist

    met = dist.is_initialized()  # by the user, to shard a model
    store = dist.distributed_c10d._get_default_store() if met else _meet()
    words = dist.new_group(backend="gloo", timeout=PATIENCE)
    _team = _Team(dist.get_rank(), dist.get_world_size(), words, alike)
    try:
        yield
    except BaseException:
        try:
            _says = store.add("failed", 1) == 1
        except RuntimeError:
            _says = False  # the store was the first process's, which is gone
        raise
    finally:
        _team = None
        if not met:
            dist.destroy_process_group()


def _meet() -> Any:
    """Start torch.distributed; returns the store that all share. Each process takes the card of its local number."""
    import torch
    import torch.distributed as dist

    here = int(os.environ.get("LOCAL_RANK") or 0)
    cards = torch.cuda.device_count()
    if cards:
        torch.cuda.set_device(here % cards)
    # NCCL refuses two processes on one card.
    own_card = 0 < int(os.environ.get("LOCAL_WORLD_SIZE") or launched()) <= cards
    try:
        store, number, size = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
        backend = "cpu:gloo,cuda:nccl" if own_card else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as problem:
        raise InputError(f"the {launched()} processes of the launcher do not meet ({problem}): see to it") from problem
    return store


def told(give: Callable[[], T]) -> T:
    """What the first process's `give` returns, on all; that of the others is not called."""
    if _team is None:
        return give()
    import torch.distributed as dist

    sent = [_packed(give()) if _team.rank == 0 else None]
    with _talking():
        dist.broadcast_object_list(sent, src=0, group=_team.words)
    return pickle.loads(sent[0])


def each(jobs: Sequence[Job], work: Callable[[Job], T]) -> list[T]:
    """`work(job)` of every job in order, done by the processes in turn and known to all; tensors come on the CPU.

    What one process raises all raise. With one process, or where all do the same, it is the loop.
    """
    global _team
    if _team is None or _team.alike:
        return [work(job) for job in jobs]
    team = _team
    try:
        _team = None  # what the work calls is for this process alone
        mine: object = [work(job) for job in jobs[team.rank :: team.size]]
    except Exception as problem:
        problem.rank = team.rank
        mine = problem
    finally:
        _team = team
    found = _gathered(mine)
    for number, share in enumerate(found):
        if isinstance(share, Exception):
            raise mine if number == team.rank else share
    return [found[i % team.size][i // team.size] for i in range(len(jobs))]


def spread(rows: Sequence[Job], work: Callable[[Sequence[Job]], Sequence[T]]) -> list[T]:
    """A result per row in order; `work` gives those of some rows, every process has its share of them."""
    n = count()
    out: list = [None] * len(rows)
    shares = each([rows[k::n] for k in range(min(n, len(rows)))], work)
    for k, found in enumerate(shares):
        out[k::n] = found
    return out


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Make each gradient its sum over the processes, the same bits on all; the parameters are on one device."""
    if _team is None or _team.alike:
        return
    import torch
    import torch.distributed as dist

    for parameter in parameters:
        if parameter.grad is None:  # this process had nothing to learn from
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters])
    with _talking():
        dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(part.view_as(parameter))


def _gathered(mine: object) -> list:
    """What every process has, by its number."""
    import torch.distributed as dist

    found: list = [None] * count()
    with _talking():
        dist.all_gather_object(found, _packed(mine), group=_team.words)
    return [pickle.loads(content) for content in found]


class _Pickler(pickle.Pickler):
    """Sends tensors as ones of the CPU: another process's card has another number."""

    def reducer_override(self, value: object) -> object:
        import torch

        return value.cpu().__reduce_ex__(4) if isinstance(value, torch.Tensor) and not value.is_cpu else NotImplemented


def _packed(value: object) -> bytes:
    def pickled(value: object) -> bytes:
        _Pickler(content := io.BytesIO(), protocol=4).dump(value)
        return content.getvalue()

    if not isinstance(value, Exception):
        return pickled(value)
    try:
        pickle.loads(pickled(value))
    except Exception:  # an exception that cannot be sent is sent in words
        words = RuntimeError(f"{type(value).__name__}: {value}")
        words.rank = value.rank
        value = words
    return pickled(value)


@contextmanager
def _talking() -> Iterator[None]:
    """Raises LostError for what torch says when another process is gone."""
    try:
        yield
    except RuntimeError as problem:
        raise LostError(f"another of the {launched()} processes has ended or does not answer: see what it said") from (
            problem
        )
