"""Transformer for sequences of features and of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.config import EncoderConfig
from mmjax.models.attention import TransformerBlock
from mmjax.models.encoders.sequences import FEATURES, FeatureKind, check_mask, check_sequence, finish, real_steps
from mmjax.models.encoders.vit import check_attention
from mmjax.models.layers import Dropout
from mmjax.models.options import check_option


class Transformer(nn.Module):
    """Pre-norm blocks with learned positions on [B, T, F] or on tokens int [B, T]: their mean [B, width], or all.

    Padding is never attended to and never counts in the mean. Tokens: id 0 is padding. Sequences: with `mask_channel`
    the last feature says which steps are real (see `real_steps`). vocabulary: number of token ids, 0 included; an id
    outside gives NaN, on which the trainer stops. remat: the backward pass computes each block again. Source of the
    block: Vaswani et al., norm first.

    >>> import jax
    >>> from functools import partial
    >>> init = partial(Transformer(32, vocabulary=100).init_with_output, train=False)
    >>> jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, 7), jnp.int32))[0].shape
    (2, 32)
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    vocabulary: int = 0
    dropout: float = 0.0
    mask_channel: bool = False
    features: FeatureKind = "vector"
    remat: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None = None) -> Array:
        """Encode x [B, T, F] or int [B, T]; mask: bool [B, T], False at padding."""
        x, real = self._embed(x, mask)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:], jnp.float32).astype(self.dtype)
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train)
        block = nn.remat(TransformerBlock, static_argnums=(3,)) if self.remat else TransformerBlock
        for i in range(self.layers):
            x = block(self.heads, dropout=self.dropout, dtype=self.dtype, axis_name=self.axis_name, name=f"block_{i}")(
                x, real, train
            )
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        return finish(x, real, self.features)

    def _embed(self, x: Array, mask: Array | None) -> tuple[Array, Array]:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            check_sequence(x, "Transformer")
            x, real = real_steps(x, mask, self.mask_channel)
            return nn.Dense(self.width, dtype=self.dtype, name="project")(x), real
        if x.ndim != 2 or x.shape[1] < 1:
            raise ValueError(f"Transformer needs tokens int [B, T] with T >= 1, got shape {x.shape}")
        if self.vocabulary < 2:
            raise ValueError(
                f"tokens of shape {x.shape} need the option vocabulary, the number of token ids, padding's 0 included; "
                f"got {self.vocabulary}"
            )
        if self.mask_channel:
            raise ValueError(f"option mask_channel is for sequences [B, T, F]; tokens {x.shape} have id 0 for padding")
        real = x != 0 if mask is None else check_mask(mask, x)
        init = nn.initializers.normal(0.02)
        return nn.Embed(self.vocabulary, self.width, embedding_init=init, dtype=self.dtype, name="embed")(x), real


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(EncoderConfig):
    """Transformer on sequences or tokens.

    Example:
    >>> TransformerConfig().name
    'transformer'
    """

    name: str = "transformer"
    width: int = 64
    """Size of a token."""
    layers: int = 2
    """Number of blocks."""
    heads: int = 4
    """Attention heads; a divisor of width."""
    vocabulary: int = 0
    """Number of token ids, padding's 0 included; needed for tokens, unused for sequences."""
    dropout: float = 0.0
    """Share of units dropped after attention and MLP while training, in [0, 1)."""
    mask_channel: bool = False
    """The last feature of a step says whether it is real (+1) or padding (-1); for sequences."""
    features: FeatureKind = "vector"
    """vector: the mean over real positions; tokens: all positions."""
    remat: bool = False
    """Recompute blocks on the way back instead of keeping their activations."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_attention(self.width, self.layers, self.heads, self.dropout)
        check_option("encoder", "vocabulary", self.vocabulary, self.vocabulary >= 0, "at least 0")
        check_option("encoder", "features", self.features, self.features in FEATURES, f"one of {FEATURES}")

    def build(self, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return Transformer(
            self.width,
            self.layers,
            self.heads,
            self.vocabulary,
            self.dropout,
            self.mask_channel,
            self.features,
            self.remat,
            dtype,
            axis_name,
        )
