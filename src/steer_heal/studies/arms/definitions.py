"""An arm is a name and options of `python -m steer_heal.run`; the built-in ones, and those a user types.

Knows nothing of processes and run folders.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steer_heal.config import RunConfig
from steer_heal.errors import InputError
from steer_heal.run import parsed

RESERVED = ("--seed", "--out", "--quiet", "--resume")
"""Options that the arms command sets itself."""


@dataclass(frozen=True)
class Arm:
    """A name, and the options in which its runs differ from the default run."""

    name: str
    options: tuple[str, ...] = ()

    def config(self, seed: int, common: Sequence[str] = ()) -> RunConfig:
        """The configuration of one run, checked: `common` options first, the arm's own win over them.

        Raises InputError for options that `python -m steer_heal.run` does not take.
        """
        arguments = (*common, *self.options)
        for option in arguments:
            if option.split("=")[0] in RESERVED:
                raise InputError(f"arm {self.name!r}: {option.split('=')[0]} is set by the arms command; leave it out")
        try:
            return parsed([*arguments, "--seed", str(seed)], "python -m steer_heal.run").config().resolved()
        except InputError as problem:
            raise InputError(f"arm {self.name!r}: {problem}") from problem

    @property
    def command(self) -> str:
        """The arm as a user types it, without seed and folder."""
        return shlex.join(("python", "-m", "steer_heal.run", *self.options))


WATCH = ("--gate", "watch")
"""A control shows what its method does: nothing of it is taken back."""

OPEN = ("--targets", "tokens", "--filter", "repetition", "--doses", "1.0", "1.5")

BUILT_IN: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("default", ("--reg", "kl_rev")),
        Arm("nll", ("--reg", "nll", *WATCH)),
        Arm("nll-gated", ("--reg", "nll")),
        Arm("mean-kl", ("--reg", "kl_rev", "--kl-agg", "mean", *WATCH)),
        Arm("unsteered", ("--reg", "kl_rev", "--vector", "none", *WATCH)),
        Arm("random", ("--reg", "kl_rev", "--vector", "random", *WATCH)),
        Arm("shuffled", ("--reg", "kl_rev", "--pairs", "shuffled", *WATCH)),
        Arm("tokens", ("--reg", "kl_rev", "--targets", "tokens")),
        Arm("open-nll", ("--reg", "nll", *OPEN, *WATCH)),
        Arm("open-kl", ("--reg", "kl_rev", *OPEN, *WATCH)),
    )
}
"""Main job, no barrier (watched and gated), mean instead of rmse; three controls; sampled tokens instead of a teacher,
and such with doses past the knee and without a coherence filter."""

DEFAULT_ARMS = ("default", "nll", "tokens", "unsteered", "random", "shuffled")


def parse_arm(text: str) -> Arm:
    """`NAME=OPTIONS`, options as in a shell. Raises InputError for a name that makes no folder, or broken quotes."""
    name, sign, options = text.partition("=")
    if not sign or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(f'arm {text!r}: give NAME="--option value ...", the name of letters, digits, dots and dashes')
    try:
        return Arm(name, tuple(shlex.split(options)))
    except ValueError as problem:
        raise InputError(f"arm {name!r}: options {options!r} cannot be read ({problem}): close the quotes") from problem


def select(names: Sequence[str], own: Sequence[str] = ()) -> tuple[Arm, ...]:
    """The arms of a command in order: those named, then the user's own that no name asked for.

    A user's own arm replaces a built-in one of the same name. Raises InputError for a name that nothing defines and
    for an arm that is given twice.
    """
    typed = [parse_arm(text) for text in own]
    known = {**BUILT_IN, **{arm.name: arm for arm in typed}}
    for name in names:
        if name not in known:
            raise InputError(f'arm {name!r} is none of {", ".join(known)}: define it with --arm {name}="--option ..."')
    wanted = [*names, *(arm.name for arm in typed if arm.name not in names)]
    twice = sorted({name for name in wanted if wanted.count(name) > 1})
    if twice or not wanted:
        raise InputError(f"arm {twice[0]!r} is given twice: name it once" if twice else "no arm: name at least one")
    return tuple(known[name] for name in wanted)
