"""Linear learners in closed form: least squares of smallest norm on the inputs of a subset, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmjax.data import Dataset, Splits, Task, as_input
from mmjax.evaluation.subsets import Subset
from mmjax.theory.learner import Predictions, samples
from mmjax.theory.linear import least_squares, targets


@dataclass(frozen=True)
class LeastSquares:
    """g(x) = W^T x, with the least-squares solution W of smallest norm, and linear heads with an offset on top.

    For every task: classes are fitted as one-hot vectors and labels as 0 and 1, so that the risk is the squared error
    summed over outputs (for classes, the Brier score of an unconstrained prediction). The latent space has as many
    dimensions as there are outputs, whatever the subset, so the class of heads is one and the same. Inputs are expected on
    like scales, as `from_arrays` and the sources standardise them: what is a 1e-8 of the rest counts as rounding.

    >>> from mmjax.theory import StrongWeak
    >>> splits = StrongWeak(train_examples=200, validation_examples=100, test_examples=50).load()
    >>> learner = LeastSquares()
    >>> found = learner.predict(splits, ("strong",), n=60, seeds=[0, 1])
    >>> risks = learner.risks(splits.test.task, found.trained, splits.test.label)
    >>> risks.shape, bool(0.5 < risks.mean() < 2)  # the noise alone costs 1
    ((2, 50), True)
    """

    def predict(self, splits: Splits, subset: Subset, n: int, seeds: Sequence[int]) -> Predictions:
        """See `Learner.predict`."""
        order = samples(seeds, len(splits.train), n)
        with jax.enable_x64(True):
            train, refit, evaluation = (_flat(part, subset) for part in (splits.train, splits.validation, splits.test))
            found = Predictions(*_cells(order, train, refit, evaluation[0]))
            return Predictions(*(jax.block_until_ready(x).astype(jnp.float32) for x in found))

    def risks(self, task: Task, predictions: Array, label: Array) -> Array:
        """See `Learner.risks`."""
        return jnp.sum((predictions - targets(task, label)) ** 2, axis=-1)

    def identity(self) -> dict[str, Any]:
        """See `Learner.identity`."""
        return {"type": "least squares"}

    def risk_unit(self, task: Task) -> str:
        """See `Learner.risk_unit`."""
        return "squared error"


@jax.jit
def _cells(
    order: Array, train: tuple[Array, Array], refit: tuple[Array, Array], evaluation: Array
) -> tuple[Array, Array]:
    return jax.vmap(partial(_cell, train=train, refit=refit, evaluation=evaluation))(order)


def _cell(
    order: Array, *, train: tuple[Array, Array], refit: tuple[Array, Array], evaluation: Array
) -> tuple[Array, Array]:
    def fit(x: Array, y: Array) -> tuple[Array, Array]:
        mean, offset = x.mean(axis=0), y.mean(axis=0)
        slope = least_squares(x - mean, y - offset)
        return slope, offset - mean @ slope

    def wide(x: Array) -> Array:
        return x.astype(jnp.float64)

    slope, offset = fit(wide(train[0][order]), wide(train[1][order]))
    # the second decomposition needs the first one's outcome, so the two never run at once: see `least_squares`
    beta, shift = fit(wide(refit[0]) @ slope, wide(refit[1]))
    latent = wide(evaluation) @ slope
    return latent + offset, latent @ beta + shift


def _flat(dataset: Dataset, subset: Subset) -> tuple[Array, Array]:
    """Return the subset's preprocessed inputs side by side, float32 [N, p], and the targets [N, C]."""
    columns = []
    for m in subset:
        x = jnp.asarray(as_input(np.asarray(dataset.inputs[m][:])))
        x = dataset.preprocess[m](x) if m in dataset.preprocess else x
        columns.append(x.reshape(len(x), -1).astype(jnp.float32))
    return jnp.concatenate(columns, axis=1), targets(dataset.task, jnp.asarray(dataset.label))
