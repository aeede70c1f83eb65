"""Fusion heads: the features of all modalities to one prediction. Options are subclasses of `FusionConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.config import FusionConfig
from mmjax.models.heads import Head, HeadOutput


class ConcatFusion(nn.Module):
    """Concatenate the features, modalities in sorted order, and apply a `Head`.

    >>> import jax
    >>> module = ConcatFusion(num_outputs=10, hidden=(100,))
    >>> features = {"image": jnp.ones((2, 48)), "audio": jnp.ones((2, 192))}
    >>> sum(p.size for p in jax.tree.leaves(module.init(jax.random.key(0), features, train=False)))
    25110
    """

    num_outputs: int
    hidden: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Mapping[str, Array], train: bool) -> HeadOutput:
        """Fuse {modality: [B, D_m]}."""
        joined = jnp.concatenate([features[m] for m in sorted(features)], axis=-1)
        return Head(self.num_outputs, self.hidden, self.dtype, name="head")(joined, train)


@dataclass(frozen=True, kw_only=True)
class ConcatConfig(FusionConfig):
    """Concatenated features, hidden layers, one linear layer."""

    name: str = "concat"
    hidden: tuple[int, ...] = (128,)
    """Widths of the hidden layers; empty: one linear layer."""

    def validate(self) -> None:
        """Raise ValueError naming a width below 1."""
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"fusion option hidden must hold widths of at least 1, got {self.hidden}")

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        del axis_name
        return ConcatFusion(num_outputs, self.hidden, dtype)


FUSIONS: dict[str, type[FusionConfig]] = {"concat": ConcatConfig}
