"""CAGrad: near the mean gradient, the direction whose worst objective improves most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodContext
from mmjax.optim.gramian import Gramian, MeanGramConfig, Scope, gram_method
from mmjax.optim.options import Scale, check_fraction
from mmjax.optim.promises import Promise
from mmjax.optim.qp import FaceProblem, face_system, min_norm, solve
from mmjax.optim.rows import Level

_VANISHES = 1e-4
"""‖g_w‖ / √trace below which it counts as zero: float32 inner products do not resolve less (√eps = 3e-4)."""


def cagrad_weights(gram: Gramian, c: float | Array) -> Array:
    """Return the weights [K] of ḡ + c ‖ḡ‖ g_w / ‖g_w‖, g_w = Σ w_k g_k, w = argmin g_w·ḡ + c ‖ḡ‖ ‖g_w‖ on the simplex.

    Zeros where g_w vanishes (with c > 0): no direction near ḡ improves every objective.
    On the affine hull of a face F of the simplex, stationarity reads G_F w = λ (ν 1 - (G u)_F), u the weights of the mean,
    with ν the root of a quadratic; so each face has its minimiser in closed form, as in a quadratic program.
    """
    matrix, mean = gram.matrix, gram.mean
    along = matrix @ mean  # g_k·ḡ
    radius = c * jnp.sqrt(jnp.maximum(mean @ along, 0))

    def length(w: Array) -> Array:
        return jnp.sqrt(jnp.maximum(w @ matrix @ w, 0))

    def minimiser(face: Array) -> Array:
        one = face.astype(matrix.dtype)
        right = jnp.stack([one, one * along], axis=1)
        a, b = jnp.linalg.solve(face_system(matrix, face), right).T
        alpha = a @ one
        b = b - (b @ one) / alpha * a  # now Σ b = 0; the quadratic's root without cancellation
        w = jnp.sqrt((radius**2 - b @ (one * along)) / alpha) * a - b
        return w / jnp.sum(w)

    def gradient(w: Array) -> Array:
        size = length(w)
        return along + radius * (matrix @ w) / jnp.where(size > 0, size, 1)

    shortest = jnp.argmin(jnp.where(gram.active, jnp.diagonal(matrix), jnp.inf))
    inner = solve(FaceProblem(minimiser, gradient, gram.active, True, matrix.dtype, shortest))
    vertex = min_norm(matrix, gram.active)  # where g_w = 0 is feasible, f has a kink there that no face sees

    def value(w: Array) -> Array:
        return w @ along + radius * length(w)

    found = (jnp.sum(inner) > 0.5) & (value(inner) <= value(vertex))
    w = jnp.where(found, inner, vertex)
    size = length(w)
    pull = radius * w / jnp.where(size > 0, size, 1)
    return jnp.where((size > _VANISHES) | (jnp.asarray(c) == 0), mean + pull, 0)


def cagrad(
    c: float | Array = 0.5,
    *,
    scope: Scope = "shared",
    scale: Scale = "mean",
    level: Level = "parameters",
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Among directions d with ‖d - ḡ‖ <= c ‖ḡ‖, ḡ the mean gradient, follow the one that maximises min_k g_k·d.

    c: in [0, 1); 0 is the mean, and towards 1 it comes near MGDA. A number, or traced.
    scope: "shared": leaves that two or more objectives reach, the others get Σ_k g_k; "all": every leaf.
    scale: "sum" multiplies the weights by K, so that learning rates compare with those of `uniform`.
    level: "features": the direction at the features, one encoder backward pass; at the parameters it is another one
      unless the encoder's Jacobian preserves angles. It needs lazy gradients made with `encode`.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `active` bool[K], `touching`.

    The update is 0 where ‖g_w‖ <= 1e-4 √trace(G): so an objective whose gradient vanishes stops what it shares.

    Raises:
      ValueError: c outside [0, 1); an unknown option; gradients that are not one an objective; no features at level
        "features".

    Source: Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning" (2021), without the later division by
    1 + c².

    >>> tx = cagrad(0.5)
    >>> params = {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.array([[1.0, 0.0], [0.0, 1.0]])}
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> [round(float(u), 4) for u in updates["w"]]  # (1 + c) ḡ: the mean is the best direction already
    [0.75, 0.75]
    """
    check_fraction("c", c)
    return gram_method(
        lambda gram, key: cagrad_weights(gram, c), scope=scope, scale=scale, level=level, num_objectives=num_objectives
    )


@dataclass(frozen=True, kw_only=True)
class CagradConfig(MeanGramConfig):
    """Near the mean gradient, the direction whose worst objective improves most.

    Example:
    >>> CagradConfig(c=0.4).c
    0.4
    """

    name: str = "cagrad"
    c: float = 0.5
    """Radius around the mean gradient, relative to its length, in [0, 1)."""

    source: ClassVar[str] = "Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning, 2021"
    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.PERMUTATION_EQUIVARIANT})

    def validate(self) -> None:
        """Raise ValueError for an unknown choice, or c outside [0, 1)."""
        super().validate()
        check_fraction("method.c", self.c)

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `cagrad` for the context's objectives."""
        return cagrad(self.c, **self.options(context))
