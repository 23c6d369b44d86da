"""Image grids and code histograms, made with PIL alone."""

from delvm.viz.code_histogram import plot_code_histogram
from delvm.viz.image_grid import image_grid

__all__ = ["image_grid", "plot_code_histogram"]
