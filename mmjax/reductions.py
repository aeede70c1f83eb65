"""Sums that cost one pass over what they sum: many at a time, or over the few rows of objectives.

XLA fuses what is summed into each sum; a second sum of the same thing computes it, and reads what it is made of, again.
On CPU a reduction over a leading axis besides takes up to a hundred times as long as adding the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

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
    """Return mean and sample variance over rows, x [S, ...], S >= 2, as products with a vector of ones.

    For many rows additions would not do: XLA writes the mean anew into every term of the variance.
    """
    ones = jnp.ones(x.shape[0], x.dtype)

    def total(rows: Array) -> Array:
        # full precision: some devices multiply in bfloat16 unless they are told not to
        return jnp.tensordot(ones, rows, axes=1, precision=jax.lax.Precision.HIGHEST)

    mean = total(x) / x.shape[0]
    return RowMoments(mean, total((x - mean) ** 2) / (x.shape[0] - 1))


def any_row(x: Array) -> Array:
    """Return, of bool [K, ...], K >= 1, whether any row is True at an entry.

    >>> any_row(jnp.array([[True, False], [False, False]])).tolist()
    [True, False]
    """
    return reduce(jnp.logical_or, list(x))


LEAST, MOST = 256, 4096
"""Length of the axis that is summed at first: short ones are merged with the axes before them, long ones cut."""


def sums(arrays: Sequence[Array]) -> Array:
    """Return the sum of each of these arrays of one shape and type, [n], in one pass; differentiable.

    >>> sums([jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])]).tolist()
    [3.0, 7.0]
    """
    return jnp.stack([jnp.sum(part) for part in _partial_sums(tuple(_folded(array) for array in arrays))])


def _folded(x: Array) -> Array:
    """Return x with a last axis of at most `MOST` entries, and at least `LEAST` if it has as many; filled up with zeros."""
    size, lead = 1, x.ndim
    while lead and size < LEAST:
        lead -= 1
        size *= x.shape[lead]
    x = x.reshape(*x.shape[:lead], size)
    if size <= MOST:
        return x
    blocks = -(-size // MOST)
    room = [(0, 0)] * lead + [(0, blocks * MOST - size)]
    return jnp.pad(x, room).reshape(*x.shape[:lead], blocks, MOST)


@jax.custom_jvp
def _partial_sums(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Sum each over its last axis, in one reduction of many operands; one running sum is never longer than `MOST`."""

    def add(one: Sequence[Array], two: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(a + b for a, b in zip(one, two, strict=True))

    zeros = tuple(jnp.zeros((), array.dtype) for array in arrays)
    return tuple(jax.lax.reduce(arrays, zeros, add, (arrays[0].ndim - 1,)))


@_partial_sums.defjvp
def _partial_sums_jvp(primals: Any, tangents: Any) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    # JAX has no derivative of such a reduction where some of its operands are constant.
    return _partial_sums(*primals), tuple(jnp.sum(tangent, axis=-1) for tangent in tangents[0])


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
