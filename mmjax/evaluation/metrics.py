"""Metrics of the three tasks, on whole arrays, in NumPy float64."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, log_softmax, softmax

from mmjax.data.dataset import Task

_SCORES = {"classification": "accuracy", "multilabel": "map", "regression": "r2"}
_LOSSES = {"classification": "nll", "multilabel": "nll", "regression": "mse"}


def score_name(task: Task) -> str:
    """Return the name of the metric that is higher when better: accuracy, map (mean average precision) or r2."""
    return _SCORES[task.kind]


def loss_name(task: Task) -> str:
    """Return the name of the metric that is lower when better: nll, or mse for regression."""
    return _LOSSES[task.kind]


def probabilities(task: Task, logits: np.ndarray) -> np.ndarray:
    """Return softmax or sigmoid of the logits [N, C]; for regression the values themselves.

    >>> probabilities(Task("classification", 2), np.array([[0.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """
    logits = np.asarray(logits, np.float64)
    if task.kind == "classification":
        return softmax(logits, axis=-1)
    return expit(logits) if task.kind == "multilabel" else logits


def task_metrics(task: Task, logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Return the task's metrics of logits [N, C] against labels.

    classification: accuracy, macro_f1, nll (nats), ece; multilabel: map, macro_f1 (threshold ½), nll (mean over labels);
    regression: r2 (mean over outputs), mse and mae (means over examples and outputs).

    Raises:
      ValueError: no example, or lengths that differ.
    """
    logits = np.asarray(logits, np.float64)
    if len(logits) == 0 or len(logits) != len(label):
        raise ValueError(f"need as many labels as predictions, and at least one; got {len(label)} and {len(logits)}")
    if task.kind == "classification":
        label = np.asarray(label)
        predicted = logits.argmax(axis=-1)
        return {
            "accuracy": float(np.mean(predicted == label)),
            "macro_f1": macro_f1(predicted[:, None] == np.arange(task.num_outputs), label[:, None] == np.arange(task.num_outputs)),
            "nll": float(-np.mean(log_softmax(logits, axis=-1)[np.arange(len(label)), label])),
            "ece": expected_calibration_error(softmax(logits, axis=-1), label),
        }
    label = np.asarray(label, np.float64)
    if task.kind == "multilabel":
        return {
            "map": mean_average_precision(logits, label > 0.5),
            "macro_f1": macro_f1(logits > 0, label > 0.5),
            "nll": float(np.mean(np.logaddexp(0, logits) - label * logits)),
        }
    residual = np.sum((logits - label) ** 2, axis=0)
    spread = np.sum((label - label.mean(axis=0)) ** 2, axis=0)
    known = spread > 0  # an output that never varies explains nothing
    return {
        "r2": float(np.mean(1 - residual[known] / spread[known])) if known.any() else 0.0,
        "mse": float(np.mean((logits - label) ** 2)),
        "mae": float(np.mean(np.abs(logits - label))),
    }


def macro_f1(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Return the mean F1 over classes, bool [N, C]; a class neither predicted nor present is left out.

    >>> macro_f1(np.array([[True, False], [True, False]]), np.array([[True, False], [False, True]]))
    0.3333333333333333
    """
    hits = np.sum(predicted & actual, axis=0)
    total = np.sum(predicted, axis=0) + np.sum(actual, axis=0)
    return float(np.mean(2 * hits[total > 0] / total[total > 0])) if (total > 0).any() else 0.0


def mean_average_precision(scores: np.ndarray, actual: np.ndarray) -> float:
    """Return the mean over labels of average precision; labels without positives are skipped; 0 if none has any.

    scores: [N, L]; actual: bool [N, L]. Equal scores are one threshold.

    >>> mean_average_precision(np.array([[0.9], [0.8], [0.7]]), np.array([[True], [False], [True]]))
    0.8333333333333333
    """
    return float(np.mean(found)) if (found := [_average_precision(s, a) for s, a in zip(scores.T, actual.T, strict=True) if a.any()]) else 0.0


def _average_precision(scores: np.ndarray, actual: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(actual[order])[last_of_ties]
    precision = hits / (last_of_ties + 1)
    return float(np.sum(np.diff(hits, prepend=0) * precision) / actual.sum())


def expected_calibration_error(probability: np.ndarray, label: np.ndarray, bins: int = 15) -> float:
    """Return Σ_b (n_b/N) |accuracy_b − confidence_b| over equal-width bins of the top probability.

    >>> expected_calibration_error(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1]))
    0.0
    """
    confidence = probability.max(axis=-1)
    right = probability.argmax(axis=-1) == label
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.sum(np.abs(gap)) / len(label))
