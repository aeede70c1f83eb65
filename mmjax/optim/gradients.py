"""What a combiner may be handed, lazy `ObjectiveGrads` or a stacked tree, behind one set of functions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmjax.lazy_gradients import LazyGradientsError, ObjectiveGrads

PyTree = Any


def count_objectives(grads: ObjectiveGrads | PyTree) -> int:
    """Return K, the static number of objectives of lazy or stacked gradients.

    Raises ValueError if a leaf has no leading objective axis or the leading axes disagree.

    >>> count_objectives({"a": jnp.zeros((3, 2)), "b": jnp.zeros((3,))})
    3
    """
    if isinstance(grads, ObjectiveGrads):
        return len(grads)
    leaves = jax.tree.leaves_with_path(grads)
    if not leaves:
        raise ValueError(
            "grads holds no arrays: give ObjectiveGrads or a tree with a leading objective axis on every leaf"
        )
    sizes: dict[int, str] = {}
    for path, leaf in leaves:
        if jnp.ndim(leaf) == 0:
            raise ValueError(
                f"grads{jax.tree_util.keystr(path)} is a scalar: a combiner takes per-objective gradients, lazy (from "
                "mmjax.objective_grads) or stacked with a leading objective axis on every leaf"
            )
        sizes.setdefault(leaf.shape[0], jax.tree_util.keystr(path))
    if len(sizes) > 1:
        found = ", ".join(f"grads{path} has {size}" for size, path in sizes.items())
        raise ValueError(f"the leading (objective) axes of grads disagree: {found}")
    return next(iter(sizes))


def check_like_params(grads: ObjectiveGrads | PyTree, params: PyTree | None) -> None:
    """Raise ValueError where stacked `grads` do not fit `params`: single gradients came, or another structure."""
    if params is None or isinstance(grads, ObjectiveGrads):
        return
    ours: Any = jax.tree.structure(grads)
    theirs: Any = jax.tree.structure(params)
    if ours != theirs:
        raise ValueError(f"grads and params differ in structure: {ours} against {theirs}")
    for (path, grad), param in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(params), strict=True):
        if jnp.shape(grad)[1:] != jnp.shape(param):
            single = jnp.shape(grad) == jnp.shape(param)
            raise ValueError(
                f"grads{jax.tree_util.keystr(path)} has shape {jnp.shape(grad)}; expected (K, *{jnp.shape(param)})"
                + (": these are single gradients, a combiner takes one an objective" if single else "")
            )


def stacked(grads: ObjectiveGrads | PyTree) -> PyTree:
    """Return the tree with a leading objective axis on every leaf, whichever form came."""
    return grads.stacked() if isinstance(grads, ObjectiveGrads) else grads


def touching_of(grads: ObjectiveGrads | PyTree, touching: PyTree | None) -> PyTree | None:
    """Return which objectives reach each leaf (bool[K] a leaf), or None for a bare stacked tree: all of them do.

    Raises ValueError if a given `touching` is traced, differs from the gradients in structure, or a leaf of it is not
    bool[K].
    """
    if touching is not None:
        k = count_objectives(grads)
        ours: Any = jax.tree.structure(touching)
        theirs: Any = jax.tree.structure(grads.touching if isinstance(grads, ObjectiveGrads) else grads)
        if ours != theirs:
            raise ValueError(f"touching must be a tree like params: {theirs}; got {ours}")
        for path, leaf in jax.tree.leaves_with_path(touching):
            if isinstance(leaf, jax.core.Tracer):
                raise ValueError("touching is static: close over it, do not pass it through jit as an argument")
            if jnp.shape(leaf) != (k,):
                raise ValueError(f"touching{jax.tree_util.keystr(path)} must be bool[{k}]; got {leaf!r}")
        return jax.tree.map(np.asarray, touching)  # what JAX's own arrays hold cannot be asked while a program is made
    return grads.touching if isinstance(grads, ObjectiveGrads) else None


def weighted_sum(grads: ObjectiveGrads | PyTree, weights: Array, active: Array | np.ndarray | None = None) -> PyTree:
    """Return Σ_k weights[k] g_k, like params: one backward pass if lazy, a contraction in float32 if stacked.

    An objective with `active` False is left out whatever its gradient holds.

    >>> weighted_sum({"a": jnp.array([[1.0, 2.0], [10.0, 20.0]])}, jnp.array([1.0, 0.5]))["a"].tolist()
    [6.0, 12.0]
    """
    if isinstance(grads, ObjectiveGrads):
        return grads.weighted(weights, active)

    def combine(leaf: Array) -> Array:
        rows = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        if active is not None:
            rows = jnp.where(jnp.reshape(active, (-1,) + (1,) * (rows.ndim - 1)), rows, 0)
        return jnp.tensordot(weights.astype(rows.dtype), rows, axes=1).astype(leaf.dtype)

    return jax.tree.map(combine, grads)


__all__ = [
    "LazyGradientsError",
    "check_like_params",
    "count_objectives",
    "stacked",
    "touching_of",
    "weighted_sum",
]
