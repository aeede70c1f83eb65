"""Norms of the objectives' gradients and the angles between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmjax.lazy_gradients import LeafGradients, ObjectiveGrads
from mmjax.optim.gradients import count_objectives, touching_of

PyTree = Any


class Geometry(NamedTuple):
    """norms: float32 [K]. cosines: float32 [K, K], NaN between objectives that meet in no parameter, 1 on the diagonal."""

    norms: Array
    cosines: Array


def geometry_of(grads: ObjectiveGrads | PyTree, touching: PyTree | None = None) -> Geometry:
    """Return the norms of the K gradients, lazy or stacked, and the cosines between them.

    A norm is over all parameters. A cosine is over the parameters that both objectives reach (the fusion loss and one
    modality meet in that modality's encoder). Where a gradient is zero the cosine is 0. touching: a tree like params of
    bool[K], for stacked gradients; without it every objective reaches every parameter. Arithmetic is in float32; no
    square overflows or vanishes. Where a gradient is not finite, nor are its norm and the cosines over such parameters.

    >>> norms, cosines = geometry_of({"w": jnp.array([[3.0, 4.0], [1.0, 0.0]])})
    >>> norms.tolist(), [round(c, 3) for c in cosines[0].tolist()]
    ([5.0, 1.0], [1.0, 0.6])
    """
    k = count_objectives(grads)
    leaves = _rows_by_leaf(grads, touching)
    sizes = {(a, i): _size(g) for i, leaf in enumerate(leaves) for a, g in leaf.items()}
    scaled = {(a, i): g / sizes[a, i] for i, leaf in enumerate(leaves) for a, g in leaf.items()}
    squares = {at: jnp.vdot(g, g) for at, g in scaled.items()}

    def shares(a: int, places: list[int]) -> tuple[Array, dict[int, Array]]:
        """Return the largest size over these leaves, and each one's as a share of it."""
        largest = jnp.max(jnp.stack([sizes[a, i] for i in places]))
        return largest, {i: sizes[a, i] / largest for i in places}

    def length(a: int, share: dict[int, Array]) -> Array:
        return jnp.sqrt(jnp.sum(jnp.stack([squares[a, i] * of**2 for i, of in share.items()])))

    norms = []
    for a in range(k):
        places = [i for i, leaf in enumerate(leaves) if a in leaf]
        if not places:
            norms.append(jnp.zeros(()))
            continue
        largest, share = shares(a, places)
        norms.append(largest * length(a, share))
    cosines: list[list[Any]] = [[1.0 if a == b else jnp.nan for b in range(k)] for a in range(k)]
    for a, b in _meeting(leaves, k):
        places = [i for i, leaf in enumerate(leaves) if a in leaf and b in leaf]
        of_a, of_b = shares(a, places)[1], shares(b, places)[1]
        product = sum(jnp.vdot(scaled[a, i], scaled[b, i]) * of_a[i] * of_b[i] for i in places)
        scale = length(a, of_a) * length(b, of_b)
        cosines[a][b] = cosines[b][a] = jnp.where(scale == 0, 0.0, product / jnp.where(scale == 0, 1, scale))
    return Geometry(jnp.stack(norms), jnp.stack([jnp.stack([jnp.float32(c) for c in row]) for row in cosines]))


def without_inactive(geometry: Geometry, active: Array | None) -> Geometry:
    """Return a geometry with NaN wherever an objective is not active; active: bool [K], or None: all are."""
    if active is None:
        return geometry
    both = active[:, None] & active[None, :]
    return Geometry(jnp.where(active, geometry.norms, jnp.nan), jnp.where(both, geometry.cosines, jnp.nan))


def named_geometry(geometry: Geometry, names: Sequence[str]) -> dict[str, Array]:
    """Return a geometry by name: {"norm/a": ‖∇L_a‖, ..., "cosine/a/b": cos(∇L_a, ∇L_b), ...}; names in objective order.

    >>> geometry = geometry_of({"w": jnp.array([[3.0, 4.0], [-1.0, 0.0]])})
    >>> {k: round(float(v), 3) for k, v in named_geometry(geometry, ("fusion", "m")).items()}
    {'norm/fusion': 5.0, 'norm/m': 1.0, 'cosine/fusion/m': -0.6}
    """
    norms, cosines = geometry
    return {f"norm/{name}": norms[k] for k, name in enumerate(names)} | {
        f"cosine/{names[a]}/{names[b]}": cosines[a, b] for a in range(len(names)) for b in range(a + 1, len(names))
    }


def _size(gradient: Array) -> Array:
    """Return the largest absolute value, within bounds whose reciprocals are normal: what to divide by before squaring."""
    return jnp.clip(jnp.max(jnp.abs(gradient), initial=0.0), 2.0**-100, 2.0**100)


def _rows_by_leaf(grads: ObjectiveGrads | PyTree, touching: PyTree | None) -> list[dict[int, Array]]:
    """Return, for each leaf, {objective's number: its gradient in float32} for the objectives that reach it."""
    if isinstance(grads, ObjectiveGrads):
        number = {name: k for k, name in enumerate(grads.names)}
        pairs = jax.tree.leaves(grads.pairs(), is_leaf=lambda x: isinstance(x, LeafGradients))
        return [{number[name]: g.astype(jnp.float32) for name, g in pair.items()} for pair in pairs]
    leaves = jax.tree.leaves(grads)
    touching = touching_of(grads, touching)
    every = [np.ones(len(leaf), bool) for leaf in leaves]
    reach = every if touching is None else jax.tree.leaves(touching)
    return [
        {int(k): leaf[k].astype(jnp.float32) for k in np.flatnonzero(reached)}
        for leaf, reached in zip(leaves, reach, strict=True)
    ]


def _meeting(leaves: list[dict[int, Any]], num_objectives: int) -> list[tuple[int, int]]:
    """Return the pairs (a, b), a < b, of objectives that reach a common leaf; in order."""
    return [
        (a, b)
        for a in range(num_objectives)
        for b in range(a + 1, num_objectives)
        if any(a in leaf and b in leaf for leaf in leaves)
    ]
