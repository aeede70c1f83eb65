"""How metrics are called and written for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmjax.data.dataset import Task, TaskKind
from mmjax.evaluation.metrics import loss_name, score_name
from mmjax.objectives import FUSION
from mmjax.train.predictor import LATE_FUSION

TASKS: tuple[TaskKind, ...] = ("classification", "multilabel", "regression")
COLUMNS: Mapping[TaskKind, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1", "nll", "ece"),
    "multilabel": ("map", "macro_f1", "nll"),
    "regression": ("r2", "mse", "mae"),
}
"""Metrics of each task that a table shows, the score first; `task_metrics` has more."""

_TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "auroc": "AUROC",
    "pearson": "Pearson",
    "nll": "NLL",
    "ece": "ECE",
    "map": "mAP",
    "r2": "R2",
    "mse": "MSE",
    "mae": "MAE",
}
PERCENTAGES = frozenset({"accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "auroc", "map", "ece"})
"""Metrics between 0 and 1, written in percent."""


def metric_title(metric: str) -> str:
    """Return what people call a metric; a metric that is not known keeps its name.

    >>> metric_title("map")
    'mAP'
    """
    return _TITLES.get(metric, metric)


def written(metric: str, value: float) -> str:
    """Return a value as people read it: percent with one decimal, or four significant digits.

    >>> written("accuracy", 0.8654), written("nll", 0.46169), written("mse", 12345.6)
    ('86.5 %', '0.4617', '1.235e+04')
    """
    if not math.isfinite(value):
        return str(value)
    return f"{value:.1%}".replace("%", " %") if metric in PERCENTAGES else f"{value:#.4g}".rstrip(".")


def task_kind(row: Mapping[str, Any]) -> TaskKind | None:
    """Return the task of a validation or test row, told by the score that it holds; None if it holds none.

    >>> task_kind({"step": 7, "fusion/r2": 0.5})
    'regression'
    """
    return next((kind for kind in TASKS if f"{FUSION}/{score_of(kind)}" in row), None)


def score_of(kind: TaskKind) -> str:
    """Return the metric of a task that is higher when better."""
    return score_name(Task(kind, 1))


def loss_of(kind: TaskKind) -> str:
    """Return the metric of a task that is lower when better."""
    return loss_name(Task(kind, 1))


def expert_order(names: Iterable[str], modalities: Sequence[str]) -> tuple[str, ...]:
    """Return experts as a report shows them: "fusion", those that are no modality's (late fusion), modalities sorted.

    >>> expert_order(["video", "late_fusion", "audio", "fusion"], ["audio", "video"])
    ('fusion', 'late_fusion', 'audio', 'video')
    """
    return tuple(sorted(set(names), key=lambda name: (name != FUSION, name in modalities, name)))


def expert_title(name: str) -> str:
    """Return what people call an expert: its name, but for late fusion, which is no name that a user gave.

    >>> expert_title("late_fusion"), expert_title("lip_video")
    ('late fusion', 'lip_video')
    """
    return "late fusion" if name == LATE_FUSION else name


def rounded_seconds(seconds: float) -> str:
    """Return a duration for people.

    >>> rounded_seconds(3.21), rounded_seconds(83.4), rounded_seconds(3723)
    ('3.2 s', '1 min 23 s', '1 h 2 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
