"""How numbers and names are written, and which task a row tells of."""

from __future__ import annotations

import math

import pytest

from mmjax.data import Task
from mmjax.evaluation.metrics import task_metrics
from mmjax.report.labels import COLUMNS, TASKS, expert_order, rounded_seconds, task_kind, written


@pytest.mark.parametrize("kind", TASKS)
def test_columns_are_the_metrics_that_evaluation_measures_and_tell_the_task(kind):
    import numpy as np

    label = {"classification": np.array([0, 1]), "multilabel": np.eye(2), "regression": np.eye(2)}[kind]
    measured = task_metrics(Task(kind, 2), np.array([[1.0, 0.0], [0.2, 0.9]]), label)
    assert set(COLUMNS[kind]) <= set(measured)
    assert task_kind({"step": 1, "kind": "validation"} | {f"fusion/{m}": v for m, v in measured.items()}) == kind


def test_a_row_without_metrics_tells_no_task():
    assert task_kind({"step": 1, "kind": "train", "loss/fusion": 1.0}) is None


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 1.0, "100.0 %"),
        ("map", 0.0004, "0.0 %"),
        ("nll", 2.0, "2.000"),
        ("mse", 1234.0, "1234"),
        ("r2", -0.5, "-0.5000"),
        ("nll", math.nan, "nan"),
        ("accuracy", math.inf, "inf"),
    ],
)
def test_written(metric, value, text):
    assert written(metric, value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.96, "1 min 0 s"), (3599.6, "1 h 0 min")])
def test_seconds_never_read_sixty(seconds, text):
    assert rounded_seconds(seconds) == text


def test_fusion_comes_first_even_before_names_that_sort_before_it():
    assert expert_order(["b", "audio", "late_fusion", "fusion"], ["audio", "b"]) == (
        "fusion",
        "late_fusion",
        "audio",
        "b",
    )
