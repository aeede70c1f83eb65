"""Small convex programs over x >= 0, solved on the device: by all faces at once, or from face to face.

The K x K problems of Gram-based methods. A face is a set of coordinates that may differ from zero. On the face's affine
hull the minimiser is a linear system; the right face is the one whose minimiser is feasible and leaves no violation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

ENUMERATED = 8
"""Most coordinates whose 2^K faces are all tried; above, an active-set iteration walks from face to face."""

_TOLERANCE = 1e-6
"""Violation at which the active-set iteration stops; that of its answer in float32 is of this order."""

_STEPS_PER_COORDINATE = 8
"""Bound on its steps, a multiple of K. It adds or drops one coordinate a step and usually needs fewer than 3 K."""


@dataclass(frozen=True)
class FaceProblem:
    """Minimise a convex f over x >= 0, and Σ x = 1 if `simplex`.

    minimiser: bool[K] -> [K], the minimiser of f on the affine hull of that face; it may leave the face, and may be
      anything at all where it is not unique. gradient: [K] -> [K], that of f. active: bool[K], the coordinates that exist.
    start: the coordinate to start from if `simplex` (int scalar). dtype: that of x.
    """

    minimiser: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    active: Array
    simplex: bool
    dtype: jnp.dtype
    start: Array | int = 0

    def feasible(self, x: Array, face: Array) -> Array:
        """Return the point of the face nearest to x, or so: negative coordinates cut off, the sum restored."""
        x = jnp.where(face & jnp.isfinite(x), jnp.maximum(x, 0), 0)
        if not self.simplex:
            return x
        total = jnp.sum(x)
        return x / jnp.where(total > 0, total, 1)

    def violation(self, x: Array) -> Array:
        """Return how far a feasible x is from the optimum: 0 there, scalar; inf where it is not feasible."""
        gradient = self.gradient(x)
        if self.simplex:  # the duality gap
            lowest = jnp.min(jnp.where(self.active, gradient, jnp.inf))
            gap = jnp.where(jnp.sum(x) > 0.5, x @ gradient - lowest, jnp.inf)
        else:  # the natural residual: a coordinate is zero, or its slope is
            gap = jnp.max(jnp.where(self.active, jnp.abs(jnp.minimum(x, gradient)), 0))
        return jnp.where(jnp.isfinite(gap), gap, jnp.inf)


def solve(problem: FaceProblem) -> Array:
    """Return the minimiser [K]; zeros where nothing is active. Ties between faces are averaged if K <= 8.

    Averaged: a convex program's solutions are a convex set, and their mean does not depend on the order of coordinates.
    """
    k = problem.active.shape[0]
    return _best_face(problem) if k <= ENUMERATED else _walk(problem)


def _best_face(problem: FaceProblem) -> Array:
    (k,) = problem.active.shape
    faces = (np.arange(2**k)[:, None] >> np.arange(k)) % 2 == 1

    def candidate(face: Array) -> tuple[Array, Array]:
        face = face & problem.active
        x = problem.feasible(problem.minimiser(face), face)
        return x, problem.violation(x)

    x, violation = jax.vmap(candidate)(jnp.asarray(faces))
    tie = 4 * jnp.finfo(x.dtype).eps
    best = (violation <= jnp.min(violation) + tie) & jnp.isfinite(violation)
    return jnp.sum(jnp.where(best[:, None], x, 0), axis=0) / jnp.maximum(jnp.sum(best), 1)


_Walk = tuple[Array, Array, Array, Array, Array]
"""Step, where it stands, its face, the best point so far and the violation there."""


def _walk(problem: FaceProblem) -> Array:
    (k,) = problem.active.shape
    # A vertex of the simplex, or the origin of the cone.
    at_start = (jnp.arange(k) == problem.start) & problem.active & problem.simplex
    start = at_start.astype(problem.dtype)

    def unfinished(carry: _Walk) -> Array:
        step, _, _, _, violation = carry
        return (step < _STEPS_PER_COORDINATE * k) & (violation > _TOLERANCE)

    def advance(carry: _Walk) -> _Walk:
        step, x, face, best, violation = carry
        target = problem.minimiser(face)
        target = jnp.where(face & jnp.isfinite(target), target, 0)
        blocked = face & (target < 0)
        ratio = jnp.where(blocked, x / jnp.where(blocked, x - target, 1), jnp.inf)
        length = jnp.minimum(jnp.min(ratio), 1)
        leaves = blocked & (ratio <= length)
        x = jnp.where(face & ~leaves, jnp.maximum(x + length * (target - x), 0), 0)
        x = problem.feasible(x, face)
        steepest = jnp.argmin(jnp.where(problem.active & ~face, problem.gradient(x), jnp.inf))
        grown = face | ((jnp.arange(k) == steepest) & problem.active)
        now = problem.violation(x)
        better = now < violation
        face = jnp.where(jnp.any(blocked), face & ~leaves, grown)
        return step + 1, x, face, jnp.where(better, x, best), jnp.minimum(now, violation)

    carry = (jnp.zeros((), jnp.int32), start, at_start, start, problem.violation(start))
    return jax.lax.while_loop(unfinished, advance, carry)[3]


def face_system(matrix: Array, face: Array) -> Array:
    """Return the matrix restricted to a face, and the identity elsewhere: [K, K], solvable without gathering."""
    inside = face[:, None] & face[None, :]
    return jnp.where(inside, matrix, jnp.eye(face.shape[0], dtype=matrix.dtype))


RIDGE = 1e-6
"""On the diagonal of correlations (1): where gradients cancel, the program below would have no minimum. A direction that
cancels then keeps at most this share of the shortest gradient's length."""


def min_norm(matrix: Array, active: Array) -> Array:
    """Return argmin wᵀ G w over the simplex of active objectives, [K].

    matrix: [K, K], a Gramian at any scale. Solved in x_k = w_k d_k, d_k = √G_kk, in which gradients of any length are
    alike: the minimiser of ½ xᵀ C x − cᵀ x over x >= 0, with the correlations C and c_k = min_j d_j / d_k, satisfies the
    same optimality conditions up to a factor, which the sum of w restores. So an objective's product with the update is
    right to 1e-5 of the two lengths, whatever the others' lengths. Where some gradients are zero, those share the weight.

    >>> [round(float(w), 4) for w in min_norm(jnp.array([[0.2, 0.0], [0.0, 0.8]]), jnp.ones(2, bool))]
    [0.8, 0.2]
    """
    length = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), 0))
    zero = active & (length == 0)
    safe = jnp.where(length > 0, length, 1)
    correlations = matrix / (safe[:, None] * safe[None, :]) + RIDGE * jnp.eye(len(length), dtype=matrix.dtype)
    shortest = jnp.min(jnp.where(active & ~zero, length, jnp.inf))
    pull = jnp.where(active & ~zero, jnp.where(jnp.isfinite(shortest), shortest, 1) / safe, 0)

    def minimiser(face: Array) -> Array:
        return jnp.linalg.solve(face_system(correlations, face), jnp.where(face, pull, 0))

    x = solve(FaceProblem(minimiser, lambda x: correlations @ x - pull, active & ~zero, False, matrix.dtype))
    weights = jnp.where(jnp.any(zero), zero.astype(matrix.dtype), x * pull)
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1)
