"""PCGrad: each gradient loses what conflicts with the others, one after the other in random order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodContext
from mmjax.optim.gramian import GramConfig, Gramian, Scope, gram_method
from mmjax.optim.options import check_key
from mmjax.optim.promises import Promise
from mmjax.optim.rows import Level


def pcgrad_weights(gram: Gramian, orders: Array) -> Array:
    """Return the weights [K] of Σ_k g_k', g_k' the k-th gradient after its projections, in coordinates of the gradients.

    orders: int [K, K], row k a permutation of 0..K-1: the order in which g_k meets the others.
    A step for k and j: where g_k'·g_j < 0, subtract (g_k'·g_j / ‖g_j‖²) g_j, with the original g_j. Zero gradients project
    nothing.
    """
    matrix = gram.matrix
    k = matrix.shape[0]
    own = jnp.arange(k)
    squares = jnp.diagonal(matrix)
    coordinates = jnp.eye(k, dtype=matrix.dtype)  # row k: those of g_k'
    for step in range(k):
        other = orders[:, step]
        product = jnp.sum(coordinates * matrix[other], axis=1)
        conflicts = (product < 0) & (other != own) & (squares[other] > 0) & gram.active[own] & gram.active[other]
        share = jnp.where(conflicts, product / jnp.where(conflicts, squares[other], 1), 0)
        coordinates = coordinates.at[own, other].add(-share)
    return gram.active.astype(matrix.dtype) @ coordinates


def random_orders(key: Array, num_objectives: int) -> Array:
    """Return int [K, K], an independent random permutation of 0..K-1 in each row.

    >>> orders = random_orders(jax.random.key(0), 4)
    >>> orders.shape, jnp.sort(orders, axis=1)[2].tolist()
    ((4, 4), [0, 1, 2, 3])
    """
    keys = jax.random.split(key, num_objectives)
    return jax.vmap(lambda k: jax.random.permutation(k, num_objectives))(keys)


def _weigh(gram: Gramian, key: Array | None) -> Array:
    k = gram.matrix.shape[0]
    if k <= 2:  # there is one order
        return pcgrad_weights(gram, jnp.tile(jnp.arange(k), (k, 1)))
    return pcgrad_weights(gram, random_orders(check_key(key, "pcgrad"), k))


def pcgrad(
    *,
    scope: Scope = "shared",
    level: Level = "parameters",
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Project each gradient onto the normal plane of every other that it conflicts with, in random order; sum.

    The order is drawn independently for each objective; what is projected on is the other's original gradient.

    scope: "shared": leaves that two or more objectives reach, the others get Σ_k g_k; "all": every leaf.
    level: "features": conflicts are seen and removed at the features, one encoder backward pass. It needs lazy gradients
      made with `encode`.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `key` (a typed key, needed for three or more objectives), `active` bool[K], `touching`.

    Raises:
      ValueError: no `key`; an unknown option; gradients that are not one an objective; no features at level "features".

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning" (2020).

    >>> tx = pcgrad()
    >>> params = {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.array([[1.0, 0.0], [-1.0, 1.0]])}
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> updates["w"].tolist()  # (0.5, 0.5) + (0, 1)
    [0.5, 1.5]
    """
    return gram_method(_weigh, scope=scope, level=level, num_objectives=num_objectives)


@dataclass(frozen=True, kw_only=True)
class PcgradConfig(GramConfig):
    """Each gradient projected off those that it conflicts with, in random order; then the sum.

    Example:
    >>> PcgradConfig().kind
    'gradient'
    """

    name: str = "pcgrad"

    source: ClassVar[str] = "Yu et al., Gradient Surgery for Multi-Task Learning, 2020"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {
            Promise.IDENTITY_FOR_ONE,
            Promise.PERMUTATION_EQUIVARIANT,
            Promise.UNIFORM_WHEN_BALANCED,
            Promise.LINEAR_UNDER_SCALING,
        }
    )

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `pcgrad` for the context's objectives."""
        return pcgrad(**self.options(context))
