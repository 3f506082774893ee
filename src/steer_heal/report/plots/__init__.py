"""The pictures of a run; each answers one question. A picture that the run has no figures for does not exist.

Know nothing of pages.
"""

from steer_heal.ledger import Ledger
from steer_heal.report.plots.dose import dose_plot
from steer_heal.report.plots.drawing import DARK, LIGHT, Key, Panel, Plot, png, svg
from steer_heal.report.plots.maps import off_target_plot, trait_coherence_plot
from steer_heal.report.plots.trajectory import trajectory_plot

__all__ = ["DARK", "LIGHT", "Key", "Panel", "Plot", "plots", "png", "svg"]


def plots(ledger: Ledger) -> list[Plot]:
    """The pictures of a finished run, in the order in which a reader needs them."""
    drawn = (trajectory_plot, trait_coherence_plot, off_target_plot, dose_plot)
    return [plot for plot in (draw(ledger) for draw in drawn) if plot is not None]
