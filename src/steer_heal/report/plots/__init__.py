"""The pictures of a run, one file per picture; each answers one question.

Know nothing of pages. A picture that the run has no figures for does not exist.
"""

from steer_heal.ledger import Ledger
from steer_heal.report.plots.dose import dose_plot
from steer_heal.report.plots.drawing import Key, Panel, Plot, png, svg
from steer_heal.report.plots.off_target import off_target_plot
from steer_heal.report.plots.trait_coherence import trait_coherence_plot
from steer_heal.report.plots.trajectory import trajectory_plot

__all__ = ["Key", "Panel", "Plot", "plots", "png", "svg"]


def plots(ledger: Ledger) -> list[Plot]:
    """The pictures of a finished run, in the order in which a reader needs them."""
    drawn = (trajectory_plot, trait_coherence_plot, off_target_plot, dose_plot)
    return [plot for plot in (draw(ledger) for draw in drawn) if plot is not None]
