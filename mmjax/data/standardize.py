"""Standardisation with the statistics of the training split, run inside the compiled step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_ROWS = 1024  # rows a chunk: float64 copies of a whole image set would double the memory


@dataclass(frozen=True)
class Standardize:
    """x -> (x - mean) / scale along the last axis; hashable, equal when the numbers are.

    mean, scale: one number a feature of the last axis, or one for all.
    add_channel: x is [B, H, W]; a channel axis is added first, so that the result is [B, H, W, 1].

    It is kept apart from the arrays, so that new inputs are given to a trained model as they were given to training.

    >>> Standardize(mean=(1.0, 0.0), scale=(2.0, 1.0))(np.array([[3.0, 5.0]])).tolist()
    [[1.0, 5.0]]
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    add_channel: bool = False

    def __call__(self, x: Any) -> Any:
        """Return the standardised batch; NumPy or JAX array, same shape apart from the channel axis."""
        if self.add_channel:
            x = x[..., None]
        return (x - np.asarray(self.mean, np.float32)) / np.asarray(self.scale, np.float32)


def fit_standardize(array: np.ndarray, *, add_channel: bool = False) -> Standardize:
    """Return the standardisation that gives `array` [N, ..., F] mean 0 and standard deviation 1 in every feature F.

    Statistics run over all axes but the last, in float64: a dimension of a vector, a feature of a sequence (over
    time), a channel of an image (over pixels). A constant feature is centred only (scale 1).

    >>> fit_standardize(np.array([[0.0, 7.0], [2.0, 7.0]]))
    Standardize(mean=(1.0, 7.0), scale=(1.0, 1.0), add_channel=False)
    """
    features = 1 if add_channel else array.shape[-1]
    chunks = [array[start : start + _ROWS].reshape(-1, features) for start in range(0, len(array), _ROWS)]
    count = array.size // features
    total, squares = np.zeros(features), np.zeros(features)
    for chunk in chunks:
        total += chunk.sum(axis=0, dtype=np.float64)
    mean = total / count
    for chunk in chunks:  # a second pass: squares about the mean keep their digits, E[x^2] - E[x]^2 would not
        squares += ((chunk - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(squares / count)
    # relative to the mean, since the rounding of a constant such as 0.1 leaves a deviation that is not exactly 0
    constant = deviation <= np.maximum(1e-7 * np.abs(mean), np.finfo(np.float32).tiny)
    scale = np.where(constant, 1.0, deviation)
    return Standardize(_float32_tuple(mean), _float32_tuple(scale), add_channel)


def _float32_tuple(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.asarray(values, np.float32).tolist())
