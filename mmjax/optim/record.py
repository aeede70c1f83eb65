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


def room_for(num_objectives: int | None) -> int:
    """Return how many objectives a state is sized for: those told, else `CAPACITY`."""
    return CAPACITY if num_objectives is None else num_objectives


def empty_record(num_objectives: int | None) -> WeightRecord:
    """Return the record before the first step: zeros."""
    return WeightRecord(jnp.zeros(room_for(num_objectives), jnp.float32), jnp.asarray(num_objectives or 0, jnp.int32))


def check_room(record: WeightRecord, num_objectives: int) -> None:
    """Raise ValueError if so many objectives do not fit: others than the constructor was told, or over 16."""
    capacity = record.padded.shape[-1]
    if num_objectives > capacity or (capacity != CAPACITY and num_objectives != capacity):
        raise ValueError(
            f"{num_objectives} objectives came, but the state was made for {capacity}: give the combiner "
            f"num_objectives={num_objectives}"
        )


def recorded(record: WeightRecord, weights: Array) -> WeightRecord:
    """Return `record` with these weights [K]. Raises ValueError if they do not fit (`check_room`)."""
    (k,) = weights.shape
    check_room(record, k)
    padded = jnp.zeros_like(record.padded).at[:k].set(weights.astype(jnp.float32))
    return WeightRecord(padded, jnp.full_like(record.size, k))
