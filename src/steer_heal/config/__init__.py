"""Every option of a run: in groups by stage for the command line, and flat as `RunConfig(reg="kl_rev", n_rounds=2)`.

Knows nothing of models.
"""

from steer_heal.config.follows_model import defaults
from steer_heal.config.idle import idle_options
from steer_heal.config.run_config import RunConfig

__all__ = ["RunConfig", "defaults", "idle_options"]
