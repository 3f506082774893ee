"""The coherence filter: gates on repetition, soup, perplexity, content and length, calibrated on the model's own text.

Knows nothing of doses and rounds. `CoherenceFilter` is what the other rooms use; each kind of figure has its file.
"""

from steer_heal.texts.coherence.filter import CoherenceFilter, text_figures
from steer_heal.texts.coherence.report import FilterReport
from steer_heal.texts.coherence.rules import GATES, RULES, Rule

__all__ = ["GATES", "RULES", "CoherenceFilter", "FilterReport", "Rule", "text_figures"]
