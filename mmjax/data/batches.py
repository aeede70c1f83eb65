"""Batches by index: which examples make up the batch of step t is a function of (seed, t) alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.dataset import Dataset


class Batch(NamedTuple):
    """What one step sees; a pytree.

    inputs: {modality: [B, ...]}; label: int32 [B] or float32 [B, L]; weight: float32 [B], 0 for padding; present: bool
    [B, M], columns in the sorted order of the modalities, which examples have which; None: everything is there.

    >>> Batch({"a": np.zeros((2, 3))}, np.array([0, 1]), np.ones(2)).label.shape
    (2,)
    """

    inputs: dict[str, Any]
    label: Any
    weight: Any
    present: Any = None


@lru_cache(maxsize=4)  # a batch touches two epochs at most; a second stream may run beside the first
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(num_examples).astype(np.int64)
    order.flags.writeable = False
    return order


def batch_indices(seed: int, step: int, num_examples: int, batch_size: int) -> np.ndarray:
    """Return the examples of the batch of `step`, int64 [batch_size].

    The stream is one permutation of all examples an epoch, end to end; step t takes positions t*B to (t+1)*B - 1.
    So nothing is dropped, every batch has the same size, and any batch can be made without those before it.

    Raises:
      ValueError: a negative seed or step, or a batch size outside 1..num_examples.

    >>> first, second = (batch_indices(0, step, num_examples=6, batch_size=4) for step in (0, 1))
    >>> sorted([*first, *second[:2]]) == list(range(6))
    True
    """
    if seed < 0 or step < 0:
        raise ValueError(f"seed and step must be at least 0, got seed={seed}, step={step}")
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size must be in 1..{num_examples} (the number of examples), got {batch_size}")
    epoch, start = divmod(step * batch_size, num_examples)
    order = _permutation(seed, epoch, num_examples)
    indices = order[start : start + batch_size]
    missing = batch_size - len(indices)
    if missing:
        return np.concatenate([indices, _permutation(seed, epoch + 1, num_examples)[:missing]])
    return indices.copy()


def as_input(array: np.ndarray) -> np.ndarray:
    """Return `array` in the number format that a step takes: float32, or int32 for signed integers (token numbers).

    >>> as_input(np.array([[0, 255]], np.uint8)).dtype, as_input(np.array([[7]])).dtype
    (dtype('float32'), dtype('int32'))
    """
    return array.astype(np.int32 if array.dtype.kind == "i" else np.float32, copy=False)


def gather(dataset: Dataset, indices: np.ndarray) -> Batch:
    """Return the examples at `indices` (int [B]) as a batch in which every example weighs 1.

    Raises:
      IndexError: an index outside the dataset.

    >>> from mmjax.data.dataset import Task
    >>> data = Dataset({"a": np.arange(6.0).reshape(3, 2)}, np.array([0, 1, 0]), Task("classification", 2))
    >>> gather(data, np.array([2, 0])).inputs["a"].tolist()
    [[4.0, 5.0], [0.0, 1.0]]
    """
    inputs = {name: as_input(dataset.inputs[name][indices]) for name in dataset.modalities}
    label_type = np.int32 if dataset.task.kind == "classification" else np.float32
    label = dataset.label[indices].astype(label_type, copy=False)
    present = None if dataset.present is None else dataset.present[indices]
    return Batch(inputs, label, np.ones(len(indices), np.float32), present)


def evaluation_batches(dataset: Dataset, batch_size: int) -> Iterator[Batch]:
    """Yield the whole dataset in order, in batches of one size: the last one is padded with examples of weight 0.

    A weighted mean over the batches therefore counts every example exactly once, and one compiled program serves all.

    Raises:
      ValueError: a batch size below 1.

    >>> from mmjax.data.dataset import Task
    >>> data = Dataset({"a": np.zeros((5, 2))}, np.zeros(5, int), Task("classification", 2))
    >>> [batch.weight.tolist() for batch in evaluation_batches(data, 3)]
    [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return _evaluation_batches(dataset, batch_size)  # a generator of its own, so that the check above is immediate


def _evaluation_batches(dataset: Dataset, batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(dataset), batch_size):
        real = min(batch_size, len(dataset) - start)
        indices = np.zeros(batch_size, np.int64)
        indices[:real] = np.arange(start, start + real)
        batch = gather(dataset, indices)
        batch.weight[real:] = 0.0
        yield batch
