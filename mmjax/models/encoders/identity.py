"""Features made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.config import EncoderConfig


class Identity(nn.Module):
    """Pass features [B, D] or tokens [B, T, D] on as they are, in the model's number format.

    >>> Identity().apply({}, jnp.ones((2, 3)), train=False).shape
    (2, 3)
    """

    dtype: Any = jnp.float32

    def __call__(self, x: Array, train: bool) -> Array:
        """Return x."""
        del train
        if x.ndim not in (2, 3):
            raise ValueError(f"identity takes features [B, D] or tokens [B, T, D], got shape {x.shape}")
        return x.astype(self.dtype)


@dataclass(frozen=True, kw_only=True)
class IdentityConfig(EncoderConfig):
    """No encoder: features made elsewhere.

    Example:
    >>> IdentityConfig().name
    'identity'
    """

    name: str = "identity"

    def build(self, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        del axis_name
        return Identity(dtype)
