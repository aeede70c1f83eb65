"""Nash-MTL: the bargaining solution, in which every objective's relative gain weighs the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodContext
from mmjax.optim.gramian import GramConfig, Gramian, Scope, gram_method
from mmjax.optim.options import check_positive
from mmjax.optim.promises import Promise
from mmjax.optim.rows import Level

_ITERATIONS = 50
"""Bound on Newton steps. Ten suffice unless gradients nearly oppose each other."""

_DECREMENT = 1e-6
"""Newton decrement at which to stop: the relative error of the weights in float32."""


def nash_mtl_weights(gram: Gramian, max_norm: float | Array | None = None) -> Array:
    """Return α > 0 with G α = 1/α, the minimiser of ½ αᵀ G α - Σ_k log α_k, [K]; ‖Σ α_k g_k‖² is then K.

    With unit gradients (cosines C), β_k = ‖g_k‖ α_k solves C β = 1/β. Newton's step relative to β, damped by
    1 / (1 + its decrement), keeps β positive and converges from anywhere, because the function is self-concordant.
    At a Pareto-stationary point there is no solution and β grows without bound: it is held below (K eps)^(-1/2), above
    which float32 cannot tell C from a singular matrix, and the update's norm at √K. Zero gradients weigh nothing.
    """
    cosines, norms = gram.cosines, gram.norms
    alive = gram.active & (norms > 0)
    k = norms.shape[0]
    one, identity = alive.astype(norms.dtype), jnp.eye(k, dtype=norms.dtype)
    bound = (k * jnp.finfo(norms.dtype).eps) ** -0.5

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        step, _, decrement = carry
        return (step < _ITERATIONS) & (decrement > _DECREMENT)

    def advance(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, beta, _ = carry
        residual = one - beta * (cosines @ beta)
        relative = jnp.linalg.solve(beta[:, None] * cosines * beta[None, :] + identity, residual)
        decrement = jnp.sqrt(jnp.maximum(relative @ residual, 0))
        length = jnp.where(decrement < 0.25, 1, 1 / (1 + decrement))
        beta = beta * (1 + length * relative)
        # All together: one clipped alone would no longer cancel against the others.
        return step + 1, beta * jnp.minimum(1, bound / jnp.maximum(jnp.max(beta), 1)), decrement

    start = (jnp.zeros((), jnp.int32), one, jnp.asarray(jnp.inf, norms.dtype))
    beta = jax.lax.while_loop(unfinished, advance, start)[1]
    size = jnp.sqrt(jnp.maximum(beta @ cosines @ beta, 0))
    largest = jnp.sqrt(jnp.sum(one))  # the solution's; more is what did not cancel where there is none
    if max_norm is not None:
        largest = jnp.minimum(largest, max_norm)
    beta = beta * jnp.minimum(1, largest / jnp.where(size > 0, size, 1))
    return jnp.where(alive, beta / jnp.where(alive, norms * jnp.sqrt(gram.trace), 1), 0)


def nash_mtl(
    max_norm: float | Array | None = None,
    *,
    scope: Scope = "shared",
    level: Level = "parameters",
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Follow the Nash bargaining solution: weights α > 0 with G α = 1/α, so that no objective's scale matters.

    The update has norm √K whatever the gradients' lengths (there is no `scale`): the learning rate alone sets the step, and
    a schedule has to bring it down. No objective gets worse where a solution exists. At a Pareto-stationary point there is
    none; the iteration is bounded, and the update finite.

    max_norm: largest norm of the update on the leaves in scope (or at the features), > 0; a longer one is scaled down.
      None: √K.
    scope: "shared": leaves that two or more objectives reach, the others get Σ_k g_k; "all": every leaf.
    level: "features": the bargain at the features, one encoder backward pass; norm √K there. It needs lazy gradients made
      with `encode`.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `active` bool[K], `touching`.

    Raises:
      ValueError: max_norm not above 0; an unknown option; gradients that are not one an objective; no features at level
        "features".

    Source: Navon et al., "Multi-Task Learning as a Bargaining Game" (2022). There G α = 1/α is solved by a sequence of
    convex programs; here by Newton's method, at every step.

    >>> tx = nash_mtl()
    >>> params = {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.array([[5.0, 0.0], [0.0, 0.1]])}
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> [round(float(u), 4) for u in updates["w"]]  # orthogonal: α_k = 1/‖g_k‖
    [1.0, 1.0]
    """
    if max_norm is not None:
        check_positive("max_norm", max_norm)
    return gram_method(
        lambda gram, key: nash_mtl_weights(gram, max_norm), scope=scope, level=level, num_objectives=num_objectives
    )


@dataclass(frozen=True, kw_only=True)
class NashMtlConfig(GramConfig):
    """The bargaining solution: every objective's relative gain weighs the same.

    Example:
    >>> NashMtlConfig(max_norm=1.0).max_norm
    1.0
    """

    name: str = "nash_mtl"
    max_norm: float | None = None
    """Largest norm of the update where the method acts, > 0; None: √K."""

    source: ClassVar[str] = "Navon et al., Multi-Task Learning as a Bargaining Game, 2022"
    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.PERMUTATION_EQUIVARIANT, Promise.NON_CONFLICTING})

    def validate(self) -> None:
        """Raise ValueError for an unknown choice, or max_norm not above 0."""
        super().validate()
        if self.max_norm is not None:
            check_positive("method.max_norm", self.max_norm)

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `nash_mtl` for the context's objectives."""
        return nash_mtl(self.max_norm, **self.options(context))
