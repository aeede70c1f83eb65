"""Aligned-MTL: the mean of the gradients after they were made orthogonal and equally long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodContext
from mmjax.optim.gramian import Gramian, MeanGramConfig, Scope, gram_method
from mmjax.optim.options import Scale
from mmjax.optim.promises import Promise
from mmjax.optim.rows import Level


def aligned_mtl_weights(gram: Gramian) -> Array:
    """Return √λ_min V diag(λ^(-1/2)) Vᵀ 1/K over the eigenpairs (λ, V) of G with λ > λ_max K eps, [K].

    The mean where there is none (every gradient is zero).
    """
    values, vectors = jnp.linalg.eigh(gram.matrix)
    kept = values > values[-1] * values.shape[0] * jnp.finfo(values.dtype).eps
    least = jnp.min(jnp.where(kept, values, jnp.inf))
    stretch = jnp.where(kept, jnp.sqrt(least / jnp.where(kept, values, 1)), 0)
    aligned = vectors @ (stretch * (gram.mean @ vectors))
    return jnp.where(jnp.any(kept), aligned, gram.mean)


def aligned_mtl(
    *,
    scope: Scope = "shared",
    scale: Scale = "mean",
    level: Level = "parameters",
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradients by their nearest orthogonal system, all of the length √λ_min(G), and take the mean.

    The condition number of what is averaged is 1, so no objective dominates; the price is the length of the shortest
    principal direction.

    scope: "shared": leaves that two or more objectives reach, the others get Σ_k g_k; "all": every leaf.
    scale: "sum" multiplies the weights by K, so that learning rates compare with those of `uniform`.
    level: "features": alignment at the features, one encoder backward pass. It needs lazy gradients made with `encode`.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `active` bool[K], `touching`.

    Directions with λ <= λ_max K eps (eps of float32) count as absent: objectives with the same gradient are one.

    Raises:
      ValueError: an unknown option; gradients that are not one an objective; no features at level "features".

    Source: Senushkin et al., "Independent Component Alignment for Multi-Task Learning" (2023), with equal preferences.

    >>> tx = aligned_mtl()
    >>> params = {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.array([[3.0, 0.0], [0.0, 1.0]])}
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> [round(float(u), 4) for u in updates["w"]]
    [0.5, 0.5]
    """
    return gram_method(
        lambda gram, key: aligned_mtl_weights(gram),
        scope=scope,
        scale=scale,
        level=level,
        num_objectives=num_objectives,
    )


@dataclass(frozen=True, kw_only=True)
class AlignedMtlConfig(MeanGramConfig):
    """The mean of the gradients' nearest orthogonal system: condition number 1, no objective dominates.

    Example:
    >>> AlignedMtlConfig(scale="sum").scale
    'sum'
    """

    name: str = "aligned_mtl"

    source: ClassVar[str] = "Senushkin et al., Independent Component Alignment for Multi-Task Learning, 2023"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {
            Promise.IDENTITY_FOR_ONE,
            Promise.PERMUTATION_EQUIVARIANT,
            Promise.UNIFORM_WHEN_BALANCED,  # with scale="sum"
        }
    )

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `aligned_mtl` for the context's objectives."""
        return aligned_mtl(**self.options(context))
