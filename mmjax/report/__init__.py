"""What a run looks like to people: the bar while it goes, the table at its end, curves, TensorBoard events."""

from mmjax.report.events import EventsObserver, events_observer
from mmjax.report.plots import curves, save_curves
from mmjax.report.progress import ProgressObserver
from mmjax.report.table import print_results, results_table
from mmjax.report.tee import Observers

__all__ = [
    "EventsObserver",
    "Observers",
    "ProgressObserver",
    "curves",
    "events_observer",
    "print_results",
    "results_table",
    "save_curves",
]
