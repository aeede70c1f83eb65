"""Fusion of exactly two modalities: one modulates the other (FiLM), or they multiply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.config import FusionConfig
from mmjax.models.fusion.combine import check_absent, check_hidden
from mmjax.models.fusion.inputs import AbsentKind, FillAbsent, bilateral, prepare
from mmjax.models.heads import Head, HeadOutput
from mmjax.models.options import check_option
from mmjax.models.tokens import as_vector


class FiLMFusion(nn.Module):
    """Feature-wise linear modulation: h = ReLU((1 + γ(c)) ⊙ W x + β(c)) with γ, β linear in the conditioning features c.

    conditioning: the modality that modulates; None: the second in sorted order. Where it is absent, γ = β = 0; where
    the other is, W x = 0. Source: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", the 1 + γ
    as in their implementation note; one modulated layer before the head is our choice of place.

    >>> import jax
    >>> from functools import partial
    >>> features = {"image": jnp.ones((2, 4)), "text": jnp.ones((2, 3))}
    >>> module = FiLMFusion(10, 8)
    >>> jax.eval_shape(partial(module.init_with_output, train=False), jax.random.key(0), features)[0].logits.shape
    (2, 10)
    """

    num_outputs: int
    width: int = 128
    conditioning: str | None = None
    hidden: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Mapping[str, Array], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse two vectors; present: bool [B, 2], None for all."""
        names = bilateral(features, "FiLM")
        if self.conditioning is not None and self.conditioning not in names:
            raise ValueError(f"fusion option conditioning must be one of {names}, got {self.conditioning!r}")
        c = names.index(self.conditioning or names[1])
        features, present = prepare(features, present)
        modulated = nn.Dense(self.width, dtype=self.dtype, name="project")(as_vector(features[names[1 - c]]))
        modulated = jnp.where(present[:, 1 - c, None], modulated, 0)
        modulation = nn.Dense(2 * self.width, dtype=self.dtype, name="modulation")(as_vector(features[names[c]]))
        gamma, beta = jnp.split(jnp.where(present[:, c, None], modulation, 0), 2, axis=-1)
        fused = nn.relu((1 + gamma) * modulated + beta)
        return Head(self.num_outputs, self.hidden, self.dtype, name="head")(fused, train)


class MultiplicativeFusion(nn.Module):
    """Multiplicative interactions: h = ReLU(xᵀ 𝕎 z + U x + V z + b), 𝕎 [D_x, D_z, width]; then a `Head`.

    Source: Jayakumar et al., "Multiplicative Interactions and Where to Find Them"; the ReLU and the head after the
    layer are ours. It has D_x D_z width parameters.

    >>> import jax
    >>> from functools import partial
    >>> features = {"image": jnp.ones((2, 4)), "text": jnp.ones((2, 3))}
    >>> variables = jax.eval_shape(partial(MultiplicativeFusion(10, 8).init, train=False), jax.random.key(0), features)
    >>> variables["params"]["product"]["kernel"].shape
    (4, 24)
    """

    num_outputs: int
    width: int = 32
    hidden: tuple[int, ...] = ()
    absent: AbsentKind = "zero"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    rounds: int = 2

    @nn.compact
    def __call__(self, features: Mapping[str, Array], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse two vectors; present: bool [B, 2], None for all."""
        first, second = bilateral(features, "multiplicative interactions")
        features, present = prepare(features, present)
        filled = FillAbsent(self.absent, self.axis_name, self.rounds, name="fill")(features, present, train)
        x, z = filled[first], filled[second]
        sizes = x.shape[-1] * z.shape[-1]
        # a sum of D_x D_z products: each weight's variance is 1/(D_x D_z)
        init = nn.initializers.normal(sizes**-0.5)
        weights = nn.Dense(
            z.shape[-1] * self.width, use_bias=False, kernel_init=init, dtype=self.dtype, name="product"
        )(x)
        weights = weights.reshape(-1, z.shape[-1], self.width)
        product = jnp.einsum("bjk,bj->bk", weights, z.astype(self.dtype))
        linear = nn.Dense(self.width, dtype=self.dtype, name=f"linear_{first}")(x)
        linear += nn.Dense(self.width, use_bias=False, dtype=self.dtype, name=f"linear_{second}")(z)
        return Head(self.num_outputs, self.hidden, self.dtype, name="head")(nn.relu(product + linear), train)


@dataclass(frozen=True, kw_only=True)
class FiLMConfig(FusionConfig):
    """Feature-wise linear modulation of one modality by the other; two modalities only.

    Example:
    >>> FiLMConfig().name
    'film'
    """

    name: str = "film"
    width: int = 128
    """Units of the modulated layer."""
    conditioning: str | None = None
    """Modality that modulates the other; None: the second in sorted order."""
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers after it."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_option("fusion", "width", self.width, self.width >= 1, "at least 1")
        check_hidden(self.hidden)

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        del axis_name
        return FiLMFusion(num_outputs, self.width, self.conditioning, self.hidden, dtype)


@dataclass(frozen=True, kw_only=True)
class MultiplicativeConfig(FusionConfig):
    """Multiplicative interactions of two modalities.

    Example:
    >>> MultiplicativeConfig().name
    'multiplicative'
    """

    name: str = "multiplicative"
    width: int = 32
    """Units of the layer; it has width times the product of the two feature sizes parameters."""
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers after it."""
    absent: AbsentKind = "zero"
    """What stands in the place of an absent modality: zero, a learned token, the training mean, or what the present ones say
    of it (recurrent)."""
    rounds: int = 2
    """recurrent: rounds of filling in, at least 0."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_option("fusion", "width", self.width, self.width >= 1, "at least 1")
        check_hidden(self.hidden)
        check_absent(self.absent, self.rounds)

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return MultiplicativeFusion(num_outputs, self.width, self.hidden, self.absent, dtype, axis_name, self.rounds)
