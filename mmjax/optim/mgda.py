"""MGDA: the shortest convex combination of the gradients, a direction in which no objective gets worse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import optax
from jax import Array

from mmjax.config import MethodContext
from mmjax.optim.gramian import Gramian, MeanGramConfig, Scope, gram_method
from mmjax.optim.options import Scale
from mmjax.optim.promises import Promise
from mmjax.optim.qp import min_norm
from mmjax.optim.rows import Level


def mgda_weights(gram: Gramian) -> Array:
    """Return argmin wᵀ G w over the simplex, [K]; the mean where every gradient is zero.

    Two objectives: w_1 = clip((‖g_2‖² - g_1·g_2) / ‖g_1 - g_2‖², 0, 1), and 1/2 if they are equal.
    """
    return min_norm(gram.matrix, gram.active)


def mgda(
    *,
    scope: Scope = "shared",
    scale: Scale = "mean",
    level: Level = "parameters",
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Follow the shortest vector in the convex hull of the gradients, Σ_k w_k g_k, w = argmin over the simplex.

    It conflicts with no objective, and is zero where the gradients have a convex combination that vanishes (a Pareto-
    stationary point). The shortest gradient has the most say: a nearly converged objective slows all the others down.

    scope: "shared": leaves that two or more objectives reach, the others get Σ_k g_k; "all": every leaf.
    scale: "sum" multiplies the weights by K, so that they sum to K as those of `uniform`.
    level: "features": the shortest vector at the features, an upper bound of that at the parameters up to the
      encoder's Jacobian (MGDA-UB); one encoder backward pass. It needs lazy gradients made with `encode`.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `active` bool[K], `touching`.

    Raises:
      ValueError: an unknown option; gradients that are not one an objective; no features at level "features".

    Source: Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization" (2012); Sener and
    Koltun, "Multi-Task Learning as Multi-Objective Optimization" (2018), also for the bound at the features.

    >>> import jax.numpy as jnp
    >>> tx = mgda()
    >>> params = {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.array([[1.0, 0.0], [0.0, 2.0]])}
    >>> updates, state = tx.update(grads, tx.init(params), params)
    >>> [round(float(x), 4) for x in (*updates["w"], *state.weights)]
    [0.8, 0.4, 0.8, 0.2]
    """
    return gram_method(
        lambda gram, key: mgda_weights(gram), scope=scope, scale=scale, level=level, num_objectives=num_objectives
    )


@dataclass(frozen=True, kw_only=True)
class MgdaConfig(MeanGramConfig):
    """The shortest convex combination of the gradients: no objective gets worse.

    Example:
    >>> MgdaConfig(level="features").level
    'features'
    """

    name: str = "mgda"

    source: ClassVar[str] = "Désidéri 2012; Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, 2018"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {
            Promise.IDENTITY_FOR_ONE,
            Promise.PERMUTATION_EQUIVARIANT,
            Promise.STATIONARY,
            Promise.NON_CONFLICTING,
            Promise.UNIFORM_WHEN_BALANCED,  # with scale="sum"
        }
    )

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `mgda` for the context's objectives."""
        return mgda(**self.options(context))
