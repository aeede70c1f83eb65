"""The table at the end of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mmjax.data import Task
from mmjax.report import print_results, results_table

METRICS = {
    "image/accuracy": 0.7458,
    "image/macro_f1": 0.7447,
    "image/nll": 0.7326,
    "image/ece": 0.0376,
    "audio/accuracy": 0.6508,
    "audio/macro_f1": 0.6566,
    "audio/nll": 1.12614,
    "audio/ece": 0.0435,
    "fusion/accuracy": 0.865,
    "fusion/macro_f1": 0.8643,
    "fusion/nll": 0.46169,
    "fusion/ece": 0.0565,
}
LATE = {
    "late_fusion/accuracy": 0.8783,
    "late_fusion/macro_f1": 0.8782,
    "late_fusion/nll": 0.423,
    "late_fusion/ece": 0.1,
}
TIMING = {"wall_seconds": 83.4, "compile_seconds": 3.2, "steps_per_second": 484.51}
NAMES = ("fusion", "audio", "image")
CLASSES = Task("classification", 10)


def cells(table):
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return [str(column.header) for column in table.columns], [list(row) for row in zip(*columns, strict=True)]


def test_classification_fusion_first_then_late_fusion_then_modalities_sorted():
    header, rows = cells(results_table(METRICS | LATE | TIMING, NAMES, CLASSES))
    assert header == ["expert", "accuracy", "macro F1", "NLL", "ECE"]
    assert rows == [
        ["fusion", "86.5 %", "86.4 %", "0.4617", "5.7 %"],
        ["late fusion", "87.8 %", "87.8 %", "0.4230", "10.0 %"],
        ["audio", "65.1 %", "65.7 %", "1.126", "4.3 %"],
        ["image", "74.6 %", "74.5 %", "0.7326", "3.8 %"],
    ]


@pytest.mark.parametrize(
    ("kind", "metrics", "header", "row"),
    [
        (
            "multilabel",
            {"map": 0.5, "macro_f1": 0.25, "nll": 0.125},
            ["mAP", "macro F1", "NLL"],
            "50.0 % 25.0 % 0.1250",
        ),
        ("regression", {"r2": -0.5, "mse": 2.0, "mae": 1.25}, ["R2", "MSE", "MAE"], "-0.5000 2.000 1.250"),
    ],
)
def test_other_tasks_have_their_own_columns(kind, metrics, header, row):
    metrics = {f"fusion/{name}": value for name, value in metrics.items()}
    found, rows = cells(results_table(metrics, ["fusion"], Task(kind, 2)))
    assert found == ["expert", *header]
    assert " ".join(rows[0]) == f"fusion {row}"


def test_caption_tells_the_times_that_there_are():
    assert results_table(METRICS | TIMING, NAMES, CLASSES).caption == (
        "wall time 1 min 23 s, compiling 3.2 s, 484.5 steps/s"
    )
    resumed = TIMING | {"compile_seconds": 0.0, "steps_per_second": 0.0}
    assert results_table(METRICS | resumed, NAMES, CLASSES).caption == "wall time 1 min 23 s"
    assert results_table(METRICS, NAMES, CLASSES).caption is None


def test_a_missing_metric_is_a_dash():
    metrics = {name: value for name, value in METRICS.items() if name != "audio/ece"}
    _, rows = cells(results_table(metrics, NAMES, CLASSES))
    assert rows[1] == ["audio", "65.1 %", "65.7 %", "1.126", "-"]


def test_metrics_of_another_task_or_run_are_refused():
    with pytest.raises(ValueError, match=r"nothing about video: expected video/accuracy .* classification task"):
        results_table(METRICS, (*NAMES, "video"), CLASSES)
    with pytest.raises(ValueError, match=r"expected fusion/r2 .* regression task"):
        results_table(METRICS, NAMES, Task("regression", 1))


def test_print_results_prints_it_with_any_name():
    file = io.StringIO()
    metrics = METRICS | {key.replace("audio", "[red]a"): value for key, value in METRICS.items() if "audio" in key}
    print_results(metrics | TIMING, ("fusion", "image", "[red]a"), CLASSES, Console(file=file, width=100))
    text = file.getvalue()
    assert "86.5 %" in text and "[red]a" in text
    assert "wall time 1 min 23 s, compiling 3.2 s, 484.5 steps/s" in text
