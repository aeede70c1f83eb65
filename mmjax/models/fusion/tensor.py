"""Tensor fusion: all products of features across modalities, whole or at low rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.config import FusionConfig
from mmjax.models.fusion.combine import check_absent, check_hidden
from mmjax.models.fusion.inputs import AbsentKind, FillAbsent, prepare
from mmjax.models.heads import Head, HeadOutput
from mmjax.models.options import check_option

LARGEST = 2**20
"""Products an example that `TensorFusion` takes on at most."""


class TensorFusion(nn.Module):
    """The outer product of all [z_m; 1], flattened, and a `Head`.

    project: each modality is first mapped to so many ReLU units; 0: the features as they are. The 1 keeps the products
    of fewer modalities, the features themselves among them, so an absent one (zero) leaves the others' products.
    Source: Zadeh et al., "Tensor Fusion Network for Multimodal Sentiment Analysis".

    Raises:
      ValueError: more than 2**20 products an example.

    >>> import jax
    >>> from functools import partial
    >>> features = {"image": jnp.ones((2, 4)), "audio": jnp.ones((2, 3))}
    >>> variables = jax.eval_shape(partial(TensorFusion(10, project=0).init, train=False), jax.random.key(0), features)
    >>> variables["params"]["head"]["last"]["kernel"].shape
    (20, 10)
    """

    num_outputs: int
    project: int = 16
    hidden: tuple[int, ...] = ()
    absent: AbsentKind = "zero"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    rounds: int = 2

    @nn.compact
    def __call__(self, features: Mapping[str, Array], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse {modality: [B, D_m]}; present: bool [B, M], None for all."""
        features, present = prepare(features, present)
        vectors = FillAbsent(self.absent, self.axis_name, self.rounds, name="fill")(features, present, train)
        sizes = {m: self.project or z.shape[-1] for m, z in vectors.items()}
        products = math.prod(size + 1 for size in sizes.values())
        if products > LARGEST:
            raise ValueError(
                f"tensor fusion of features {sizes} has {products} products an example, at most {LARGEST}: "
                "set the option project, or take low_rank_tensor"
            )
        fused = None
        for i, (m, z) in enumerate(vectors.items()):
            if self.project:
                z = nn.relu(nn.Dense(self.project, dtype=self.dtype, name=f"project_{m}")(z))
                if self.absent == "zero":  # the projection's bias must not speak for a modality that is not there
                    z = jnp.where(present[:, i, None], z, 0)
            z = jnp.concatenate([z.astype(self.dtype), jnp.ones((z.shape[0], 1), self.dtype)], axis=-1)
            fused = z if fused is None else (fused[:, :, None] * z[:, None, :]).reshape(z.shape[0], -1)
        assert fused is not None
        return Head(self.num_outputs, self.hidden, self.dtype, name="head")(fused, train)


class LowRankTensorFusion(nn.Module):
    """h = Σ_r w_r Π_m (W_m^r [z_m; 1]) + b, the tensor fusion layer at low rank; ReLU; a `Head`.

    rank: number of terms r; width: size of h. Factors W_m^r are [width, D_m + 1]; all of them are parameters (a
    released implementation leaves them out of its list). Cost: about 2 B rank width Σ_m D_m FLOPs forward. Source: Liu
    et al., "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors"; rank 40 and width 120 as I2M2
    (Madaan et al.) uses it. The head on top is I2M2's.

    >>> import jax
    >>> from functools import partial
    >>> features = {"image": jnp.ones((2, 4)), "audio": jnp.ones((2, 3))}
    >>> variables = jax.eval_shape(partial(LowRankTensorFusion(10).init, train=False), jax.random.key(0), features)
    >>> variables["params"]["factor_image"]["kernel"].shape  # the row of the 1 is the factor's bias
    (4, 4800)
    """

    num_outputs: int
    rank: int = 40
    width: int = 120
    hidden: tuple[int, ...] = ()
    absent: AbsentKind = "zero"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    rounds: int = 2

    @nn.compact
    def __call__(self, features: Mapping[str, Array], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse {modality: [B, D_m]}; present: bool [B, M], None for all."""
        features, present = prepare(features, present)
        vectors = FillAbsent(self.absent, self.axis_name, self.rounds, name="fill")(features, present, train)
        product = None
        for m, z in vectors.items():
            init = nn.initializers.normal((z.shape[-1] + 1) ** -0.5)  # also of the 1's row: zero would kill the product
            factor = nn.Dense(
                self.rank * self.width, kernel_init=init, bias_init=init, dtype=self.dtype, name=f"factor_{m}"
            )(z)
            product = factor if product is None else product * factor
        assert product is not None
        weights = self.param("rank_weights", nn.initializers.normal(self.rank**-0.5), (self.rank,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        terms = product.reshape(-1, self.rank, self.width)
        fused = jnp.einsum("brk,r->bk", terms, weights.astype(self.dtype)) + bias.astype(self.dtype)
        return Head(self.num_outputs, self.hidden, self.dtype, name="head")(nn.relu(fused), train)


@dataclass(frozen=True, kw_only=True)
class TensorConfig(FusionConfig):
    """The outer product of all features.

    Example:
    >>> TensorConfig().name
    'tensor'
    """

    name: str = "tensor"
    project: int = 16
    """Units each modality is mapped to first; 0: the features as they are."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the hidden layers on the products."""
    absent: AbsentKind = "zero"
    """What stands in the place of an absent modality: zero, a learned token, the training mean, or what the present ones say
    of it (recurrent)."""
    rounds: int = 2
    """recurrent: rounds of filling in, at least 0."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_option("fusion", "project", self.project, self.project >= 0, "at least 0")
        check_hidden(self.hidden)
        check_absent(self.absent, self.rounds)

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return TensorFusion(num_outputs, self.project, self.hidden, self.absent, dtype, axis_name, self.rounds)


@dataclass(frozen=True, kw_only=True)
class LowRankTensorConfig(FusionConfig):
    """Low-rank tensor fusion.

    Example:
    >>> LowRankTensorConfig().name
    'low_rank_tensor'
    """

    name: str = "low_rank_tensor"
    rank: int = 40
    """Number of rank-one terms."""
    width: int = 120
    """Units of the fused vector."""
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers after it."""
    absent: AbsentKind = "zero"
    """What stands in the place of an absent modality: zero, a learned token, the training mean, or what the present ones say
    of it (recurrent)."""
    rounds: int = 2
    """recurrent: rounds of filling in, at least 0."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_option("fusion", "rank", self.rank, self.rank >= 1, "at least 1")
        check_option("fusion", "width", self.width, self.width >= 1, "at least 1")
        check_hidden(self.hidden)
        check_absent(self.absent, self.rounds)

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return LowRankTensorFusion(
            num_outputs, self.rank, self.width, self.hidden, self.absent, dtype, axis_name, self.rounds
        )
