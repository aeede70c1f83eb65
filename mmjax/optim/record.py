"""The weights that a combiner used last, kept in its state at a shape that never changes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

CAPACITY = 16
"""Objectives that a state has room for when their number is not known at init."""


class WeightRecord(NamedTuple):
    """`padded` [capacity] float32 holds `size` weights (int32 scalar).

    An Optax state must keep its shapes from init on (scan, donation, no second compilation), but `init(params)` does
    not know K unless the constructor was told `num_objectives`; hence the room to spare.
    """

    padded: Array
    size: Array

    @property
    def weights(self) -> Array:
        """The weights, [K]. Inside a trace of a combiner that was not told `num_objectives`: [16], zero-padded."""
        if isinstance(self.size, jax.core.Tracer) or isinstance(self.padded, jax.core.Tracer):
            return self.padded
        return self.padded[..., : int(jnp.max(self.size))]


def empty_record(num_objectives: int | None) -> WeightRecord:
    """Return the record before the first step: zeros."""
    size = CAPACITY if num_objectives is None else num_objectives
    return WeightRecord(jnp.zeros(size, jnp.float32), jnp.asarray(num_objectives or 0, jnp.int32))


def recorded(record: WeightRecord, weights: Array) -> WeightRecord:
    """Return `record` with these weights [K].

    Raises ValueError if they do not fit: another number of objectives than the constructor was told, or over 16.
    """
    (k,) = weights.shape
    capacity = record.padded.shape[-1]
    if k > capacity or (capacity != CAPACITY and k != capacity):
        raise ValueError(
            f"{k} objectives came, but the state was made for {capacity}: give the combiner num_objectives={k}"
        )
    padded = jnp.zeros(capacity, jnp.float32).at[:k].set(weights.astype(jnp.float32))
    return WeightRecord(padded, jnp.full_like(record.size, k))
