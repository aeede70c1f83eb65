"""What a run looks like to people: the bar while it goes, the table at its end, curves, TensorBoard events."""

from mmjax.report.calibration import calibration, has_calibration, save_calibration
from mmjax.report.events import EventsObserver, events_observer
from mmjax.report.missing import (
    filled_grid,
    patterns_plot,
    patterns_table,
    rounds_plot,
    rounds_table,
    save_missing,
    save_patterns,
)
from mmjax.report.noise import noise_plot, noise_table, save_noise
from mmjax.report.plots import curves, save_curves
from mmjax.report.progress import ProgressObserver
from mmjax.report.sweep_plots import heat_map, save_heat_map, save_sweep_curves, sweep_curves
from mmjax.report.sweep_table import sweep_table
from mmjax.report.table import print_results, results_table
from mmjax.report.tee import Observers

__all__ = [
    "EventsObserver",
    "Observers",
    "ProgressObserver",
    "calibration",
    "curves",
    "events_observer",
    "filled_grid",
    "has_calibration",
    "heat_map",
    "noise_plot",
    "noise_table",
    "patterns_plot",
    "patterns_table",
    "print_results",
    "results_table",
    "rounds_plot",
    "rounds_table",
    "save_calibration",
    "save_curves",
    "save_heat_map",
    "save_missing",
    "save_noise",
    "save_patterns",
    "save_sweep_curves",
    "sweep_curves",
    "sweep_table",
]
