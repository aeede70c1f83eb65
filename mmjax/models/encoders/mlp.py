"""Multi-layer perceptron."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.config import EncoderConfig
from mmjax.models.layers import NORMS, Dropout, Norm, NormKind
from mmjax.models.options import check_option


class MLP(nn.Module):
    """Flatten, then `depth` blocks of dense, norm, ReLU, dropout; features [B, width].

    >>> import jax
    >>> module = MLP(width=5)
    >>> variables = module.init(jax.random.key(0), jnp.ones((2, 3, 4)), train=False)
    >>> module.apply(variables, jnp.ones((2, 3, 4)), train=False).shape
    (2, 5)
    """

    width: int = 128
    depth: int = 2
    norm: NormKind = "none"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Encode x [B, ...]."""
        x = x.reshape(x.shape[0], -1)
        for i in range(self.depth):
            # a bias right before batch norm would have no effect but a zero gradient for Adam to amplify
            x = nn.Dense(self.width, use_bias=self.norm != "batch", dtype=self.dtype, name=f"dense_{i}")(x)
            x = Norm(self.norm, self.dtype, self.axis_name, name=f"norm_{i}")(x, train)
            x = nn.relu(x)
            x = Dropout(self.dropout, self.axis_name, name=f"dropout_{i}")(x, train)
        return x


@dataclass(frozen=True, kw_only=True)
class MLPConfig(EncoderConfig):
    """Multi-layer perceptron on the flattened input.

    Example:
    >>> MLPConfig(width=64).name
    'mlp'
    """

    name: str = "mlp"
    width: int = 128
    """Units of every layer, the features included."""
    depth: int = 2
    """Number of layers."""
    norm: NormKind = "none"
    """Normalisation before each ReLU."""
    dropout: float = 0.0
    """Share of units dropped after each layer while training, in [0, 1)."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_option("encoder", "width", self.width, self.width >= 1, "at least 1")
        check_option("encoder", "depth", self.depth, self.depth >= 1, "at least 1")
        check_option("encoder", "norm", self.norm, self.norm in NORMS, f"one of {NORMS}")
        check_option("encoder", "dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)")

    def build(self, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return MLP(self.width, self.depth, self.norm, self.dropout, dtype, axis_name)
