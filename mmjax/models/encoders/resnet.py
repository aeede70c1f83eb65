"""ResNet-18 for images and spectrograms, with a stem for small ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.config import EncoderConfig
from mmjax.models.encoders.sequences import FEATURES, FeatureKind
from mmjax.models.layers import Norm, NormKind
from mmjax.models.options import check_option

Stem = Literal["small", "large"]
_BLOCKS = 2  # a stage
_STAGES = 4


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with norm; the shortcut is a 1x1 convolution where size or channels change."""

    channels: int
    stride: int
    norm: NormKind
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map x [B, H, W, C] to [B, H/stride, W/stride, channels]."""

        def conv(y: Array, size: int, stride: int, name: str) -> Array:
            pad = size // 2  # as published: "SAME" would pad an even size unevenly at stride 2
            y = nn.Conv(
                self.channels,
                (size, size),
                strides=stride,
                padding=((pad, pad), (pad, pad)),
                use_bias=False,
                dtype=self.dtype,
                name=f"conv_{name}",
            )(y)
            return Norm(self.norm, self.dtype, self.axis_name, name=f"norm_{name}")(y, train)

        y = conv(nn.relu(conv(x, 3, self.stride, "0")), 3, 1, "1")
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = conv(x, 1, self.stride, "shortcut")
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """Residual network of 18 layers without its classifier: features [B, 8 width] or tokens [B, h w, 8 width].

    stem: "small" is one 3x3 convolution at stride 1, for inputs of about 32 pixels; "large" is the published 7x7 at
    stride 2 with a max-pool. Input [B, H, W, C] or [B, H, W]. remat: the backward pass computes each block again
    instead of keeping its activations. Source: He et al., "Deep Residual Learning for Image Recognition"; the small
    stem is the usual one for CIFAR.

    >>> import jax
    >>> from functools import partial
    >>> init = partial(ResNet18(stem="large").init, train=False)
    >>> shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    >>> sum(p.size for p in jax.tree.leaves(shapes["params"]))
    11176512
    """

    width: int = 64
    stem: Stem = "small"
    norm: NormKind = "batch"
    features: FeatureKind = "vector"
    remat: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Encode x [B, H, W, C]."""
        if x.ndim == 3:
            x = x[..., None]
        if x.ndim != 4:
            raise ValueError(f"ResNet-18 needs images [B, H, W, C] or [B, H, W], got shape {x.shape}")
        size, stride = (3, 1) if self.stem == "small" else (7, 2)
        pad = ((size // 2, size // 2),) * 2
        x = nn.Conv(
            self.width, (size, size), strides=stride, padding=pad, use_bias=False, dtype=self.dtype, name="conv"
        )(x)
        x = nn.relu(Norm(self.norm, self.dtype, self.axis_name, name="norm")(x, train))
        if self.stem == "large":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        block = nn.remat(ResidualBlock, static_argnums=(2,)) if self.remat else ResidualBlock
        for stage in range(_STAGES):
            for i in range(_BLOCKS):
                stride = 2 if stage > 0 and i == 0 else 1
                x = block(
                    self.width * 2**stage,
                    stride,
                    self.norm,
                    self.dtype,
                    self.axis_name,
                    name=f"block_{stage}_{i}",
                )(x, train)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return tokens if self.features == "tokens" else jnp.mean(tokens, axis=1)


@dataclass(frozen=True, kw_only=True)
class ResNet18Config(EncoderConfig):
    """ResNet-18 on images or spectrograms.

    Example:
    >>> ResNet18Config().name
    'resnet18'
    """

    name: str = "resnet18"
    width: int = 64
    """Channels of the first stage; the features have 8 times as many."""
    stem: Stem = "small"
    """small: 3x3, stride 1; large: 7x7, stride 2, max-pool."""
    norm: NormKind = "batch"
    """Normalisation after each convolution: batch or group."""
    features: FeatureKind = "vector"
    """vector: mean over positions; tokens: one token a position."""
    remat: bool = False
    """Recompute blocks on the way back instead of keeping their activations."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_option("encoder", "width", self.width, self.width >= 1, "at least 1")
        check_option("encoder", "stem", self.stem, self.stem in ("small", "large"), "small or large")
        check_option("encoder", "norm", self.norm, self.norm in ("batch", "group"), "batch or group")
        check_option("encoder", "features", self.features, self.features in FEATURES, f"one of {FEATURES}")

    def build(self, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return ResNet18(self.width, self.stem, self.norm, self.features, self.remat, dtype, axis_name)
