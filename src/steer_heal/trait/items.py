"""What a trait is made of: forced-choice items, anchors, vignettes, and what a checker says of a reply.

Knows nothing of files, models and the trait that they belong to.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from steer_heal.errors import InputError
from steer_heal.user_function import called

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
        """Whether a reply is right. Raises InputError for a function or expression that fails or does not end."""
        if self.check == "function":
            found = called(self.function, f"anchor {self.id!r}: {self.answer}", self.prompt, reply)
            if str(found) not in ("True", "False"):
                raise InputError(f"anchor {self.id!r}: {self.answer} returned {found!r}: return True or False")
            return bool(found)
        if self.check == "regex":
            name = f"anchor {self.id!r}: the regular expression {self.answer!r}"
            return called(re.search, name, self.answer, reply) is not None
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


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").strip()


def _code_lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]
