"""Fusion by attention between the modalities' tokens; a vector is one token, an all-zero token is padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.config import FusionConfig
from mmjax.models.attention import TransformerBlock
from mmjax.models.fusion.combine import check_hidden
from mmjax.models.fusion.inputs import mean_weights, prepare, weighted_sum
from mmjax.models.heads import Head, HeadOutput
from mmjax.models.options import check_option
from mmjax.models.tokens import as_tokens, mean_of_tokens


class CrossAttentionFusion(nn.Module):
    """Each modality's tokens attend to those of all others; mean over tokens, then over modalities; a `Head`.

    Tokens are mapped to `width` by modality; one pre-norm block a modality, its keys and values the other modalities'
    tokens and one learned token, which is there even where every other modality is absent. Our composition of the
    usual cross-attention block (Vaswani et al.; between modalities: Tsai et al., "Multimodal Transformer").

    >>> import jax
    >>> from functools import partial
    >>> features = {"image": jnp.ones((2, 5, 4)), "audio": jnp.ones((2, 3))}
    >>> module = CrossAttentionFusion(10, 8, 2)
    >>> jax.eval_shape(partial(module.init_with_output, train=False), jax.random.key(0), features)[0].logits.shape
    (2, 10)
    """

    num_outputs: int
    width: int = 64
    heads: int = 4
    dropout: float = 0.0
    hidden: tuple[int, ...] = ()
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Mapping[str, Array], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse {modality: [B, D_m] or [B, T_m, D_m]}; present: bool [B, M], None for all."""
        features, present = prepare(features, present)
        tokens, real = _project(features, present, self.width, self.dtype)
        batch = present.shape[0]
        nobody = self.param("nobody", nn.initializers.normal(0.02), (self.width,), jnp.float32)
        nobody = jnp.broadcast_to(nobody.astype(self.dtype), (batch, 1, self.width))
        pooled = []
        for m in tokens:
            others = [other for other in tokens if other != m]
            context = jnp.concatenate([nobody, *(tokens[other] for other in others)], axis=1)
            seen = jnp.concatenate([jnp.ones((batch, 1), bool), *(real[other] for other in others)], axis=1)
            block = TransformerBlock(
                self.heads, dropout=self.dropout, dtype=self.dtype, axis_name=self.axis_name, name=f"attend_{m}"
            )
            x = block(tokens[m], seen, train, context)
            x = nn.LayerNorm(dtype=self.dtype, name=f"norm_{m}")(x)
            pooled.append(mean_of_tokens(x, real[m]))
        fused = weighted_sum(pooled, mean_weights(present))
        return Head(self.num_outputs, self.hidden, self.dtype, name="head")(fused, train)


