"""`Trait`: a persona pair with its contexts, prompts and evaluation items, read from one TOML file and checked.

Knows nothing of models, steering and training.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from steer_heal.errors import InputError

FOLDER = Path(__file__).parent / "traits"
"""Where the built-in traits lie."""

REVERSED = "-reversed"
FALLBACK = "care-over-authority"
CHOICE_TEMPLATE = "{prompt} answer with one word: {choices}."
CONTINUATION = "{prompt}"
"""Choice template of items whose choices go on from the prompt and are not named in it: for base models."""


@dataclass(frozen=True)
class Item:
    """A forced-choice item.

    Attributes:
        id: unique within its list; intervals are clustered by it.
        prompt: the question, without the choices.
        choices: the allowed answers, at least two.
        trait: those of the choices that count as the trait (usually one).
        category: off-target shifts and samples are grouped by it.
    """

    id: str
    prompt: str
    choices: tuple[str, ...]
    trait: tuple[str, ...]
    category: str = "all"

    def reversed(self) -> Item:
        """The same item with all other choices counting as the trait."""
        return replace(self, trait=tuple(choice for choice in self.choices if choice not in self.trait))


@dataclass(frozen=True)
class Anchor:
    """A task with a known answer.

    `check` says how a reply is compared with `answer`:

    - `exact`: equal but for case, blanks and a final full stop;
    - `contains`: contained in the reply, in that sense; `regex`: found in the reply;
    - `choice`: the first word of the reply, brackets and punctuation aside ("(b) because ..." chooses b);
    - `code`: the first fenced block (the whole reply without one) equals it but for blank lines and trailing blanks;
    - `function`: `answer` is `module:function`, called as function(prompt, reply) -> bool.
    """

    id: str
    prompt: str
    answer: str
    check: str = "exact"
    function: Callable[[str, str], bool] | None = field(default=None, repr=False, compare=False)

    def passes(self, reply: str) -> bool:
        """Whether a reply is right."""
        if self.check == "function":
            return bool(self.function(self.prompt, reply))
        if self.check == "regex":
            return re.search(self.answer, reply) is not None
        if self.check == "choice":
            words = re.findall(r"\w+", reply.casefold())
            return bool(words) and words[0] == self.answer.casefold()
        if self.check == "code":
            block = re.search(r"```[^\n]*\n(.*?)(?:```|\Z)", reply, re.DOTALL)
            return _code_lines(block[1] if block else reply) == _code_lines(self.answer)
        said, wanted = _plain(reply), _plain(self.answer)
        return wanted in said if self.check == "contains" else wanted == said


FOUNDATIONS = ("Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "Social Norms")
"""Categories of vignettes: six moral foundations, and what is merely unusual (Clifford et al. 2015)."""


@dataclass(frozen=True)
class Vignette:
    """A short scene in the second person; the model says which foundation it goes against.

    Attributes:
        id: intervals are clustered by it; it may come once per condition.
        text: the scene. foundation: the category it was written for, one of `FOUNDATIONS`.
        condition: a variant of the scene (such as seen in others, done oneself); empty for a single one.
        human: share of raters who chose each of `FOUNDATIONS`, summing to 1; None where nobody was asked.
    """

    id: str
    text: str
    foundation: str
    condition: str = ""
    human: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Judgement:
    """What a checker says of one reply.

    `sentence_ok`: share of its sentences that are sound, 0..1. `trait`: 0 (opposite pole) to 1 (trait), None where
    the reply takes no stance. `reply_ok`: the reply as a whole is sound.
    """

    sentence_ok: float
    trait: float | None
    reply_ok: bool


Checker = Callable[[str, str, bool], object]
"""(prompt, reply, finished) -> an object with the attributes of `Judgement`."""


@dataclass(frozen=True)
class Trait:
    """A trait as the method needs it.

    Attributes:
        name, description: for people; `name` ends in `-reversed` when the poles are swapped.
        pos, neg: system prompts of the trait and of its opposite; neutral: the one used everywhere else ("": none).
            Where the trait's texts have a `{persona}` slot, they are put there instead (see `persona`).
        contexts: user turns for extraction. prompts: user turns for training texts.
        eval_prompts: held-out user turns for free-text evaluation. replay_prompts: for the original model's own texts.
        choice_template: how an item is put to the model; `{choices}` are joined by " or "; "{prompt}" alone: each
            choice is a continuation of the prompt.
        items, off_target: forced-choice items of the trait, and of other matters that should not move.
        vignettes: scenes of which the model names the foundation they go against; vignette_up, vignette_down:
            foundations that the trait names more or less often, the others are off-target.
        vignette_agreement: yes / no question put after each vignette ("Is this wrong?"); empty: none.
        anchors: exact questions that should stay right.
        models: model names for which this trait is the default.
        checker: name `module:function` of the judge of free text, None without one.
    """

    name: str
    description: str
    pos: str
    neg: str
    neutral: str
    contexts: tuple[str, ...]
    prompts: tuple[str, ...]
    eval_prompts: tuple[str, ...]
    items: tuple[Item, ...]
    replay_prompts: tuple[str, ...] = ()
    off_target: tuple[Item, ...] = ()
    vignettes: tuple[Vignette, ...] = ()
    vignette_up: tuple[str, ...] = ()
    vignette_down: tuple[str, ...] = ()
    vignette_agreement: str = ""
    anchors: tuple[Anchor, ...] = ()
    models: tuple[str, ...] = ()
    choice_template: str = CHOICE_TEMPLATE
    checker: str | None = None
    is_reversed: bool = False
    check: Checker | None = field(default=None, repr=False, compare=False)

    @staticmethod
    def load(name_or_path: str | Path) -> Trait:
        """A built-in trait by name, or a TOML file by path; either with `-reversed` appended.

        Raises InputError, one line naming file, line and remedy, for anything wrong in the file or what it names.
        A user's checker is imported here, and only because the user named that file.
        """
        from steer_heal.trait_file import TraitFile

        text = str(name_or_path)
        if text.endswith(REVERSED) and not Path(text).exists():
            return Trait.load(text.removesuffix(REVERSED)).reversed()
        if text in builtin_traits():
            return TraitFile(FOLDER / f"{text}.toml", builtin=True).trait()
        path = Path(text).expanduser()
        if path.suffix == ".toml" or path.is_file():
            return TraitFile(path, builtin=False).trait()
        raise InputError(
            f"unknown trait {text!r}{nearest(text, builtin_traits())}: give one of {', '.join(builtin_traits())} "
            "(each also with -reversed) or the path of a .toml file"
        )

    def reversed(self) -> Trait:
        """The opposite trait: poles, trait choices and foundations swapped, the checker's trait read as 1 - trait.

        Off-target items and anchors stay as they are: they belong to neither pole.
        """
        name = self.name.removesuffix(REVERSED) if self.is_reversed else self.name + REVERSED
        items = tuple(item.reversed() for item in self.items)
        return replace(
            self, name=name, pos=self.neg, neg=self.pos, items=items, vignette_up=self.vignette_down,
            vignette_down=self.vignette_up, is_reversed=not self.is_reversed,
        )  # fmt: skip

    def question(self, item: Item, choices: Sequence[str]) -> str:
        """The user turn that puts an item with its choices in the given order."""
        return self.choice_template.format(prompt=item.prompt, choices=" or ".join(choices))

    def judge(self, prompt: str, reply: str, finished: bool) -> Judgement | None:
        """The checker's judgement of one reply, None without a checker.

        Raises InputError when the checker returns something else than a `Judgement`-like object with figures in 0..1.
        """
        if self.check is None:
            return None
        found = self.check(prompt, reply, finished)
        try:
            ok = float(found.sentence_ok)
            trait = None if found.trait is None else float(found.trait)
            whole = bool(found.reply_ok)
        except (AttributeError, TypeError, ValueError) as problem:
            raise InputError(
                f"checker {self.checker} returned {type(found).__name__} ({problem}): return an object with "
                "sentence_ok (0..1), trait (0..1 or None) and reply_ok (bool)"
            ) from problem
        if not 0 <= ok <= 1 or not (trait is None or 0 <= trait <= 1):
            raise InputError(
                f"checker {self.checker} returned sentence_ok={ok}, trait={trait}: both must lie between 0 and 1"
            )
        return Judgement(ok, 1 - trait if self.is_reversed and trait is not None else trait, whole)


def builtin_traits() -> tuple[str, ...]:
    """Names of the built-in traits."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def default_trait(model_name: str) -> str:
    """Name of the trait made for a model: the built-in whose `models` names it, else `care-over-authority`."""
    for name in builtin_traits():
        if model_name in tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8")).get("models", []):
            return name
    return FALLBACK


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").strip()


def _code_lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def nearest(word: str, known: Sequence[str]) -> str:
    """A "did you mean" for the known word closest to a mistyped one; empty when none is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
