"""One-dimensional convolutions for waveforms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.config import EncoderConfig
from mmjax.models.encoders.sequences import FEATURES, FeatureKind
from mmjax.models.layers import NORMS, Norm, NormKind
from mmjax.models.options import check_option

_POOL = 4


class Conv1D(nn.Module):
    """Convolutions over time, each with norm, ReLU and max-pooling by 4 (it floors); then the mean over time.

    The first convolution has `kernel` samples at `stride` and `channels` channels, as has the second (of 3); each
    further one doubles the channels. Input [B, T] or [B, T, C]; features [B, D], D = channels 2**(layers - 2), or
    tokens. Source: the M5 network of Dai et al., "Very Deep Convolutional Neural Networks for Raw Waveforms" (there
    kernel 80, stride 4, 128 channels, 4 layers).

    >>> import jax
    >>> from functools import partial
    >>> init = partial(Conv1D(128).init_with_output, train=False)
    >>> jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, 8000)))[0].shape
    (2, 512)
    """

    channels: int = 32
    layers: int = 4
    kernel: int = 80
    stride: int = 4
    norm: NormKind = "batch"
    features: FeatureKind = "vector"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Encode x [B, T] or [B, T, C]. Raises ValueError for a wave too short for so many poolings."""
        if x.ndim == 2:
            x = x[..., None]
        shortest = self.stride * _POOL**self.layers
        if x.ndim != 3 or x.shape[1] < shortest:
            raise ValueError(
                f"Conv1D with layers={self.layers} and stride={self.stride} needs waves [B, T] or [B, T, C] of at "
                f"least {shortest} samples, got shape {x.shape}"
            )
        for i in range(self.layers):
            x = nn.Conv(
                self.channels * 2 ** max(i - 1, 0),
                (self.kernel if i == 0 else 3,),
                strides=self.stride if i == 0 else 1,
                use_bias=self.norm == "none",
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            x = nn.relu(Norm(self.norm, self.dtype, self.axis_name, name=f"norm_{i}")(x, train))
            kept = x.shape[1] // _POOL
            x = x[:, : kept * _POOL].reshape(x.shape[0], kept, _POOL, -1).max(axis=2)
        return x if self.features == "tokens" else jnp.mean(x, axis=1)


@dataclass(frozen=True, kw_only=True)
class Conv1DConfig(EncoderConfig):
    """One-dimensional convolutions on waveforms.

    Example:
    >>> Conv1DConfig().name
    'conv1d'
    """

    name: str = "conv1d"
    channels: int = 32
    """Channels of the first two convolutions; each further one doubles them."""
    layers: int = 4
    """Number of convolutions."""
    kernel: int = 80
    """Samples under the first convolution."""
    stride: int = 4
    """Samples between its places."""
    norm: NormKind = "batch"
    """Normalisation after each convolution."""
    features: FeatureKind = "vector"
    """vector: the mean over time; tokens: one token a place."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        for option in ("channels", "layers", "kernel", "stride"):
            value = getattr(self, option)
            check_option("encoder", option, value, value >= 1, "at least 1")
        check_option("encoder", "norm", self.norm, self.norm in NORMS, f"one of {NORMS}")
        check_option("encoder", "features", self.features, self.features in FEATURES, f"one of {FEATURES}")

    def build(self, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return Conv1D(self.channels, self.layers, self.kernel, self.stride, self.norm, self.features, dtype, axis_name)
