"""What a sweep asks of whoever learns: train an encoder and a head, refit the head, predict; all seeds at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax import Array

from mmjax.data import Splits, Task, batch_indices
from mmjax.evaluation.subsets import Subset


class Predictions(NamedTuple):
    """Of the test split, by seed: trained [S, N, C], of the trained pair; refitted [S, N, C], of the refitted head.

    >>> import jax.numpy as jnp
    >>> found = Predictions(trained=jnp.zeros((2, 50, 1)), refitted=jnp.ones((2, 50, 1)))  # two seeds, one output
    >>> found.trained.shape, float(found.refitted.mean())
    ((2, 50, 1), 1.0)
    """

    trained: Array
    refitted: Array


class Learner(Protocol):
    """A way of learning from a subset of the modalities; `LeastSquares` and `Trained` are the two here.

    Implementations are frozen dataclasses of plain values, so that a study's file can say whose it is.

    >>> from dataclasses import dataclass
    >>> import jax.numpy as jnp
    >>> from mmjax.theory import StrongWeak, subset_risk_sweep
    >>> @dataclass(frozen=True)
    ... class MeanLabel:  # learns the mean label, whatever the modalities say
    ...     def predict(self, splits, subset, n, seeds):
    ...         drawn = splits.train.label[samples(seeds, len(splits.train), n)]
    ...         everywhere = jnp.broadcast_to(drawn.mean(axis=1, keepdims=True), (len(seeds), *splits.test.label.shape))
    ...         return Predictions(everywhere, everywhere)
    ...     def risks(self, task, predictions, label):
    ...         return ((predictions - label) ** 2).sum(axis=-1)
    ...     def identity(self):
    ...         return {"type": "mean label"}
    ...     def risk_unit(self, task):
    ...         return "squared error"
    >>> splits = StrongWeak(train_examples=99, validation_examples=50, test_examples=50).load()
    >>> sweep = subset_risk_sweep(MeanLabel(), splits, sizes=[20], seeds=2)
    >>> sweep.compare(("strong", "weak"), ("strong",), 20).gap.mean
    0.0
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
