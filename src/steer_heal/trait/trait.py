"""`Trait`: a persona pair with its contexts, prompts and evaluation items, read from one TOML file and checked.

Knows nothing of models, steering and training.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from steer_heal.arguments import checked
from steer_heal.errors import InputError, nearest
from steer_heal.reading import reachable
from steer_heal.shown import brief
from steer_heal.trait.file import TraitFile
from steer_heal.trait.items import CHOICE_TEMPLATE, Anchor, Checker, Item, Judgement, Vignette
from steer_heal.user_function import called

FOLDER = Path(__file__).parent / "built_in"
"""Where the built-in traits lie."""

REVERSED = "-reversed"
FALLBACK = "care-over-authority"


@dataclass(frozen=True)
class Trait:
    """A trait as the method needs it.

    Attributes:
        name, description: for people; `name` ends in `-reversed` when the poles are swapped.
        pos, neg: system prompts of the trait and of its opposite; neutral: the one used everywhere else ("": none).
            Where the trait's texts have a `{persona}` slot, they are put there instead (see `model.chat`).
        contexts: user turns for extraction. prompts: user turns for training texts.
        eval_prompts: held-out user turns for free-text evaluation. replay_prompts: for the original model's own texts.
        choice_template: how an item is put to the model; `{choices}` are joined by " or "; "{prompt}" alone: each
            choice is a continuation of the prompt. held_out_choice_templates: formats that no other text of the trait
            has, in which a sample of the items is asked as well.
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
    held_out_choice_templates: tuple[str, ...] = ()
    checker: str | None = None
    is_reversed: bool = False
    check: Checker | None = field(default=None, repr=False, compare=False)

    __repr__ = brief

    @staticmethod
    @checked
    def load(name_or_path: str | Path, code: bool = True) -> Trait:
        """A built-in trait by name, or a TOML file by path; either with `-reversed` appended.

        Raises InputError, one line naming file, line and remedy, for anything wrong in the file or what it names.
        A user's checker is imported here, and only because the user named that file: where something else did, `code`
        is false, and a file that names a function is a NoLeaveError.
        """
        text = str(name_or_path)
        if text in builtin_traits():
            return _built_in(text)
        bare = text.removesuffix(REVERSED)
        path = reachable(text)
        if bare != text and (bare in builtin_traits() or not path.exists()):
            return Trait.load(bare, code).reversed()
        if path.suffix == ".toml" or path.is_file():
            return Trait(**TraitFile(path, builtin=False, code=code).fields())
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
        poles = {"pos": self.neg, "neg": self.pos}
        moved = {"vignette_up": self.vignette_down, "vignette_down": self.vignette_up}
        return replace(self, name=name, items=items, is_reversed=not self.is_reversed, **poles, **moved)

    def question(self, item: Item, choices: Sequence[str]) -> str:
        """The user turn that puts an item with its choices in the given order."""
        return self.choice_template.format(prompt=item.prompt, choices=" or ".join(choices))

    def check_functions(self, anchors: Sequence[Anchor] = ()) -> None:
        """Checker and anchors look at a first reply. Raises InputError for one that fails: before any is sampled."""
        self.judge(self.eval_prompts[0], "yes.", True)
        for anchor in (*self.anchors, *anchors):
            anchor.passes("yes.")

    def judge(self, prompt: str, reply: str, finished: bool) -> Judgement | None:
        """The checker's judgement of one reply, None without a checker.

        Raises InputError when the checker returns something else than a `Judgement`-like object with figures in 0..1.
        """
        if self.check is None:
            return None
        found = called(self.check, f"checker {self.checker}", prompt, reply, finished)
        try:
            ok = float(found.sentence_ok)
            trait = None if found.trait is None else float(found.trait)
            whole = bool(found.reply_ok)
        except (AttributeError, TypeError, ValueError, OverflowError) as problem:
            raise InputError(
                f"checker {self.checker} returned {type(found).__name__} ({problem}): return an object with "
                "sentence_ok (0..1), trait (0..1 or None) and reply_ok (bool)"
            ) from problem
        if not 0 <= ok <= 1 or not (trait is None or 0 <= trait <= 1):
            raise InputError(
                f"checker {self.checker} returned sentence_ok={ok}, trait={trait}: both must lie between 0 and 1"
            )
        return Judgement(ok, 1 - trait if self.is_reversed and trait is not None else trait, whole)


@cache
def _built_in(name: str) -> Trait:
    """A built-in trait; its files stay as they are, and a run asks for it several times."""
    return Trait(**TraitFile(FOLDER / f"{name}.toml", builtin=True).fields())


def builtin_traits() -> tuple[str, ...]:
    """Names of the built-in traits."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def default_trait(model_name: str) -> str:
    """Name of the trait made for a model: the built-in whose `models` names it, else `care-over-authority`."""
    for name in builtin_traits():
        if model_name in tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8")).get("models", []):
            return name
    return FALLBACK