class BottleneckFusion(nn.Module):
    """Attention bottlenecks: modalities exchange information only through a few shared tokens.

    Each layer has one pre-norm block a modality, on its class token, its tokens and the bottleneck tokens; the new
    bottleneck is the mean over modalities of what their blocks made of it. At the end the mean over modalities of the
    normalised class tokens goes to a `Head` (linear: the mean of the modalities' logits). Absent modalities count in
    neither mean. Source: Nagrani et al., "Attention Bottlenecks for Multimodal Fusion"; all layers here exchange
    (their mid fusion is the encoders' own layers below).

    >>> import jax
    >>> from functools import partial
    >>> features = {"image": jnp.ones((2, 5, 4)), "audio": jnp.ones((2, 3))}
    >>> module = BottleneckFusion(10, 8, 2)
    >>> jax.eval_shape(partial(module.init_with_output, train=False), jax.random.key(0), features)[0].logits.shape
    (2, 10)
    """

    num_outputs: int
    width: int = 64
    heads: int = 4
    layers: int = 2
    bottlenecks: int = 4
    dropout: float = 0.0
    hidden: tuple[int, ...] = ()
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Mapping[str, Array], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse {modality: [B, D_m] or [B, T_m, D_m]}; present: bool [B, M], None for all."""
        features, present = prepare(features, present)
        tokens, real = _project(features, present, self.width, self.dtype)
        batch = present.shape[0]
        weights = mean_weights(present)

        def learned(name: str, count: int) -> Array:
            value = self.param(name, nn.initializers.normal(0.02), (count, self.width), jnp.float32)
            return jnp.broadcast_to(value.astype(self.dtype), (batch, count, self.width))

        shared = learned("bottleneck", self.bottlenecks)
        streams = {m: jnp.concatenate([learned(f"class_{m}", 1), x], axis=1) for m, x in tokens.items()}
        always = jnp.ones((batch, 1), bool), jnp.ones((batch, self.bottlenecks), bool)
        seen = {m: jnp.concatenate([always[0], mask, always[1]], axis=1) for m, mask in real.items()}
        for i in range(self.layers):
            said = []
            for m, stream in streams.items():
                block = TransformerBlock(
                    self.heads, dropout=self.dropout, dtype=self.dtype, axis_name=self.axis_name, name=f"block_{i}_{m}"
                )
                x = block(jnp.concatenate([stream, shared], axis=1), seen[m], train)
                streams[m] = x[:, : -self.bottlenecks]
                said.append(x[:, -self.bottlenecks :])
            shared = weighted_sum(said, weights)
        decided = [nn.LayerNorm(dtype=self.dtype, name=f"norm_{m}")(x[:, 0]) for m, x in streams.items()]
        return Head(self.num_outputs, self.hidden, self.dtype, name="head")(weighted_sum(decided, weights), train)


def _project(
    features: Mapping[str, Array], present: Array, width: int, dtype: Any
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Map each modality's tokens to `width`; say which are real: neither padding nor of an absent modality."""
    tokens, real = {}, {}
    for i, (m, z) in enumerate(features.items()):
        raw, mask = as_tokens(z)
        tokens[m] = nn.Dense(width, dtype=dtype, name=f"project_{m}")(raw)
        real[m] = mask & present[:, i, None]
    return tokens, real


def _check(config: CrossAttentionConfig | BottleneckConfig) -> None:
    check_option("fusion", "width", config.width, config.width >= 1, "at least 1")
    divides = config.heads >= 1 and config.width % config.heads == 0
    check_option("fusion", "heads", config.heads, divides, f"a divisor of width={config.width}")
    check_option("fusion", "dropout", config.dropout, 0 <= config.dropout < 1, "in [0, 1)")
    check_hidden(config.hidden)


@dataclass(frozen=True, kw_only=True)
class CrossAttentionConfig(FusionConfig):
    """Cross-attention from each modality's tokens to those of all others.

    Example:
    >>> CrossAttentionConfig().name
    'cross_attention'
    """

    name: str = "cross_attention"
    width: int = 64
    """Size of a token."""
    heads: int = 4
    """Attention heads; a divisor of width."""
    dropout: float = 0.0
    """Share of units dropped after attention and MLP while training, in [0, 1)."""
    hidden: tuple[int, ...] = ()
    """Widths of the head's hidden layers."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        _check(self)

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return CrossAttentionFusion(num_outputs, self.width, self.heads, self.dropout, self.hidden, dtype, axis_name)


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig(FusionConfig):
    """Attention bottlenecks.

    Example:
    >>> BottleneckConfig().name
    'bottleneck'
    """

    name: str = "bottleneck"
    width: int = 64
    """Size of a token."""
    heads: int = 4
    """Attention heads; a divisor of width."""
    layers: int = 2
    """Layers of blocks, one block a modality in each; at least 2, since the first one fills the bottleneck."""
    bottlenecks: int = 4
    """Number of shared tokens."""
    dropout: float = 0.0
    """Share of units dropped after attention and MLP while training, in [0, 1)."""
    hidden: tuple[int, ...] = ()
    """Widths of the head's hidden layers."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        _check(self)
        check_option("fusion", "layers", self.layers, self.layers >= 2, "at least 2 (with 1, nothing is exchanged)")
        check_option("fusion", "bottlenecks", self.bottlenecks, self.bottlenecks >= 1, "at least 1")

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return BottleneckFusion(
            num_outputs,
            self.width,
            self.heads,
            self.layers,
            self.bottlenecks,
            self.dropout,
            self.hidden,
            dtype,
            axis_name,
        )
