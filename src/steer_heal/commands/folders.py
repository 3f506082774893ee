"""Run folders as the commands read them, whole or refused with one line; and what a run handed over.

Knows nothing of how a run is made. Torch is imported only where a model, an adapter or a vector is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from steer_heal.errors import InputError
from steer_heal.ledger import Ledger
from steer_heal.model.names import check_name
from steer_heal.reading import from_json, reachable, read_bytes

if TYPE_CHECKING:
    from steer_heal.healing.bake import AdapterStack
    from steer_heal.model import LM
    from steer_heal.steering import SteeringVector

LOADING = ("dtype", "load_in", "device", "attn_implementation", "temperature", "top_p")
"""Options of a run that its model is loaded with; not its leave to run code, which only the user gives."""
NEEDED = {"start": ("model", "trait"), "baseline": ("base",), "end": ("verdict", "best_round", "folded", "seconds")}


def check_folder(folder: str | Path) -> None:
    """Raises InputError where there is no such folder."""
    if not reachable(folder).is_dir():
        raise InputError(f"run folder {str(folder)!r} does not exist: give one, such as those under out/")


def check_export(folder: str | Path) -> None:
    """Raises InputError where there is no such folder."""
    if not reachable(folder).is_dir():
        raise InputError(f"folder {str(folder)!r} does not exist: give one that steer-heal export wrote")


def check_run_or_model(name: str) -> None:
    """Raises InputError for what is no run folder and can be no model."""
    if not is_run(reachable(name)):
        check_name(name)


def card_data(path: Path) -> dict:
    """What a model card tells the hub; nothing where there is none, or one of another make."""
    from huggingface_hub import RepoCard
    from yaml import YAMLError

    if not path.is_file():
        return {}
    try:
        return RepoCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, YAMLError):  # somebody else's file, of which nothing hangs on this
        return {}


def is_run(folder: Path) -> bool:
    """A run has events, or rounds; a model folder has neither."""
    return (folder / "events.jsonl").exists() or (folder / "rounds").is_dir()


def open_run(folder: str | Path) -> Ledger:
    """A run folder whose configuration and events can be read. Raises InputError, which names the damaged file."""
    check_folder(folder)
    path = reachable(folder)
    if (path / "config.json").is_file():
        read_object(path / "config.json")
    ledger = Ledger.open(path)
    ledger.check_seal()
    events = path / "events.jsonl"
    if not events.is_file():
        raise InputError(f"run folder {str(folder)!r} has no events.jsonl: the run did not start, or the file was lost")
    for number, line in enumerate(_text(events).split("\n"), 1):
        if line:
            found = _json(line, f"{events}, line {number}")
            if not {"stage", "round"} <= found.keys():
                raise InputError(f"{events}, line {number}: no event of a run (no stage): restore the file")
    return ledger


def finished_run(folder: str | Path) -> Ledger:
    """A run folder with an end. Raises InputError for an unfinished or damaged one."""
    ledger = open_run(folder)
    for stage, keys in NEEDED.items():
        found = ledger.events(stage)
        if not found:
            raise InputError(f"run {str(folder)!r} is not finished (no {stage!r} event): wait for it, or run it again")
        if missing := next((key for key in keys if key not in found[-1]), None):
            raise InputError(
                f"{ledger.folder / 'events.jsonl'}: the {stage} event has no {missing!r}: restore the file"
            )
    folded = found[-1]["folded"]
    if not isinstance(folded, list) or not all(type(number) is int and number >= 0 for number in folded):
        raise InputError(f"{ledger.folder / 'events.jsonl'}: folded {folded!r} are no rounds: restore the file")
    return ledger


@contextmanager
def complete(ledger: Ledger) -> Iterator[None]:
    """Within it a figure that the run's events lack is an InputError that says so."""
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as problem:  # whatever pages and tables make of figures that are of another kind
        raise InputError(
            f"{ledger.folder / 'events.jsonl'}: an event lacks {problem}: damaged, or written by another version"
        ) from problem


def read_object(path: Path) -> dict:
    """A JSON file that holds an object. Raises InputError."""
    return _json(_text(path), str(path))


def runs_in(folders: Sequence[str]) -> list[Path]:
    """Run folders among those given; a folder that is none but holds runs stands for all finished ones in it."""
    found: list[Path] = []
    for name in folders:
        path = reachable(name)
        if not path.is_dir() or (path / "config.json").is_file():
            found.append(path)
            continue
        inside = sorted(p.parent for p in path.glob("*/events.jsonl") if _ended(p))
        if not inside:
            raise InputError(f"{name!r} is no run folder and holds no finished run: give run folders")
        found += inside
    return list(dict.fromkeys(found))


def load_model(
    ledger: Ledger, device: str | None = None, trust_remote_code: bool = False, full_weights: bool = False
) -> LM:
    """The original model of a run, loaded as the run did, on another device if one is named, not quantised if asked."""
    from steer_heal import model as models

    name = ledger.events("start")[-1]["model"]
    options = {key: ledger.config[key] for key in LOADING if key in ledger.config}
    if device is not None:
        options["device"] = device
    if full_weights:
        options["load_in"] = None
    return models.load(name, trust_remote_code=trust_remote_code, **options)


def folded_rounds(ledger: Ledger, number: int | None = None) -> list[int]:
    """The rounds whose adapters make a student: the run's result, or that of round `number`.

    Raises InputError when no round stands, or there is none of this number.
    """
    end = ledger.events("end")[-1]
    if number is None:
        if end["best_round"] is None:
            raise InputError(
                f"run {str(ledger.folder)!r} ended as {end['verdict']}: no round stands, its result is the original "
                "model"
            )
        return end["folded"]
    stands = {e["round"]: e["stands"] for e in ledger.events("gate")}
    if number not in stands:
        trained = ", ".join(map(str, stands)) or "none"
        raise InputError(f"run {str(ledger.folder)!r} trained no round {number}: it has {trained}")
    return [*(n for n, stood in stands.items() if n < number and stood), number]


def fold_result(ledger: Ledger, lm: LM, number: int | None = None) -> AdapterStack:
    """A student of the run, its result unless a round is named, folded into its model.

    Raises InputError when there is none, or an adapter is missing, damaged or made for another model.
    """
    from steer_heal.healing.adapter import Adapter
    from steer_heal.healing.bake import AdapterStack

    ledger.check_seal(weights=True)
    stack, rounds = AdapterStack(lm.model), folded_rounds(ledger, number)
    for one in rounds:
        stack.push(Adapter.load(_round_folder(ledger, one) / "adapter"))
    return stack


def vector_of(ledger: Ledger, number: int = 0) -> SteeringVector:
    """The steering vector of a round. Raises InputError when it is missing."""
    from steer_heal.steering import SteeringVector

    ledger.check_seal(weights=True)
    return SteeringVector.load(_round_folder(ledger, number) / "vector.safetensors")


def _round_folder(ledger: Ledger, number: int) -> Path:
    return ledger.folder / "rounds" / f"{number:02d}"


def _ended(events: Path) -> bool:
    return '"stage": "end"' in events.read_text(encoding="utf-8", errors="replace")


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except ValueError as problem:
        raise InputError(f"{path}: cannot be read ({problem}): restore the file") from problem


def _json(text: str, place: str) -> dict:
    try:
        found = from_json(text)
    except ValueError as problem:
        raise InputError(f"{place}: damaged, not valid JSON ({problem}): restore the file") from problem
    if not isinstance(found, dict):
        raise InputError(f"{place}: damaged, no JSON object: restore the file")
    return found
