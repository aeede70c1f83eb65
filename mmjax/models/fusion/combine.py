"""Fusion by adding, joining or gating one vector a modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmjax.config import FusionConfig
from mmjax.models.fusion.inputs import ABSENT, AbsentKind, FillAbsent, prepare, weighted_sum
from mmjax.models.heads import Head, HeadOutput
from mmjax.models.options import check_option
from mmjax.models.tokens import as_vector


class ConcatFusion(nn.Module):
    """Concatenate the features, modalities in sorted order, and apply a `Head`.

    >>> import jax
    >>> from functools import partial
    >>> module = ConcatFusion(num_outputs=10, hidden=(100,))
    >>> features = {"image": jnp.ones((2, 48)), "audio": jnp.ones((2, 192))}
    >>> sum(p.size for p in jax.tree.leaves(module.init(jax.random.key(0), features, train=False)))
    25110
    """

    num_outputs: int
    hidden: tuple[int, ...] = ()
    absent: AbsentKind = "zero"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    rounds: int = 2

    @nn.compact
    def __call__(self, features: Mapping[str, Array], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse {modality: [B, D_m]}; present: bool [B, M], None for all."""
        features, present = prepare(features, present)
        filled = FillAbsent(self.absent, self.axis_name, self.rounds, name="fill")(features, present, train)
        return Head(self.num_outputs, self.hidden, self.dtype, name="head")(
            jnp.concatenate(list(filled.values()), axis=-1), train
        )


class SumFusion(nn.Module):
    """Add the modalities, each through a linear map of its own to `width`; ReLU; a `Head`.

    Absent modalities are left out, and the sum over the n present ones is scaled by M/n.

    >>> import jax
    >>> from functools import partial
    >>> features = {"image": jnp.ones((2, 4)), "audio": jnp.ones((2, 3))}
    >>> module = SumFusion(10, 8)
    >>> jax.eval_shape(partial(module.init_with_output, train=False), jax.random.key(0), features)[0].logits.shape
    (2, 10)
    """

    num_outputs: int
    width: int = 128
    hidden: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Mapping[str, Array], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse {modality: [B, D_m]}; present: bool [B, M], None for all."""
        features, present = prepare(features, present)
        mapped = [
            nn.Dense(self.width, dtype=self.dtype, name=f"project_{m}")(as_vector(z)) for m, z in features.items()
        ]
        scale = present.shape[1] / jnp.maximum(jnp.sum(present, axis=1, keepdims=True), 1)
        total = weighted_sum(mapped, present * scale)
        return Head(self.num_outputs, self.hidden, self.dtype, name="head")(nn.relu(total), train)


class GatedFusion(nn.Module):
    """Gated multi-modal unit: h = Σ_m g_m ⊙ tanh(W_m z_m), gates g = softmax over the modalities, a unit at a time.

    The gates' logits are linear in all features together. Absent modalities get gate 0. Source: Arevalo et al.,
    "Gated Multimodal Units for Information Fusion"; for two modalities it is their bimodal unit (g, 1 - g), for more
    their paper has independent sigmoid gates, and the softmax is our choice, so that the gates always sum to 1.

    >>> import jax
    >>> from functools import partial
    >>> features = {"image": jnp.ones((2, 4)), "audio": jnp.ones((2, 3))}
    >>> module = GatedFusion(10, 8)
    >>> jax.eval_shape(partial(module.init_with_output, train=False), jax.random.key(0), features)[0].logits.shape
    (2, 10)
    """

    num_outputs: int
    width: int = 128
    hidden: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Mapping[str, Array], train: bool, present: Array | None = None) -> HeadOutput:
        """Fuse {modality: [B, D_m]}; present: bool [B, M], None for all."""
        features, present = prepare(features, present)
        vectors = {m: as_vector(z) for m, z in features.items()}
        mapped = [jnp.tanh(nn.Dense(self.width, dtype=self.dtype, name=f"project_{m}")(z)) for m, z in vectors.items()]
        joined = jnp.concatenate(list(vectors.values()), axis=-1)
        logits = nn.Dense(len(vectors) * self.width, dtype=self.dtype, name="gate")(joined)
        logits = logits.reshape(-1, len(vectors), self.width).astype(jnp.float32)
        # the most negative number, not -inf: a row without any modality stays finite
        gates = jax.nn.softmax(jnp.where(present[..., None], logits, jnp.finfo(jnp.float32).min), axis=1)
        fused = jnp.sum(gates.astype(self.dtype) * jnp.stack(mapped, axis=1), axis=1)
        return Head(self.num_outputs, self.hidden, self.dtype, name="head")(fused, train)


def check_hidden(hidden: tuple[int, ...]) -> None:
    """Raise ValueError naming a width below 1."""
    check_option("fusion", "hidden", hidden, all(width >= 1 for width in hidden), "widths of at least 1")


def check_absent(absent: str, rounds: int) -> None:
    """Raise ValueError for an unknown kind of stand-in."""
    check_option("fusion", "absent", absent, absent in ABSENT, f"one of {ABSENT}")
    check_option("fusion", "rounds", rounds, rounds >= 0, "at least 0")


@dataclass(frozen=True, kw_only=True)
class ConcatConfig(FusionConfig):
    """Concatenated features, hidden layers, one linear layer.

    Example:
    >>> ConcatConfig(hidden=(64,)).name
    'concat'
    """

    name: str = "concat"
    hidden: tuple[int, ...] = (128,)
    """Widths of the hidden layers; empty: one linear layer."""
    absent: AbsentKind = "zero"
    """What stands in the place of an absent modality: zero, a learned token, the training mean, or what the present ones say
    of it (recurrent)."""
    rounds: int = 2
    """recurrent: rounds of filling in, at least 0."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_hidden(self.hidden)
        check_absent(self.absent, self.rounds)

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        return ConcatFusion(num_outputs, self.hidden, self.absent, dtype, axis_name, self.rounds)


@dataclass(frozen=True, kw_only=True)
class SumConfig(FusionConfig):
    """Sum of linear maps of the features, ReLU, hidden layers, one linear layer.

    Example:
    >>> SumConfig().name
    'sum'
    """

    name: str = "sum"
    width: int = 128
    """Units of the sum."""
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers after it."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_option("fusion", "width", self.width, self.width >= 1, "at least 1")
        check_hidden(self.hidden)

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        del axis_name
        return SumFusion(num_outputs, self.width, self.hidden, dtype)


@dataclass(frozen=True, kw_only=True)
class GatedConfig(FusionConfig):
    """Gated multi-modal unit, hidden layers, one linear layer.

    Example:
    >>> GatedConfig().name
    'gated'
    """

    name: str = "gated"
    width: int = 128
    """Units of the gated sum."""
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers after it."""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        check_option("fusion", "width", self.width, self.width >= 1, "at least 1")
        check_hidden(self.hidden)

    def build(self, num_outputs: int, *, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
        """Make the module."""
        del axis_name
        return GatedFusion(num_outputs, self.width, self.hidden, dtype)
