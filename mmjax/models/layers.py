"""Layers that the encoders share: normalisation, pooling, dropout; the same numbers on any number of devices."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

NormKind = Literal["none", "batch", "group"]
NORMS: tuple[NormKind, ...] = ("none", "batch", "group")


class Norm(nn.Module):
    """Batch norm (over the global batch), group norm, or nothing.

    kind: "batch" keeps running statistics in the collection `batch_stats` (momentum .9, as PyTorch's .1); "group" has
    the largest number of groups up to `groups` that divides the channels. axis_name: the devices' axis under pmap.

    >>> x = jnp.array([[0.0, 1.0], [2.0, 5.0]])
    >>> norm = Norm("batch")
    >>> variables = norm.init(jax.random.key(0), x, train=False)
    >>> y, moved = norm.apply(variables, x, train=True, mutable="batch_stats")
    >>> y.round(2).tolist(), [round(float(mean), 2) for mean in moved["batch_stats"]["batch"]["mean"]]
    ([[-1.0, -1.0], [1.0, 1.0]], [0.1, 0.3])
    """

    kind: NormKind
    dtype: Any = jnp.float32
    axis_name: str | None = None
    groups: int = 8

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalise x [B, ..., C]."""
        if self.kind == "batch":
            # initialisation runs outside pmap, where the axis does not exist
            axis_name = None if self.is_initializing() else self.axis_name
            return nn.BatchNorm(
                use_running_average=not train, momentum=0.9, dtype=self.dtype, axis_name=axis_name, name="batch"
            )(x)
        if self.kind == "group":
            channels = x.shape[-1]
            groups = max(g for g in range(1, min(self.groups, channels) + 1) if channels % g == 0)
            return nn.GroupNorm(num_groups=groups, dtype=self.dtype, name="group")(x)
        if self.kind != "none":
            raise ValueError(f"norm must be one of {NORMS}, got {self.kind!r}")
        return x


def max_pool_2x2(x: Array) -> Array:
    """Max over non-overlapping 2x2 windows of [B, H, W, C], odd sizes cropped (7 -> 3).

    A reshape and a maximum: on CPU its gradient is much faster than that of the general windowed pooling.

    >>> max_pool_2x2(jnp.arange(9.0).reshape(1, 3, 3, 1)).ravel().tolist()
    [4.0]
    """
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


class Dropout(nn.Module):
    """Dropout whose mask depends on the key and the example's place in the global batch, not on the devices.

    >>> x = jnp.ones((2, 1000))
    >>> kept = Dropout(rate=0.5).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    >>> sorted(set(kept.ravel().tolist())), bool((Dropout(rate=0.5).apply({}, x, train=False) == x).all())
    ([0.0, 2.0], True)
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Drop entries of x [B, ...] with probability `rate` while training, scaling the rest by 1/(1-rate)."""
        if not train or self.rate == 0.0 or self.is_initializing():
            return x
        rows = jnp.arange(x.shape[0])
        if self.axis_name is not None:
            rows = rows + jax.lax.axis_index(self.axis_name) * x.shape[0]
        key = self.make_rng("dropout")
        keep = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), 1 - self.rate, x.shape[1:]))(rows)
        return jnp.where(keep, x / (1 - self.rate), 0)
