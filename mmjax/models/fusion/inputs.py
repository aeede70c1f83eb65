"""What every fusion head does with its input first: check it, and see to absent modalities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmjax.models.recurrent_encoder import RecurrentEncoder
from mmjax.models.tokens import as_vector

AbsentKind = Literal["zero", "token", "mean", "recurrent"]
ABSENT: tuple[AbsentKind, ...] = ("zero", "token", "mean", "recurrent")


def check_present(present: Array | None, batch: int, modalities: int) -> Array:
    """Return `present` as bool [B, M], columns in the sorted order of the modalities; None means everything is there.

    Raises:
      ValueError: a wrong shape or type; a row, where values are known, in which every modality is absent.

    >>> check_present(None, 1, 2).tolist()
    [[True, True]]
    """
    if present is None:
        # behind a barrier, so that the compiler makes the same program of this constant as of an argument, and the
        # result is the same bit for bit
        return jax.lax.optimization_barrier(jnp.ones((batch, modalities), bool))
    if present.shape != (batch, modalities) or present.dtype != bool:
        raise ValueError(
            f"present must be bool [{batch}, {modalities}], one flag an example and modality; "
            f"got {present.dtype} {present.shape}"
        )
    if not isinstance(present, jax.core.Tracer):
        empty = np.flatnonzero(~np.asarray(present).any(axis=1))
        if empty.size:
            raise ValueError(f"present leaves example {empty[0]} without any modality")
    return jnp.asarray(present)


def prepare(features: Mapping[str, Array], present: Array | None) -> tuple[dict[str, Array], Array]:
    """Return the features, zero where absent, in sorted order, and `present` as bool [B, M].

    Whatever an absent modality's encoder said (NaN included) is gone after this, and no gradient goes back to it.

    Raises:
      ValueError: no modality, features that are neither [B, D] nor [B, T, D], batches of different sizes, or what
        `check_present` says.

    >>> features, present = prepare({"b": jnp.ones((1, 2)), "a": jnp.ones((1, 1))}, jnp.array([[True, False]]))
    >>> {m: z.tolist() for m, z in features.items()}
    {'a': [[1.0]], 'b': [[0.0, 0.0]]}
    """
    if not features:
        raise ValueError("a fusion head needs the features of at least one modality")
    names = sorted(features)
    batch = features[names[0]].shape[0]
    for m in names:
        shape = features[m].shape
        if len(shape) not in (2, 3) or shape[0] != batch:
            raise ValueError(f"features of {m!r} must be [{batch}, D] or [{batch}, T, D], got {shape}")
    present = check_present(present, batch, len(names))
    kept = {}
    for i, m in enumerate(names):
        z = features[m]
        kept[m] = jnp.where(present[:, i].reshape(batch, *[1] * (z.ndim - 1)), z, 0)
    return kept, present


def mean_weights(present: Array) -> Array:
    """Return float32 [B, M]: 1/n for each of the n modalities present in a row, 0 for the others.

    >>> mean_weights(jnp.array([[True, False, True]])).tolist()
    [[0.5, 0.0, 0.5]]
    """
    count = jnp.maximum(jnp.sum(present, axis=1, keepdims=True), 1)
    return present.astype(jnp.float32) / count.astype(jnp.float32)


def weighted_sum(parts: list[Array], weights: Array) -> Array:
    """Return Σ_m weights[:, m] parts[m], for M arrays [B, ...] of one shape, in their number format.

    >>> weighted_sum([jnp.ones((1, 2)), 3 * jnp.ones((1, 2))], jnp.array([[0.5, 0.5]])).tolist()
    [[2.0, 2.0]]
    """
    total = None
    for i, part in enumerate(parts):
        term = part * weights[:, i].reshape(-1, *[1] * (part.ndim - 1)).astype(part.dtype)
        total = term if total is None else total + term
    assert total is not None
    return total


def bilateral(features: Mapping[str, Array], what: str) -> tuple[str, str]:
    """Return the two modalities' names. Raises ValueError unless there are exactly two.

    >>> bilateral({"b": 1, "a": 2}, "FiLM")
    ('a', 'b')
    """
    if len(features) != 2:
        raise ValueError(f"{what} fuses exactly 2 modalities, got {len(features)}: {sorted(features)}")
    first, second = sorted(features)
    return first, second


class FillAbsent(nn.Module):
    """Vectors {modality: [B, D]} of all modalities, for heads that have one place for each.

    kind: what stands in the place of an absent one: "zero"; "token", a learned vector; "mean", the running mean of the
    modality's features over the training examples that have it (collection `batch_stats`, momentum .9); "recurrent",
    what a `RecurrentEncoder` makes of the present ones in `rounds` rounds.
    """

    kind: AbsentKind = "zero"
    axis_name: str | None = None
    rounds: int = 2

    @nn.compact
    def __call__(self, features: Mapping[str, Array], present: Array, train: bool) -> dict[str, Array]:
        """Fill features that `prepare` has checked; present: bool [B, M]."""
        vectors = {m: as_vector(features[m]) for m in sorted(features)}
        if self.kind == "zero":
            return vectors
        if self.kind == "recurrent":
            return RecurrentEncoder(rounds=self.rounds, name="recurrent")(vectors, present, train)
        filled = {}
        for i, (m, z) in enumerate(vectors.items()):
            here = present[:, i, None]
            instead = self._token(m, z) if self.kind == "token" else self._mean(m, z, here, train)
            filled[m] = jnp.where(here, z, instead.astype(z.dtype))
        return filled

    def _token(self, modality: str, z: Array) -> Array:
        return self.param(f"absent_{modality}", nn.initializers.normal(0.02), (z.shape[-1],), jnp.float32)

    def _mean(self, modality: str, z: Array, here: Array, train: bool) -> Array:
        mean = self.variable("batch_stats", f"mean_{modality}", jnp.zeros, (z.shape[-1],), jnp.float32)
        if train and not self.is_initializing():
            total: Any = jnp.sum(jax.lax.stop_gradient(z).astype(jnp.float32), axis=0)  # absent ones are zero
            count: Any = jnp.sum(here).astype(jnp.float32)
            if self.axis_name is not None:
                total, count = jax.lax.psum((total, count), self.axis_name)
            step = jnp.where(count > 0, 0.1, 0.0)
            mean.value = mean.value + step * (total / jnp.maximum(count, 1) - mean.value)
        return mean.value
