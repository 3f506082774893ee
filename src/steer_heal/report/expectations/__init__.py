"""What SHOULD be seen in a run, evaluated: the one place that the screen, the tables and the pages read it from.

Knows nothing of models and of printing.
"""

from steer_heal.report.expectations.judging import COLUMNS, EXPECTATIONS, Found, judge, judged, legend, outcome, table

__all__ = ["COLUMNS", "EXPECTATIONS", "Found", "judge", "judged", "legend", "outcome", "table"]
