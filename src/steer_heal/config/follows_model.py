"""Defaults that no single number serves: by model, and by what a heal learns from.

Knows nothing of what the options mean.
"""

from __future__ import annotations

import tyro

MODELS = ("pocket", "tiny-random", "others")
_TEACHER: dict[str, tuple] = {
    "lr": (1.25e-3, 1e-3, 1e-4),
    "epochs": (3, 2, 6),
    "lam": (1.0, 1.0, 1.0),
    "tau": (0.6, 0.2, 0.6),
    "row_weights": ("none", "none", "none"),
    "target_temperature": (1.2, 1.2, 1.2),
    "target_plausibility": (0.01, 0.01, 0.01),
    "doses": ((0.7,), (0.7,), (0.7,)),
    "context_dose": (2.5, 2.5, 2.5),
    "texts": ("own", "own", "own"),
    "text_prompts": ("both", "both", "both"),
    "max_new_tokens": (72, 24, 256),
    "n_min": (160, 16, 48),
    "walk_batch": (160, 24, 48),
    "target_kl": (0.0, 0.0, 1.0),
    "survival_target": (0.4, 0.25, 0.25),
    "text_temperature": (1.15, None, 1.0),
    "text_top_p": (1.0, None, 1.0),
    "text_min_p": (0.0, None, 0.0),
    "diversity_gain": (0.0, 0.0, 0.0),
    "match_lengths": ("none", "none", "none"),
}
"""In the order of `MODELS`, None: as the model's own. Steps and lengths of a 1 M-parameter model are not those of a 4 B
one."""
_TOKENS: dict[str, tuple] = {
    "lam": (0.3, 0.3, 0.3),
    "tau": (0.5, 0.2, 0.5),
    "row_weights": ("tokens", "tokens", "tokens"),
    "target_temperature": (1.0, 1.0, 1.0),
    "target_plausibility": (0.0, 0.0, 0.0),
    "doses": ((0.5, 1.0), (0.5, 1.0), (0.5, 0.75, 1.0)),
    "context_dose": (1.0, 1.0, 1.0),
    "texts": ("steered", "steered", "steered"),
    "text_prompts": ("trait", "trait", "trait"),
    "n_min": (192, 16, 48),
    "walk_batch": (96, 24, 48),
    "text_min_p": (0.03, None, 0.03),
    "diversity_gain": (1.0, 0.0, 1.0),
    "match_lengths": ("base", "base", "base"),
}
"""Those that differ where a heal learns from sampled tokens."""
_MIXED_IN: dict[str, tuple] = {"replay": (0.15, 0.15, 0.15), "replay_anchors": (0.1, 0.0, 0.0)}
"""With a teacher, as far as the trait has such texts (`RunConfig.resolved`); none with tokens."""


def defaults(model: str, targets: str) -> dict[str, object]:
    """Value by option, for one of `MODELS` (any other name: `others`) and what a heal learns from."""
    at = MODELS.index(model) if model in MODELS else -1
    values = _TEACHER | (_TOKENS if targets == "tokens" else {})
    return {option: several[at] for option, several in values.items() if several[at] is not None}


def mixed_in(model: str, targets: str) -> dict[str, float]:
    """Default shares of the original model's own rows, for a trait that has prompts and anchors for them."""
    at = MODELS.index(model) if model in MODELS else -1
    return {option: several[at] if targets == "teacher" else 0.0 for option, several in _MIXED_IN.items()}


def by_model(option: str) -> object:
    """What a help page says of such a default: its value for each model, and with --targets tokens where it differs."""
    if option in _MIXED_IN:
        shown = f"{_shown(_MIXED_IN[option])}, where the trait has some; with --targets tokens 0"
    else:
        shown = _shown(_TEACHER[option])
        shown += f"; with --targets tokens {_shown(_TOKENS[option])}" if option in _TOKENS else ""
    return tyro.conf.arg(help_behavior_hint=f"(default: {shown})")


def _shown(values: tuple) -> str:
    shown = [
        "its own" if one is None else " ".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in values
    ]
    if len(set(shown)) == 1:
        return shown[0]
    return ", ".join(f"{model} {one}" for model, one in zip(MODELS, shown, strict=True))
