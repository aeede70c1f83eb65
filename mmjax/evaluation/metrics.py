"""Metrics of the three tasks and late fusion, on whole arrays, in NumPy float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmjax.data.dataset import Task
from mmjax.objectives import FUSION

_SCORES = {"classification": "accuracy", "multilabel": "map", "regression": "r2"}
_LOSSES = {"classification": "nll", "multilabel": "nll", "regression": "mse"}


def score_name(task: Task) -> str:
    """Return the name of the metric that is higher when better: accuracy, map (mean average precision) or r2."""
    return _SCORES[task.kind]


def loss_name(task: Task) -> str:
    """Return the name of the metric that is lower when better: nll, or mse for regression."""
    return _LOSSES[task.kind]


def objective_value(task: Task, metrics: Mapping[str, float], expert: str) -> float:
    """Return an expert's loss on a split in the units of training (`mmjax.losses`), from its metrics {"expert/name": x}.

    >>> objective_value(Task("regression", 4), {"fusion/mse": 0.5}, "fusion")  # half the squared error, summed
    1.0
    """
    value = metrics[f"{expert}/{loss_name(task)}"]
    return 0.5 * task.num_outputs * value if task.kind == "regression" else value


def probabilities(task: Task, logits: np.ndarray) -> np.ndarray:
    """Return softmax or sigmoid of the logits [N, C]; for regression the values themselves.

    >>> probabilities(Task("classification", 2), np.array([[0.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """
    logits = np.asarray(logits, np.float64)
    if task.kind == "classification":
        return np.exp(_log_softmax(logits))
    if task.kind == "multilabel":
        return np.exp(-np.logaddexp(0, -logits))
    return logits


def late_fusion(task: Task, logits: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the prediction of the averaged uni-modal experts, [N, C] float64; no training is involved.

    logits: {modality: [N, C]}, of one model's heads or of models trained apart. An entry "fusion" is left out, so that
    the logits of a whole model can be given as they are.

    classification: mean over modalities of log softmax, renormalised: log-probabilities, so also logits (the normalised
    geometric mean of the experts' probabilities); multilabel: the same for each label's Bernoulli, which is the mean of
    the logits; regression: the mean of the predictions.

    Raises:
      ValueError: no modality, or shapes that differ.

    >>> two = {"audio": np.log([[0.8, 0.2]]), "image": np.log([[0.2, 0.8]]), "fusion": np.log([[0.9, 0.1]])}
    >>> np.exp(late_fusion(Task("classification", 2), two)).round(3).tolist()
    [[0.5, 0.5]]
    """
    # in the order of the names, so that the rounding does not depend on the mapping's order
    experts = {m: np.asarray(logits[m], np.float64) for m in sorted(logits) if m != FUSION}
    if not experts:
        raise ValueError(f"late fusion averages uni-modal experts; logits holds none: {sorted(logits)}")
    shapes = {m: x.shape for m, x in experts.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"logits of all modalities must have one shape [N, C]; got {shapes}")
    if task.kind != "classification":
        return np.mean(list(experts.values()), axis=0)
    return _log_softmax(np.mean([_log_softmax(x) for x in experts.values()], axis=0))


def task_metrics(task: Task, logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Return the task's metrics of logits [N, C] against labels [N] or [N, L].

    classification: accuracy, macro_f1, nll (nats), ece.
    multilabel: map, macro_f1 (threshold ½), nll (nats, mean over labels).
    regression: r2 (mean over outputs), mse and mae (means over examples and outputs).

    Raises:
      ValueError: no example, or lengths that differ.

    >>> metrics = task_metrics(Task("regression", 1), np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]]))
    >>> metrics == {"r2": 0.5, "mse": 0.5, "mae": 0.5}
    True
    """
    logits, label = np.asarray(logits, np.float64), np.asarray(label)
    if len(logits) == 0 or len(logits) != len(label):
        raise ValueError(f"need as many labels as predictions, and at least one; got {len(label)} and {len(logits)}")
    if task.kind == "classification":
        return _classification(logits, label)
    if task.kind == "multilabel":
        return _multilabel(logits, label > 0.5)
    return _regression(logits, label.astype(np.float64))


def _classification(logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    predicted = logits.argmax(axis=-1)
    classes = np.arange(logits.shape[-1])
    log_probability = _log_softmax(logits)
    return {
        "accuracy": float(np.mean(predicted == label)),
        "macro_f1": macro_f1(predicted[:, None] == classes, label[:, None] == classes),
        "nll": float(-np.mean(log_probability[np.arange(len(label)), label])),
        "ece": expected_calibration_error(np.exp(log_probability), label),
    }


def _multilabel(logits: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    return {
        "map": mean_average_precision(logits, actual),
        "macro_f1": macro_f1(logits > 0, actual),
        "nll": float(np.mean(np.logaddexp(0, np.where(actual, -logits, logits)))),
    }


def _regression(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    error = predicted - actual
    varies = np.ptp(actual, axis=0) > 0  # r2 has no meaning for an output that never varies
    residual = np.sum(error[:, varies] ** 2, axis=0)
    spread = np.sum((actual - actual.mean(axis=0))[:, varies] ** 2, axis=0)
    return {
        "r2": float(np.mean(1 - residual / spread)) if varies.any() else 0.0,
        "mse": float(np.mean(error**2)),
        "mae": float(np.mean(np.abs(error))),
    }


def macro_f1(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Return the mean F1 over classes, bool [N, C]; a class neither predicted nor present is left out.

    >>> macro_f1(np.array([[True, False], [True, False]]), np.array([[True, False], [False, True]]))
    0.3333333333333333
    """
    hits = np.sum(predicted & actual, axis=0)
    total = np.sum(predicted, axis=0) + np.sum(actual, axis=0)
    seen = total > 0
    return float(np.mean(2 * hits[seen] / total[seen])) if seen.any() else 0.0


def mean_average_precision(scores: np.ndarray, actual: np.ndarray) -> float:
    """Return the mean over labels of average precision; labels without positives are skipped; 0 if none has any.

    scores: [N, L]; actual: bool [N, L]. Equal scores are one threshold.

    >>> mean_average_precision(np.array([[0.9], [0.8], [0.7]]), np.array([[True], [False], [True]]))
    0.8333333333333333
    """
    with_positives = np.flatnonzero(actual.any(axis=0))
    if with_positives.size == 0:
        return 0.0
    return float(np.mean([_average_precision(scores[:, i], actual[:, i]) for i in with_positives]))


def _average_precision(scores: np.ndarray, actual: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(actual[order])[last_of_ties]
    precision = hits / (last_of_ties + 1)
    return float(np.sum(np.diff(hits, prepend=0) * precision) / actual.sum())


def expected_calibration_error(probability: np.ndarray, label: np.ndarray, bins: int = 15) -> float:
    """Return Σ_b (n_b/N) |accuracy_b − confidence_b| over equal-width bins of the top probability.

    probability: [N, C], rows sum to 1; label: int [N]. A bin holds its lower edge; the last one also 1.

    >>> expected_calibration_error(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1]))
    0.0
    """
    confidence = probability.max(axis=-1)
    right = probability.argmax(axis=-1) == label
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.sum(np.abs(gap)) / len(label))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    centred = logits - logits.max(axis=-1, keepdims=True)
    return centred - np.log(np.sum(np.exp(centred), axis=-1, keepdims=True))
