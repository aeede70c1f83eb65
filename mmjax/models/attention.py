"""Attention blocks that encoders and fusion heads share, on `jax.nn.dot_product_attention`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmjax.models.layers import Dropout


class Attention(nn.Module):
    """Multi-head attention: queries from x [B, T, D], keys and values from context [B, S, D']; result [B, T, D].

    real: bool [B, S], False where a position of the context is padding and must not be looked at. D must be divisible
    by `heads`. A row without any real position gets the mean of its context, which means nothing: the caller masks it.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array, real: Array | None) -> Array:
        """Attend."""
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"attention width {width} must be divisible by heads={self.heads}")

        def split(y: Array, name: str) -> Array:
            y = nn.Dense(width, dtype=self.dtype, name=name)(y)
            return y.reshape(*y.shape[:2], self.heads, width // self.heads)

        mask = None if real is None else real[:, None, None, :]
        attended = jax.nn.dot_product_attention(
            split(x, "query"), split(context, "key"), split(context, "value"), mask=mask
        )
        return nn.Dense(width, dtype=self.dtype, name="out")(attended.reshape(x.shape))


class TransformerBlock(nn.Module):
    """Pre-norm block: x + attention(norm x), then x + MLP(norm x), GELU, dropout on both branches.

    With a `context` the queries look there (cross-attention); without, at x itself. real: bool, which positions of
    what is looked at count; None: all.
    """

    heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, real: Array | None, train: bool, context: Array | None = None) -> Array:
        """Map x [B, T, D] to [B, T, D]."""
        width = x.shape[-1]
        y = nn.LayerNorm(dtype=self.dtype, name="norm_attention")(x)
        looked_at = y if context is None else nn.LayerNorm(dtype=self.dtype, name="norm_context")(context)
        y = Attention(self.heads, self.dtype, name="attention")(y, looked_at, real)
        x = x + Dropout(self.dropout, self.axis_name, name="dropout_attention")(y, train)
        y = nn.LayerNorm(dtype=self.dtype, name="norm_mlp")(x)
        y = nn.gelu(nn.Dense(self.mlp_ratio * width, dtype=self.dtype, name="mlp_in")(y))
        y = nn.Dense(width, dtype=self.dtype, name="mlp_out")(y)
        return x + Dropout(self.dropout, self.axis_name, name="dropout_mlp")(y, train)
