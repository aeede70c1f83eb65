"""Expected calibration error: how far confidence is from accuracy, on average over bins of confidence."""

from __future__ import annotations

import numpy as np


def expected_calibration_error(probability: np.ndarray, label: np.ndarray, bins: int = 15) -> float:
    """Return Σ_b (n_b/N) |accuracy_b − confidence_b| over equal-width bins of the top probability.

    probability: [N, C], rows sum to 1; label: int [N]. A bin holds its lower edge; the last one also 1.

    >>> expected_calibration_error(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1]))
    0.0
    """
    return _error(probability.max(axis=-1), probability.argmax(axis=-1) == label, bins)


def multilabel_calibration_error(probability: np.ndarray, actual: np.ndarray, bins: int = 15) -> float:
    """Return the mean over labels of Σ_b (n_b/N) |frequency_b − mean probability_b|, bins of the label's probability.

    probability: [N, L]; actual: bool [N, L]. Bins as in `expected_calibration_error`; here a bin compares how often
    the label is there with how likely it was called.

    >>> multilabel_calibration_error(np.array([[0.25]] * 4), np.array([[True], [False], [False], [False]]))
    0.0
    """
    return float(np.mean([_error(p, a, bins) for p, a in zip(probability.T, actual.T, strict=True)]))


def _error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.sum(np.abs(gap)) / len(confidence))
