"""Vision Transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.config import EncoderConfig
from mmjax.models.attention import TransformerBlock
from mmjax.models.encoders.sequences import FEATURES, FeatureKind
from mmjax.models.layers import Dropout
from mmjax.models.options import check_option


class ViT(nn.Module):
    """Patches, a class token, learned positions, pre-norm blocks: the class token [B, width] or the patches' tokens.

    Input [B, H, W, C] or [B, H, W], sides divisible by `patch`. remat: the backward pass computes each block again.
    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words"; width 384, 12 layers, 6 heads and patch 16 is ViT-S/16.

    >>> import jax
    >>> from functools import partial
    >>> init = partial(ViT(384, 12, 6, patch=16).init, train=False)
    >>> shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    >>> sum(p.size for p in jax.tree.leaves(shapes))
    21665664
    """

    width: int = 64
    layers: int = 4
    heads: int = 4
    patch: int = 4
    dropout: float = 0.0
    features: FeatureKind = "vector"
    remat: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Encode x [B, H, W, C]. Raises ValueError for a size that `patch` does not divide."""
        if x.ndim == 3:
            x = x[..., None]
        if x.ndim != 4 or x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"ViT with patch={self.patch} needs images [B, H, W, C] or [B, H, W] whose sides it divides, "
                f"got shape {x.shape}"
            )
        patches = (self.patch, self.patch)
        x = nn.Conv(self.width, patches, strides=patches, padding="VALID", dtype=self.dtype, name="patch")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        first = self.param("class", nn.initializers.zeros, (1, 1, self.width), jnp.float32).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:], jnp.float32).astype(self.dtype)
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train)
        block = nn.remat(TransformerBlock, static_argnums=(3,)) if self.remat else TransformerBlock
        for i in range(self.layers):
            x = block(self.heads, dropout=self.dropout, dtype=self.dtype, axis_name=self.axis_name, name=f"block_{i}")(
                x, None, train
            )
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        return x[:, 0] if self.features == "vector" else x[:, 1:]


@dataclass(frozen=True, kw_only=True)
class ViTConfig(EncoderConfig):
    """Vision Transformer on images or spectrograms.

    Example:
    >>> ViTConfig().name
    'vit'
    """

    name: str = "vit"
    width: int = 64
    """Size of a token."""
    layers: int = 4
    """Number of blocks."""
    heads: int = 4
    """Attention heads; a divisor of width."""
    patch: int = 4
    """Side of a patch in pixels; divides the sides of the image."""
    dropout: float = 0.0
    """Share of units dropped after attention and MLP while training, in [0, 1)."""
    features: FeatureKind = "vector"
    """vector: the class token; tokens: one token a patch."""
    remat: bool = False
    """Recompute blocks on the way back instead of keeping their activations."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_attention(self.width, self.layers, self.heads, self.dropout)
        check_option("encoder", "patch", self.patch, self.patch >= 1, "at least 1")
        check_option("encoder", "features", self.features, self.features in FEATURES, f"one of {FEATURES}")

    def build(self, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return ViT(
            self.width, self.layers, self.heads, self.patch, self.dropout, self.features, self.remat, dtype, axis_name
        )


def check_attention(width: int, layers: int, heads: int, dropout: float) -> None:
    """Raise ValueError naming an option of a stack of attention blocks that is out of range."""
    check_option("encoder", "width", width, width >= 1, "at least 1")
    check_option("encoder", "layers", layers, layers >= 1, "at least 1")
    check_option("encoder", "heads", heads, heads >= 1 and width % heads == 0, f"a divisor of width={width}")
    check_option("encoder", "dropout", dropout, 0 <= dropout < 1, "in [0, 1)")
