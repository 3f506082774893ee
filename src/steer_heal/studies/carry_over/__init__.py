"""Does a budget carry over between models? One heal per budget, on every model, trait and dose given, in one table.

Knows nothing of rounds.
"""

from steer_heal.studies.carry_over.healing import Arguments, carry_over, parse

__all__ = ["Arguments", "carry_over", "parse"]
