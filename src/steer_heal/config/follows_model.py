"""Defaults that no single number serves, by model.

Knows nothing of what the options mean.
"""

from __future__ import annotations

import tyro

MODELS = ("pocket", "tiny-random", "others")
_BY_OPTION: dict[str, tuple] = {
    "lr": (1.25e-3, 1e-3, 1e-4),
    "epochs": (3, 2, 6),
    "tau": (0.5, 0.2, 0.5),
    "doses": ((0.5, 1.0), (0.5, 1.0), (0.5, 0.75, 1.0)),
    "max_new_tokens": (72, 24, 256),
    "n_min": (192, 16, 48),
    "walk_batch": (96, 24, 48),
    "target_kl": (0.0, 0.0, 1.0),
    "survival_target": (0.4, 0.25, 0.25),
    "text_temperature": (1.15, None, 1.0),
    "text_top_p": (1.0, None, 1.0),
    "text_min_p": (0.03, None, 0.03),
    "diversity_gain": (1.0, 0.0, 1.0),
}
"""In the order of `MODELS`, None: as the model's own. Steps and lengths of a 1 M-parameter model are not those of a 4 B
one."""
FOLLOWS_MODEL: dict[str, dict[str, object]] = {
    model: {option: values[at] for option, values in _BY_OPTION.items() if values[at] is not None}
    for at, model in enumerate(MODELS)
}


def by_model(option: str) -> object:
    """What a help page says of a default that follows the model: its value for each of them."""
    shown = [" ".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in _BY_OPTION[option]]
    pairs = [f"{model} {'its own' if one == 'None' else one}" for model, one in zip(MODELS, shown, strict=True)]
    return tyro.conf.arg(help_behavior_hint=f"(default: {', '.join(pairs)})")
