"""The material of a study: the original model, what a finished run's round kept and measured, and a heal of it.

Knows nothing of what is then compared.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from steer_heal import model as models
from steer_heal.config import RunConfig
from steer_heal.config.leave import check_leave
from steer_heal.errors import InputError
from steer_heal.evaluation import Metrics
from steer_heal.healing import HealConfig, Healed, ReferenceStates, heal
from steer_heal.healing.adapter import Adapter
from steer_heal.healing.bake import AdapterStack
from steer_heal.ledger import Ledger
from steer_heal.model import LM
from steer_heal.model.memory import choose_threads
from steer_heal.texts.completion import Completion, load_completions
from steer_heal.trait import Trait, default_trait


@dataclass(frozen=True)
class Material:
    """The original model with an empty stack, its trait, the run's options, and rows to train on (none yet: empty)."""

    config: RunConfig
    lm: LM
    trait: Trait
    stack: AdapterStack
    rows: tuple[Completion, ...] = ()


@contextmanager
def folded(stack: AdapterStack, adapters: Sequence[Adapter], scale: float = 1.0) -> Iterator[None]:
    """Inside the block the model is what it was + scale * the adapters' sum."""
    before = len(stack)
    try:
        for adapter in adapters:
            stack.push(adapter, scale)
        yield
    finally:
        while len(stack) > before:
            stack.pop()


@contextmanager
def healed(
    lm: LM,
    stack: AdapterStack,
    rows: Sequence[Completion],
    config: HealConfig,
    references: Mapping[str, ReferenceStates] | None = None,
    **options: object,
) -> Iterator[Healed]:
    """Inside the block the model is healed on the rows; see `heal` for what is given, yielded and raised."""
    found = heal(lm, rows, config, references or {}, **options)
    with folded(stack, [found.adapter]):
        yield found


def load_material(config: RunConfig, rows: Sequence[Completion] = ()) -> Material:
    """Load the model and trait that a configuration names."""
    names = ("dtype", "load_in", "device", "attn_implementation", "trust_remote_code", "temperature", "top_p")
    lm = models.load(config.model_name, **{name: getattr(config, name) for name in names})
    choose_threads(lm.model, config.threads)
    trait = Trait.load(config.trait or default_trait(config.model_name))
    return Material(config, lm, trait, AdapterStack(lm.model), tuple(rows))


def config_of(ledger: Ledger) -> RunConfig:
    """The options of a run, as far as this version has them; one of before there was a teacher learnt from tokens."""
    known = {f.name for f in fields(RunConfig)}
    check_leave(ledger.config, {}, ledger.folder)
    recorded = {k: tuple(v) if isinstance(v, list) else v for k, v in ledger.config.items() if k in known}
    return RunConfig(**{"targets": "tokens", **recorded})


def of_run(run_dir: Path, number: int = 0) -> Material:
    """The original model of a run and the completions that its round `number` kept.

    The rows of a later round were said by that round's student; the study heals the ORIGINAL model on them all the
    same. Raises InputError for a folder without this round or without kept completions.
    """
    ledger = Ledger.open(run_dir)
    config = config_of(ledger)
    path = Path(run_dir) / "rounds" / f"{number:02d}" / "completions.jsonl"
    if not path.is_file():
        raise InputError(f"{str(run_dir)!r} has no round {number} with completions: name a round it finished")
    rows = [c for c in load_completions(path) if c.kept]
    if not rows:
        raise InputError(f"round {number} of {str(run_dir)!r} kept no completion: there is nothing to train on")
    return load_material(config, rows)


def read_round(folder: Path) -> tuple[Metrics, Metrics]:
    """`steered` and `healed` of a round's metrics.json. Raises InputError when the file is not one."""
    path = folder / "metrics.json"
    try:
        data = json.loads(path.read_text("utf-8"))
        return Metrics.from_dict(data["steered"]), Metrics.from_dict(data["healed"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise InputError(f"{path}: not the metrics of a round ({problem}): make the run again") from problem


def split_by_prompt(rows: Sequence[Completion], share: float, seed: int) -> tuple[list[Completion], list[Completion]]:
    """(training rows, held-out rows): whole prompts are held out until they hold `share` of the rows.

    Raises InputError when either side would be empty.
    """
    prompts = list(dict.fromkeys(row.prompt_ids for row in rows))
    random.Random(seed).shuffle(prompts)
    held: set[tuple[int, ...]] = set()
    for prompt in prompts:
        if sum(row.prompt_ids in held for row in rows) >= share * len(rows):
            break
        held.add(prompt)
    train = [row for row in rows if row.prompt_ids not in held]
    heldout = [row for row in rows if row.prompt_ids in held]
    if not train or not heldout:
        raise InputError(f"{len(rows)} rows over {len(prompts)} prompts cannot be split {share:.0%}: give more rows")
    return train, heldout
