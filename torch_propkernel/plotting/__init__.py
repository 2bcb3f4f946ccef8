"""Plots of what the package computes; matplotlib is imported only when a plot is made, and pyplot never."""

from .action import plot_action
from .blocks import plot_block_covariance
from .calibration import plot_calibration
from .comparison import plot_comparison
from .intervals import plot_intervals
from .learning import plot_learning_curve
from .maps import plot_map
from .style import BLUE, GRAY, GREEN, LAYER_COLORS, ORANGE, PURPLE, SKY, VERMILLION
from .sweep import plot_errors, plot_order_parameters, plot_sweep

__all__ = [
    "BLUE",
    "GRAY",
    "GREEN",
    "LAYER_COLORS",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILLION",
    "plot_action",
    "plot_block_covariance",
    "plot_calibration",
    "plot_comparison",
    "plot_errors",
    "plot_intervals",
    "plot_learning_curve",
    "plot_map",
    "plot_order_parameters",
    "plot_sweep",
]
