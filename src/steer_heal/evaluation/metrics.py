"""`Metrics`: what one evaluation measured, row by row, with its aggregates; saved as JSON.

Knows nothing of how it was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from steer_heal.arguments import checked
from steer_heal.errors import InputError
from steer_heal.evaluation.choices import ChoiceRow
from steer_heal.evaluation.text import distinct_ngrams, mean
from steer_heal.evaluation.vignettes import VignetteRow, as_written, contrast, human_agreement, profile
from steer_heal.ledger.files import write_whole
from steer_heal.reading import from_json, read_text
from steer_heal.shown import brief, table


@dataclass(frozen=True)
class ReplyRow:
    """One sampled reply. `trait`, `sentence_ok`, `reply_ok` are the checker's (None without one).

    `nll`: under the scorer, in nats per token. `nll_other`: the same behind another reply's prompt; None also where all
    prompts are equal.
    """

    prompt: str
    text: str
    words: int
    finished: bool
    loop: bool
    trait: float | None = None
    sentence_ok: float | None = None
    reply_ok: bool | None = None
    nll: float | None = None
    nll_other: float | None = None

    @property
    def fit(self) -> float | None:
        """How much better the reply fits its own prompt than another one, in nats per token; 0: it fits any alike."""
        return None if self.nll is None or self.nll_other is None else self.nll_other - self.nll


@dataclass(frozen=True)
class AnchorRow:
    """One exact question, answered greedily."""

    id: str
    reply: str
    right: bool


@dataclass(frozen=True)
class CategoryScore:
    """Forced choice over the items of a category.

    Attributes:
        probability: mean over items of the trait choice's debiased probability, normalised over the choices.
        nats: log(probability): still moves where a share near 0 or 1 no longer shows it.
        log_odds: mean over items of the debiased log-odds, in nats. mass: mean answer mass. n: number of items.
    """

    n: int
    probability: float
    nats: float
    log_odds: float
    mass: float


@dataclass(frozen=True)
class Metrics:
    """One evaluation of one model state on one set of items.

    Attributes:
        trait, system, dose: what was asked of the model and how.
        items_key: hash of items, prompts, lengths and seed; only metrics with the same key may be compared.
        items, off_target, vignettes, replies, anchors: the rows.
        held_out: a sample of the items in every held-out choice template, which stands as their category.
        vignette_up, vignette_down: foundations that the trait names more or less often.
        token_entropy: entropy of all sampled tokens in nats.
    """

    trait: str
    system: str
    dose: float
    items_key: str
    items: tuple[ChoiceRow, ...]
    off_target: tuple[ChoiceRow, ...] = ()
    replies: tuple[ReplyRow, ...] = ()
    anchors: tuple[AnchorRow, ...] = ()
    token_entropy: float | None = None
    vignettes: tuple[VignetteRow, ...] = ()
    vignette_up: tuple[str, ...] = ()
    vignette_down: tuple[str, ...] = ()
    held_out: tuple[ChoiceRow, ...] = ()

    __repr__ = brief

    def _repr_html_(self) -> str:
        figures = [(name, value) for name, value in self.summary().items() if isinstance(value, int | float)]
        return table(("figure", "value"), figures, f"{self.trait}, dose {self.dose:g}")

    @property
    def target(self) -> CategoryScore:
        """Forced choice over all items of the trait."""
        return score(self.items)

    @property
    def categories(self) -> dict[str, CategoryScore]:
        return by_category(self.items)

    @property
    def off_categories(self) -> dict[str, CategoryScore]:
        return by_category(self.off_target)

    @property
    def log_odds(self) -> float:
        """Mean debiased log-odds of the trait in nats."""
        return self.target.log_odds

    @property
    def held_out_log_odds(self) -> float | None:
        """The same in formats that no training text has; None where the trait has no such format."""
        return mean(row.log_odds for row in self.held_out)

    @property
    def answer_mass(self) -> float:
        """Mean probability on the allowed answers; stays high in broken models, so it is a floor only."""
        return score((*self.items, *self.off_target)).mass

    @property
    def order_gap(self) -> float:
        """Mean over items of the spread of the log-odds between orders, in nats: the bias that was averaged out."""
        return float(np.mean([max(row.by_order) - min(row.by_order) for row in self.items]))

    @property
    def vignette_contrast(self) -> float | None:
        """Mean over vignettes of the trait's foundations against each other, in nats (see `contrast`)."""
        if not (self.vignette_up or self.vignette_down):
            return None
        return mean(contrast(row, self.vignette_up, self.vignette_down) for row in self.vignettes)

    @property
    def vignette_wrong(self) -> float | None:
        """Mean log-odds of "yes, this is wrong" over all vignettes, in nats; None where it was not asked."""
        return mean(row.wrong for row in self.vignettes)

    @property
    def think_closed(self) -> float | None:
        """Share of the questions in which the model closed its thinking within its tokens; None without thinking."""
        return mean(row.closed for row in (*self.items, *self.off_target, *self.vignettes))

    @property
    def free_trait(self) -> float | None:
        """Mean of the checker's trait over the replies that take a stance."""
        return mean(row.trait for row in self.replies)

    @property
    def decided(self) -> float | None:
        """Share of replies in which the checker found a stance; None without a checker."""
        return mean(None if row.sentence_ok is None else float(row.trait is not None) for row in self.replies)

    @property
    def sentence_ok(self) -> float | None:
        """Mean over replies of the share of sound sentences; None without a checker."""
        return mean(row.sentence_ok for row in self.replies)

    @property
    def reply_ok(self) -> float | None:
        """Share of replies that are sound as a whole; None without a checker."""
        return mean(None if row.reply_ok is None else float(row.reply_ok) for row in self.replies)

    @property
    def nll(self) -> float | None:
        """Mean over replies of the per-token nll under the scorer, in nats; None without a scorer."""
        return mean(row.nll for row in self.replies)

    @property
    def pair_fit(self) -> float | None:
        """Mean over replies of how much better they fit their own prompt than another, in nats per token."""
        return mean(row.fit for row in self.replies)

    @property
    def perplexity(self) -> float | None:
        return None if self.nll is None else math.exp(self.nll)

    @property
    def loop_rate(self) -> float | None:
        return mean(float(row.loop) for row in self.replies)

    @property
    def finished_rate(self) -> float | None:
        return mean(float(row.finished) for row in self.replies)

    @property
    def empty_rate(self) -> float | None:
        """Share of replies without a word: all of a model's whose logits are not finite."""
        return mean(float(row.words == 0) for row in self.replies)

    @property
    def words(self) -> float | None:
        """Mean reply length in words."""
        return mean(float(row.words) for row in self.replies)

    @property
    def distinct4(self) -> float | None:
        """Distinct / all word 4-grams over the replies to all prompts."""
        return distinct_ngrams(row.text for row in self.replies)

    @property
    def anchors_right(self) -> float | None:
        return mean(float(row.right) for row in self.anchors)

    def summary(self) -> dict[str, object]:
        """All aggregates by name, plain numbers (None where there was nothing to measure)."""
        chosen = ("log_odds", "answer_mass", "order_gap")
        judged = ("free_trait", "decided", "sentence_ok", "reply_ok", "nll", "perplexity", "pair_fit")
        shape = ("loop_rate", "finished_rate", "empty_rate", "words", "distinct4", "token_entropy")
        names = (*chosen, *judged, *shape, "anchors_right", "think_closed", "held_out_log_odds")
        return {
            **{name: getattr(self, name) for name in names},
            "target": asdict(self.target),
            "categories": {name: asdict(found) for name, found in self.categories.items()},
            "off_target": {name: asdict(found) for name, found in self.off_categories.items()},
            "held_out": {template: asdict(found) for template, found in by_category(self.held_out).items()},
            "vignettes": self.vignette_summary(),
        }

    def vignette_summary(self) -> dict[str, object] | None:
        """The figures of the vignettes, plain numbers; None without vignettes."""
        if not self.vignettes:
            return None
        human = human_agreement(self.vignettes)
        return {
            "n": len(self.vignettes),
            "contrast": self.vignette_contrast,
            "up": list(self.vignette_up),
            "down": list(self.vignette_down),
            "foundations": {name: asdict(found) for name, found in profile(self.vignettes).items()},
            "mass": mean(row.mass for row in self.vignettes),
            "as_written": as_written(self.vignettes),
            "wrong": self.vignette_wrong,
            "human": None if human is None else asdict(human),
        }

    def to_json(self) -> str:
        """One JSON object: the rows and, for readers, the summary."""
        return json.dumps({"summary": self.summary(), **asdict(self)}, indent=1, ensure_ascii=False)

    @checked
    def save(self, path: str | Path) -> None:
        """Write `to_json` in one step."""
        write_whole(Path(path), self.to_json().encode("utf-8"))

    @staticmethod
    def from_dict(data: dict) -> Metrics:
        """The inverse of `dataclasses.asdict`, also after JSON. Raises TypeError when the fields are not those."""
        kinds = {
            "items": ChoiceRow,
            "off_target": ChoiceRow,
            "held_out": ChoiceRow,
            "replies": ReplyRow,
            "anchors": AnchorRow,
            "vignettes": VignetteRow,
        }
        rows = {key: tuple(kind(**_tuples(row)) for row in data.get(key, ())) for key, kind in kinds.items()}
        return Metrics(**{**_tuples(data), **rows})

    @staticmethod
    def load(path: str | Path) -> Metrics:
        """The inverse of `save`. Raises InputError when the file is not one."""
        try:
            data = from_json(read_text(path))
            del data["summary"]
            return Metrics.from_dict(data)
        except InputError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise InputError(f"{path}: not saved metrics ({problem}): give a metrics.json of a run") from problem


def score(rows: Sequence[ChoiceRow]) -> CategoryScore:
    """Aggregate forced-choice rows (see `CategoryScore`)."""
    probability = float(np.mean([row.probability for row in rows]))
    return CategoryScore(
        n=len(rows),
        probability=probability,
        nats=math.log(max(probability, 1e-43)),
        log_odds=float(np.mean([row.log_odds for row in rows])),
        mass=float(np.mean([row.mass for row in rows])),
    )


def by_category(rows: Sequence[ChoiceRow]) -> dict[str, CategoryScore]:
    names = dict.fromkeys(row.category for row in rows)
    return {name: score([row for row in rows if row.category == name]) for name in names}


def _tuples(row: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
