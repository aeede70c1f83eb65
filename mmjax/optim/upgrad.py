"""UPGrad: the mean of the gradients, each projected onto the directions that conflict with no objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodContext
from mmjax.optim.gramian import Gramian, MeanGramConfig, Scope, gram_method
from mmjax.optim.options import Scale
from mmjax.optim.promises import Promise
from mmjax.optim.qp import FaceProblem, face_system, solve
from mmjax.optim.rows import Level


def upgrad_weights(gram: Gramian) -> Array:
    """Return (1/K) Σ_k v_k, v_k = argmin vᵀ G v subject to v >= e_k, [K].

    Jᵀ v_k is the projection of g_k onto {d : J d >= 0}. The programs are solved on the cosines: scaling a gradient scales
    its coordinate of v and nothing else, so a short gradient counts for as much in float32 as a long one.
    """
    cosines, norms = gram.cosines, gram.norms
    alive = gram.active & (norms > 0)
    k = norms.shape[0]

    def excess(row: Array) -> Array:
        """Argmin over u >= 0 of ‖ĝ_k + Σ_j u_j ĝ_j‖², ĝ the unit gradients; row: the cosines of ĝ_k."""

        def minimiser(face: Array) -> Array:
            return jnp.linalg.solve(face_system(cosines, face), jnp.where(face, -row, 0))

        return solve(FaceProblem(minimiser, lambda u: cosines @ u + row, alive, False, row.dtype))

    extra = jax.vmap(excess)(cosines)  # row k is u_k
    lengths = norms[:, None] / jnp.where(norms > 0, norms, 1)[None, :]
    coefficients = jnp.eye(k, dtype=norms.dtype) + jnp.where(alive[None, :], extra * lengths, 0)
    return gram.mean @ coefficients


def upgrad(
    *,
    scope: Scope = "shared",
    scale: Scale = "mean",
    level: Level = "parameters",
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Project each gradient onto {d : no objective gets worse along d} and take the mean of the projections.

    It conflicts with no objective, every gradient counts by its length, and where gradients do not conflict it is their
    mean.

    scope: "shared": leaves that two or more objectives reach, the others get Σ_k g_k; "all": every leaf.
    scale: "sum" multiplies the weights by K, so that learning rates compare with those of `uniform`.
    level: "features": projections at the features; what conflicts with nothing there may do so at the parameters. One
      encoder backward pass. It needs lazy gradients made with `encode`.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `active` bool[K], `touching`.

    Raises:
      ValueError: an unknown option; gradients that are not one an objective; no features at level "features".

    Source: Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization" (2024).

    >>> tx = upgrad()
    >>> params = {"w": jnp.zeros(3)}
    >>> grads = {"w": jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])}
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> [round(171 * float(u), 2) for u in updates["w"]]
    [50.0, 325.0, 325.0]
    """
    return gram_method(
        lambda gram, key: upgrad_weights(gram), scope=scope, scale=scale, level=level, num_objectives=num_objectives
    )


@dataclass(frozen=True, kw_only=True)
class UpgradConfig(MeanGramConfig):
    """The mean of the gradients, each projected so that no objective gets worse.

    Example:
    >>> UpgradConfig(scope="all").scope
    'all'
    """

    name: str = "upgrad"

    source: ClassVar[str] = "Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, 2024"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {
            Promise.IDENTITY_FOR_ONE,
            Promise.PERMUTATION_EQUIVARIANT,
            Promise.STATIONARY,
            Promise.NON_CONFLICTING,
            Promise.LINEAR_UNDER_SCALING,
            Promise.UNIFORM_WHEN_BALANCED,  # with scale="sum"
        }
    )

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `upgrad` for the context's objectives."""
        return upgrad(**self.options(context))
