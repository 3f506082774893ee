"""Defaults that no single number serves, by model.

Knows nothing of what the options mean.
"""

from __future__ import annotations

FOLLOWS_MODEL: dict[str, dict[str, object]] = {
    "pocket": {
        "lr": 1.25e-3, "epochs": 3, "tau": 0.5, "doses": (0.5, 1.0), "max_new_tokens": 72, "n_min": 192,
        "walk_batch": 96, "target_kl": 0.0, "survival_target": 0.4, "text_temperature": 1.15, "text_top_p": 1.0,
        "text_min_p": 0.03, "diversity_gain": 1.0,
    },
    "tiny-random": {
        "lr": 1e-3, "epochs": 2, "tau": 0.2, "doses": (0.5, 1.0), "max_new_tokens": 24, "n_min": 16, "walk_batch": 24,
        "target_kl": 0.0, "survival_target": 0.25, "diversity_gain": 0.0,
    },
    "others": {
        "lr": 1e-4, "epochs": 6, "tau": 0.5, "doses": (0.5, 0.75, 1.0), "max_new_tokens": 256, "n_min": 48,
        "walk_batch": 48, "target_kl": 1.0, "survival_target": 0.25, "text_temperature": 1.0, "text_top_p": 1.0,
        "text_min_p": 0.03, "diversity_gain": 1.0,
    },
}  # fmt: skip
"""Defaults that no single number serves: steps and lengths of a 1 M-parameter model are not those of a 4 B one."""
