"""What a finished run's folder holds beside its events, read whole or refused with one line that names the file.

Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics
from steer_heal.ledger import Ledger
from steer_heal.reading import from_json, read_text
from steer_heal.report.headline import event
from steer_heal.texts.coherence import CoherenceFilter
from steer_heal.texts.completion import Completion, load_completions

LEFT_NO_FOLDER = "diverged"
"""Verdict of a round whose heal broke off: what it left is in `rounds/NN.diverged/`."""


@dataclass(frozen=True)
class Measured:
    """The steered and the healed model of one round, with all their replies."""

    number: int
    steered: Metrics
    healed: Metrics


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises InputError for a file that is missing or is not what the run wrote."""
    try:
        yield
    except InputError:  # names the line already
        raise
    except OSError as problem:
        raise InputError(f"{path}: cannot be read ({problem.strerror}): restore the file") from problem
    except (ValueError, TypeError, LookupError, AttributeError) as problem:
        raise InputError(f"{path}: damaged ({problem}): restore the file") from problem


def round_folders(ledger: Ledger) -> dict[int, Path]:
    """By number the folders of the rounds that were judged. Raises InputError for a missing one."""
    judged = [e["round"] for e in ledger.events("verdict") if e["verdict"] != LEFT_NO_FOLDER]
    return {number: round_folder(ledger, number) for number in judged}


def round_folder(ledger: Ledger, number: int) -> Path:
    """The folder of a round. Raises InputError when it is missing."""
    path = ledger.folder / "rounds" / f"{number:02d}"
    if not path.is_dir():
        raise InputError(f"{path} is missing: restore that folder of the run")
    return path


def base_of(ledger: Ledger) -> Metrics:
    """The original model as it was measured."""
    return Metrics.load(ledger.folder / "base.json")


def measured(ledger: Ledger, number: int) -> Measured:
    """A round's models. Raises InputError when its metrics are missing or damaged."""
    path = round_folder(ledger, number) / "metrics.json"
    with reading(path):
        data = from_json(read_text(path))
        return Measured(number, Metrics.from_dict(data["steered"]), Metrics.from_dict(data["healed"]))


def shown_round(ledger: Ledger) -> Measured | None:
    """The result's round, or else the last measured one; None where no round came to a measurement."""
    rounds, best = [e["round"] for e in ledger.events("evaluate")], event(ledger, "end")["best_round"]
    return measured(ledger, rounds[-1] if best is None else best) if rounds else None


def completions(ledger: Ledger, number: int) -> list[Completion]:
    """All texts of a round's walk. Raises InputError when the file is missing or damaged."""
    path = round_folder(ledger, number) / "completions.jsonl"
    with reading(path):
        return load_completions(path)


def filter_of(ledger: Ledger) -> CoherenceFilter:
    """The filter as it judged the run's texts."""
    return CoherenceFilter.from_dict(event(ledger, "calibrate"))


def environment_of(ledger: Ledger) -> dict:
    """What the run was made with. Raises InputError when the file is missing or damaged."""
    path = ledger.folder / "environment.json"
    with reading(path):
        found = from_json(read_text(path))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        return found
