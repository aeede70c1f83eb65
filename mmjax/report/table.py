"""The table at the end of a run: one row an expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmjax.data.dataset import Task
from mmjax.objectives import FUSION
from mmjax.report.labels import COLUMNS, expert_order, expert_title, metric_title, rounded_seconds, written


def results_table(metrics: Mapping[str, float], names: Sequence[str], task: Task, title: str = "Test split") -> Table:
    """Return the metrics of each expert: fusion, late fusion where it was measured, the modalities sorted.

    metrics: `Run.metrics`, {"fusion/accuracy": ..., "wall_seconds": ...}. names: the objectives. Accuracy, macro F1,
    mAP and calibration error (ECE) are in percent, NLL in nats; a metric that is missing shows as a dash.

    Raises:
      ValueError: `metrics` holds none of the task's metrics for an objective in `names`.

    >>> metrics = {"fusion/r2": 0.5, "fusion/mse": 2.0, "fusion/mae": 1.0, "wall_seconds": 3.0}
    >>> table = results_table(metrics, ["fusion"], Task("regression", 1))
    >>> [column.header for column in table.columns], table.caption
    (['expert', 'R2', 'MSE', 'MAE'], 'wall time 3.0 s')
    """
    columns = COLUMNS[task.kind]
    measured = {key.rpartition("/")[0] for key in metrics if key.rpartition("/")[2] in columns and "/" in key}
    missing = [name for name in names if name not in measured]
    if missing:
        raise ValueError(
            f"metrics holds nothing about {', '.join(missing)}: expected {missing[0]}/{columns[0]} and so on for a "
            f"{task.kind} task, got {sorted(metrics)}"
        )
    caption = _caption(metrics)
    table = Table(title=title, caption=caption or None, caption_justify="left", min_width=len(caption))
    table.add_column("expert")
    for metric in columns:
        table.add_column(metric_title(metric), justify="right", no_wrap=True)
    modalities = [name for name in names if name != FUSION]
    for expert in expert_order(measured, modalities):
        cells = [f"{expert}/{metric}" for metric in columns]
        values = [written(m, metrics[cell]) if cell in metrics else "-" for m, cell in zip(columns, cells, strict=True)]
        table.add_row(Text(expert_title(expert)), *values, style="bold" if expert == FUSION else None)
    return table


def print_results(
    metrics: Mapping[str, float], names: Sequence[str], task: Task, console: Console | None = None
) -> None:
    """Print the table of `results_table`. console: standard output if None.

    >>> metrics = {"fusion/r2": 0.5, "fusion/mse": 2.0, "fusion/mae": 1.0, "wall_seconds": 3.0}
    >>> plain = Console(width=40, no_color=True)
    >>> print_results(metrics, ["fusion"], Task("regression", 1), plain)  # doctest: +NORMALIZE_WHITESPACE
                Test split
    ┏━━━━━━━━┳━━━━━━━━┳━━━━━━━┳━━━━━━━┓
    ┃ expert ┃     R2 ┃   MSE ┃   MAE ┃
    ┡━━━━━━━━╇━━━━━━━━╇━━━━━━━╇━━━━━━━┩
    │ fusion │ 0.5000 │ 2.000 │ 1.000 │
    └────────┴────────┴───────┴───────┘
    wall time 3.0 s
    """
    (console or Console()).print(results_table(metrics, names, task))


def _caption(metrics: Mapping[str, float]) -> str:
    parts = []
    if "wall_seconds" in metrics:
        parts.append(f"wall time {rounded_seconds(metrics['wall_seconds'])}")
    if metrics.get("compile_seconds"):
        parts.append(f"compiling {rounded_seconds(metrics['compile_seconds'])}")
    if metrics.get("steps_per_second"):  # 0 where a run had no step left to take
        parts.append(f"{metrics['steps_per_second']:.1f} steps/s")
    return ", ".join(parts)
