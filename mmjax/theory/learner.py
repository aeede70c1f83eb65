"""What a sweep asks of whoever learns: train an encoder and a head, refit the head, predict; all seeds at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax import Array

from mmjax.data import Splits, Task, batch_indices
from mmjax.evaluation.subsets import Subset


class Predictions(NamedTuple):
    """Of the test split, by seed: trained [S, N, C], of the trained pair; refitted [S, N, C], of the refitted head."""

    trained: Array
    refitted: Array


class Learner(Protocol):
    """A way of learning from a subset of the modalities; `LeastSquares` and `Trained` are the two here.

    Implementations are frozen dataclasses of plain values, so that a study's file can say whose it is.
    """

    def predict(self, splits: Splits, subset: Subset, n: int, seeds: Sequence[int]) -> Predictions:
        """Learn from n training examples, refit the head on the validation split, predict the test split.

        Seed s learns from `sample(s, ...)`, the same examples for every subset. One compiled program for all seeds.
        """

    def risks(self, task: Task, predictions: Array, label: Array) -> Array:
        """Return each example's loss, [S, N]."""

    def identity(self) -> dict[str, Any]:
        """Return what determines the learner's results, as JSON values: a study's file is for one learner only."""

    def risk_unit(self, task: Task) -> str:
        """Return what the risk is measured in, "nats" or "squared error"."""


def samples(seeds: Sequence[int], total: int, n: int) -> np.ndarray:
    """Return which of `total` examples each seed learns from, int64 [S, n]; a larger n holds the smaller one's.

    >>> one, two = samples([3], 10, 4), samples([3], 10, 6)
    >>> bool((two[:, :4] == one).all()), len(set(two[0].tolist()))
    (True, 6)
    """
    return np.stack([batch_indices(seed, 0, total, n) for seed in seeds])
