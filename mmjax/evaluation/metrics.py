"""Metrics of the three tasks and late fusion, on whole arrays, in NumPy float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmjax.data.dataset import Task
from mmjax.evaluation.calibration import expected_calibration_error, multilabel_calibration_error
from mmjax.evaluation.ranking import mean_auroc, mean_average_precision
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


def late_fusion(
    task: Task, logits: Mapping[str, np.ndarray], here: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Return the prediction of the averaged uni-modal experts, [N, C] float64; no training is involved.

    logits: {modality: [N, C]}, of one model's heads or of models trained apart. An entry "fusion" is left out, so that
    the logits of a whole model can be given as they are. here: {modality: bool [N]}, the examples that have it, at least
    one modality each; the mean then runs over what an example has. None: all have all.

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
    classes = task.kind == "classification"
    said = np.stack([_log_softmax(x) if classes else x for x in experts.values()])
    if here is None:
        mean = np.mean(said, axis=0)
    else:
        there = np.stack([here[m] for m in experts])[..., None]
        mean = np.sum(np.where(there, said, 0), axis=0) / np.sum(there, axis=0)
    return _log_softmax(mean) if classes else mean


def expert_metrics(
    task: Task,
    experts: Mapping[str, np.ndarray],
    label: np.ndarray,
    here: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """Return {"fusion/accuracy": ..., "image/nll": ..., ...}: `task_metrics` of every expert.

    experts: {name: logits [N, C]}. here: {modality: bool [N]}: a modality's expert is measured on the examples that have
    it, and left out where none does; other experts on all. None: all have all.

    >>> task, logits = Task("classification", 2), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> measured = expert_metrics(task, {"a": logits}, np.array([0, 0]), {"a": np.array([True, False])})
    >>> measured["a/accuracy"]
    1.0
    """
    told: dict[str, float] = {}
    for name, logits in experts.items():
        rows = slice(None) if here is None or name not in here else here[name]
        if len(label[rows]):
            told |= {f"{name}/{metric}": x for metric, x in task_metrics(task, logits[rows], label[rows]).items()}
    return told


def task_metrics(task: Task, logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Return the task's metrics of logits [N, C] against labels [N] or [N, L].

    classification: accuracy, balanced_accuracy, macro_f1 (micro F1 is the accuracy), auroc and map (each class against
      the rest, mean over classes), nll (nats), ece.
    multilabel: map, macro_f1 and micro_f1 (threshold ½), auroc, nll (nats, mean over labels), ece (mean over labels).
    regression: r2 and pearson (means over outputs), mse and mae (means over examples and outputs).

    What is not defined for a class, label or output (a class that never occurs, an output that never varies) leaves it
    out of the mean; where nothing is left, the metric is what chance gives: 0, and ½ for auroc. All are NaN if a logit is,
    or if logits have no softmax (infinite ones, or all −∞).

    Raises:
      ValueError: no example, or lengths that differ.

    >>> metrics = task_metrics(Task("regression", 1), np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]]))
    >>> {name: round(value, 6) for name, value in metrics.items()}
    {'r2': 0.5, 'pearson': 1.0, 'mse': 0.5, 'mae': 0.5}
    """
    logits, label = np.asarray(logits, np.float64), np.asarray(label)
    if len(logits) == 0 or len(logits) != len(label):
        raise ValueError(f"need as many labels as predictions, and at least one; got {len(label)} and {len(logits)}")
    with np.errstate(invalid="ignore"):
        known = _log_softmax(logits) if task.kind == "classification" else logits
    if np.isnan(known).any():  # else NaN would be a vote for the first class
        return dict.fromkeys(task_metrics(task, np.zeros_like(logits), label), float("nan"))
    if task.kind == "classification":
        return _classification(logits, label)
    if task.kind == "multilabel":
        return _multilabel(logits, label > 0.5)
    return _regression(logits, label.astype(np.float64))


def _classification(logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    predicted = logits.argmax(axis=-1)
    classes = np.arange(logits.shape[-1])
    log_probability = _log_softmax(logits)
    actual = label[:, None] == classes
    return {
        "accuracy": float(np.mean(predicted == label)),
        "balanced_accuracy": balanced_accuracy(predicted, label),
        "macro_f1": macro_f1(predicted[:, None] == classes, actual),
        "auroc": mean_auroc(log_probability, actual),
        "map": mean_average_precision(log_probability, actual),
        "nll": float(-np.mean(log_probability[np.arange(len(label)), label])),
        "ece": expected_calibration_error(np.exp(log_probability), label),
    }


def _multilabel(logits: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    return {
        "map": mean_average_precision(logits, actual),
        "macro_f1": macro_f1(logits > 0, actual),
        "micro_f1": micro_f1(logits > 0, actual),
        "auroc": mean_auroc(logits, actual),
        "nll": float(np.mean(np.logaddexp(0, np.where(actual, -logits, logits)))),
        "ece": multilabel_calibration_error(np.exp(-np.logaddexp(0, -logits)), actual),
    }


def _regression(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    error = predicted - actual
    varies = np.ptp(actual, axis=0) > 0  # r2 has no meaning for an output that never varies
    residual = np.sum(error[:, varies] ** 2, axis=0)
    spread = np.sum((actual - actual.mean(axis=0))[:, varies] ** 2, axis=0)
    return {
        "r2": float(np.mean(1 - residual / spread)) if varies.any() else 0.0,
        "pearson": pearson(predicted, actual),
        "mse": float(np.mean(error**2)),
        "mae": float(np.mean(np.abs(error))),
    }


def balanced_accuracy(predicted: np.ndarray, label: np.ndarray) -> float:
    """Return the mean over classes of the share found, int [N] both; a class that never occurs is left out.

    >>> balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    0.75
    """
    return float(np.mean([np.mean(predicted[label == c] == c) for c in np.unique(label)]))


def pearson(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Return the mean over outputs of Pearson's correlation, [N, L] both.

    An output that never varies, on either side, is left out; 0 if none is left.

    >>> round(pearson(np.array([[1.0], [2.0], [3.0]]), np.array([[2.0], [4.0], [6.0]])), 6)
    1.0
    """
    varies = (np.ptp(actual, axis=0) > 0) & (np.ptp(predicted, axis=0) > 0)
    if not varies.any():
        return 0.0
    a, b = (x[:, varies] - x[:, varies].mean(axis=0) for x in (predicted, actual))
    spread = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return float(np.mean(np.sum(a * b, axis=0) / spread))


def micro_f1(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Return the F1 over all entries, bool [N, L]; 0 if nothing is predicted and nothing there.

    >>> micro_f1(np.array([[True, False], [True, False]]), np.array([[True, False], [False, True]]))
    0.5
    """
    total = np.sum(predicted) + np.sum(actual)
    return float(2 * np.sum(predicted & actual) / total) if total else 0.0


def macro_f1(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Return the mean F1 over classes, bool [N, C]; a class neither predicted nor present is left out.

    >>> macro_f1(np.array([[True, False], [True, False]]), np.array([[True, False], [False, True]]))
    0.3333333333333333
    """
    hits = np.sum(predicted & actual, axis=0)
    total = np.sum(predicted, axis=0) + np.sum(actual, axis=0)
    seen = total > 0
    return float(np.mean(2 * hits[seen] / total[seen])) if seen.any() else 0.0


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    centred = logits - logits.max(axis=-1, keepdims=True)
    return centred - np.log(np.sum(np.exp(centred), axis=-1, keepdims=True))
