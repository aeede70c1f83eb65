"""Gated recurrent units for time series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.config import EncoderConfig
from mmjax.models.encoders.sequences import FEATURES, FeatureKind, check_sequence, real_steps
from mmjax.models.layers import Dropout
from mmjax.models.options import check_option


class GRU(nn.Module):
    """Layers of gated recurrent units on [B, T, F]: the last state [B, width], or all states as tokens.

    A padded step leaves the state as it is, so padding anywhere has no effect. mask_channel: the last feature says
    which steps are real (see `real_steps`). Dropout between layers and on the result. Source: Cho et al., in the form
    with the reset gate after the product (flax's GRUCell).

    >>> import jax
    >>> from functools import partial
    >>> init = partial(GRU(30).init_with_output, train=False)
    >>> jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, 24, 12)))[0].shape
    (2, 30)
    """

    width: int = 64
    layers: int = 1
    dropout: float = 0.0
    mask_channel: bool = False
    features: FeatureKind = "vector"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None = None) -> Array:
        """Encode x [B, T, F]; mask: bool [B, T], False at padding."""
        check_sequence(x, "GRU")
        x, real = real_steps(x, mask, self.mask_channel)

        def step(cell: nn.GRUCell, state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            now, here = inputs
            state = jnp.where(here[:, None], cell(state, now)[0].astype(state.dtype), state)
            return state, state

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        for i in range(self.layers):
            cell = nn.GRUCell(self.width, dtype=self.dtype, name=f"layer_{i}")
            zeros = jnp.zeros((x.shape[0], self.width), self.dtype)
            # the same numbers; inside shard_map the scan's state must be device-varying as its input is
            state = jnp.where(x[:, 0, :1] == x[:, 0, :1], zeros, zeros)
            state, x = scan(cell, state, (x, real))
            dropout = Dropout(self.dropout, self.axis_name, name=f"dropout_{i}")
            x, state = dropout(x, train), dropout(state, train)
        return jnp.where(real[..., None], x, 0) if self.features == "tokens" else state


@dataclass(frozen=True, kw_only=True)
class GRUConfig(EncoderConfig):
    """Gated recurrent units on sequences.

    Example:
    >>> GRUConfig().name
    'gru'
    """

    name: str = "gru"
    width: int = 64
    """Units of the state."""
    layers: int = 1
    """Number of layers, one on top of the other."""
    dropout: float = 0.0
    """Share of units dropped after each layer while training, in [0, 1)."""
    mask_channel: bool = False
    """The last feature of a step says whether it is real (+1) or padding (-1)."""
    features: FeatureKind = "vector"
    """vector: the last state; tokens: all states."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_option("encoder", "width", self.width, self.width >= 1, "at least 1")
        check_option("encoder", "layers", self.layers, self.layers >= 1, "at least 1")
        check_option("encoder", "dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)")
        check_option("encoder", "features", self.features, self.features in FEATURES, f"one of {FEATURES}")

    def build(self, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return GRU(self.width, self.layers, self.dropout, self.mask_channel, self.features, dtype, axis_name)
