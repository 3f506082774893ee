"""A trait: a persona pair on one axis, with the texts and items that teach and measure it, read from one TOML file.

Knows nothing of models, steering and training.
"""

from steer_heal.trait.items import CONTINUATION, FOUNDATIONS, Anchor, Item, Judgement, Vignette
from steer_heal.trait.rows import read_rows
from steer_heal.trait.trait import REVERSED, Trait, builtin_traits, default_trait

__all__ = [
    "CONTINUATION",
    "FOUNDATIONS",
    "REVERSED",
    "Anchor",
    "Item",
    "Judgement",
    "Trait",
    "Vignette",
    "builtin_traits",
    "default_trait",
    "read_rows",
]
