"""Metrics of how well scores rank the positives of each label: average precision and area under the ROC curve."""

from __future__ import annotations

import numpy as np


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


def mean_auroc(scores: np.ndarray, actual: np.ndarray) -> float:
    """Return the mean over labels of the area under the ROC curve: P(score of a positive > of a negative), ties half.

    scores: [N, L]; actual: bool [N, L]. Labels without a positive or without a negative are skipped; ½ (chance) if all
    are.

    >>> mean_auroc(np.array([[0.9], [0.8], [0.7]]), np.array([[True], [False], [True]]))
    0.5
    """
    both = np.flatnonzero(actual.any(axis=0) & ~actual.all(axis=0))
    if both.size == 0:
        return 0.5
    return float(np.mean([_auroc(scores[:, i], actual[:, i]) for i in both]))


def _auroc(scores: np.ndarray, actual: np.ndarray) -> float:
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # from 1; equal scores share their mean rank
    positives = int(actual.sum())
    wins = rank[actual].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * (len(scores) - positives)))
