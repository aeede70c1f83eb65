"""The LeNet of the published AV-MNIST setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.config import EncoderConfig
from mmjax.models.layers import NORMS, Norm, NormKind, max_pool_2x2
from mmjax.models.options import check_option


class LeNet(nn.Module):
    """The AV-MNIST LeNet: conv 5x5 to `channels`, then `layers` conv 3x3, each doubling the channels.

    Stride 1, same padding, no bias; each convolution followed by norm, ReLU and a 2x2 max-pool that floors. Input
    [B, H, W, C] (or [B, H, W]); features [B, D], D = channels * 2**layers * what is left of H and W. With batch norm,
    an image 28x28 with channels=3 and layers=3 has 3,567 parameters and 24 features.
    Source: I2M2 (Madaan et al.), the published AV-MNIST setting.

    >>> import jax
    >>> module = LeNet(channels=3, layers=3)
    >>> variables = module.init(jax.random.key(0), jnp.ones((2, 28, 28, 1)), train=False)
    >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
    3567
    """

    channels: int = 3
    layers: int = 3
    norm: NormKind = "batch"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Encode x [B, H, W, C]. Raises ValueError when the image is too small for so many poolings."""
        if x.ndim == 3:
            x = x[..., None]
        if x.ndim != 4 or min(x.shape[1:3]) < 2 ** (self.layers + 1):
            raise ValueError(
                f"LeNet with layers={self.layers} needs images [B, H, W, C] of at least {2 ** (self.layers + 1)} pixels "
                f"a side; got shape {x.shape}"
            )
        for i in range(self.layers + 1):
            size = 5 if i == 0 else 3
            x = nn.Conv(
                self.channels * 2**i, (size, size), padding="SAME", use_bias=False, dtype=self.dtype, name=f"conv_{i}"
            )(x)
            x = Norm(self.norm, self.dtype, self.axis_name, name=f"norm_{i}")(x, train)
            x = max_pool_2x2(nn.relu(x))
        return x.reshape(x.shape[0], -1)


@dataclass(frozen=True, kw_only=True)
class LeNetConfig(EncoderConfig):
    """The published AV-MNIST LeNet.

    Example:
    >>> LeNetConfig(channels=6).name
    'lenet'
    """

    name: str = "lenet"
    channels: int = 3
    """Channels of the first convolution; each further one doubles them."""
    layers: int = 3
    """Number of 3x3 convolutions after the 5x5 one; the image is halved layers + 1 times."""
    norm: NormKind = "batch"
    """Normalisation after each convolution."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_option("encoder", "channels", self.channels, self.channels >= 1, "at least 1")
        check_option("encoder", "layers", self.layers, self.layers >= 0, "at least 0")
        check_option("encoder", "norm", self.norm, self.norm in NORMS, f"one of {NORMS}")

    def build(self, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return LeNet(self.channels, self.layers, self.norm, dtype, axis_name)
