"""Token numbers among one's own arrays: whole numbers that name entries of a vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_TOKEN = 2**24  # arrays are stored in float32, which holds every whole number up to here


@dataclass(frozen=True)
class TokenNumbers:
    """x -> int32, as encoders of tokens take it; runs inside the compiled step, so that later inputs are treated alike.

    >>> TokenNumbers()(np.array([[3.0, 0.0]], np.float32)).tolist()
    [[3, 0]]
    """

    def __call__(self, x: Any) -> Any:
        """Return the batch as int32; NumPy or JAX array, same shape."""
        return x.astype(np.int32)


def token_problems(name: str, array: np.ndarray) -> list[str]:
    """Return what keeps an array from being token numbers [N, T].

    >>> token_problems("words", np.array([[0.5]]))
    ['tokens names words, whose numbers are float64; token numbers are integers']
    """
    if array.dtype.kind not in "iu":
        return [f"tokens names {name}, whose numbers are {array.dtype}; token numbers are integers"]
    if array.ndim != 2:
        return [f"tokens names {name}, whose shape is {array.shape}; token numbers are [N, T]"]
    if array.size and (array.min() < 0 or array.max() >= MAX_TOKEN):
        return [
            f"tokens names {name}, whose numbers go from {array.min()} to {array.max()}; token numbers go from 0 "
            f"(padding) to below {MAX_TOKEN}"
        ]
    return []
