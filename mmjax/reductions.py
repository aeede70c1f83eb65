"""Sums that cost one pass over what they sum: many at a time, or over the few rows of objectives.

XLA fuses what is summed into each sum; a second sum of the same thing computes it, and reads what it is made of, again.
On CPU a reduction over a leading axis besides takes up to a hundred times as long as adding the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


def sum_rows(x: Array) -> Array:
    """Return Σ_k x_k of x [K, ...], K >= 1, for small K: K − 1 additions.

    >>> sum_rows(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [4.0, 6.0]
    """
    return reduce(jnp.add, list(x))


class RowMoments(NamedTuple):
    """Mean and sample variance (ddof 1) over the rows of x [S, ...], each [...].

    >>> [float(x) for x in row_moments(jnp.array([1.0, 2.0, 6.0]))]
    [3.0, 7.0]
    """

    mean: Array
    variance: Array


def row_moments(x: Array) -> RowMoments:
    """Return mean and sample variance over rows, x [S, ...], S >= 2; the program grows with S."""
    mean = sum_rows(x) / x.shape[0]
    return RowMoments(mean, sum_rows((x - mean) ** 2) / (x.shape[0] - 1))


def any_row(x: Array) -> Array:
    """Return, of bool [K, ...], K >= 1, whether any row is True at an entry.

    >>> any_row(jnp.array([[True, False], [False, False]])).tolist()
    [True, False]
    """
    return reduce(jnp.logical_or, list(x))


def sums(arrays: Sequence[Array]) -> Array:
    """Return the sum of each of these arrays of one shape, [n], in one pass.

    >>> sums([jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])]).tolist()
    [3.0, 7.0]
    """
    if arrays[0].ndim == 0:
        return jnp.stack(arrays)

    def add(one: Sequence[Array], two: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(a + b for a, b in zip(one, two, strict=True))

    zeros = tuple(jnp.zeros((), array.dtype) for array in arrays)
    # The last axis first: partial sums keep digits that one running sum over millions of entries would lose.
    partial = jax.lax.reduce(tuple(arrays), zeros, add, (arrays[0].ndim - 1,))
    return jnp.stack([jnp.sum(array) for array in partial])


def means_where(marked: Sequence[tuple[Array, Array]], axis_name: str | None = None) -> Array:
    """Return the mean of each x over the entries that its bool `where` marks, [n]; 0 where there is none. In one pass.

    marked: pairs (x, where), all of one shape. axis_name: devices that the entries are spread over.

    >>> x = jnp.array([1.0, 2.0, 6.0])
    >>> means_where([(x, x > 1), (x, x > 9)]).tolist()
    [4.0, 0.0]
    """
    found = sums([*(jnp.where(where, x, 0) for x, where in marked), *(where.astype(x.dtype) for x, where in marked)])
    totals, counts = jnp.split(found if axis_name is None else jax.lax.psum(found, axis_name), 2)
    return totals / jnp.maximum(counts, 1)
