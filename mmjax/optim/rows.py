"""One view of per-objective gradients for methods that need every one of them: rows by leaf, at one of two places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from mmjax.lazy_gradients import LeafGradients, ObjectiveGrads
from mmjax.optim.gradients import touching_of

PyTree = Any

Level = Literal["parameters", "features"]
LEVELS = ("parameters", "features")


@dataclass(frozen=True)
class GradientRows:
    """The gradients of K objectives, leaf by leaf: {k: g_k} of the objectives that reach the leaf.

    leaves: one dict a leaf; a leaf that nothing reaches has one row of zeros.
    assemble: combined leaves, without the objective axis -> the update, a tree like params.
    names: the objectives' names, where known (lazy gradients).
    modalities: at level "features", the modalities whose features the first leaves are; the other leaves are
      parameters, the features held fixed. axis_name: devices over which products of the features' rows are still to be
      summed.
    """

    num_objectives: int
    leaves: tuple[dict[int, Array], ...]
    assemble: Callable[[list[Array]], PyTree]
    names: tuple[str, ...] | None = None
    modalities: tuple[str, ...] = ()
    axis_name: str | None = None

    def over_devices(self, of_features: Any, of_parameters: Any) -> Any:
        """Return the sum of what the leaves at the features and the other leaves gave, over devices where needed."""
        if self.axis_name is not None:
            of_features = jax.lax.psum(of_features, self.axis_name)
        return jax.tree.map(jnp.add, of_features, of_parameters)


def gradient_rows(
    grads: ObjectiveGrads | PyTree, num_objectives: int, *, level: Level = "parameters", touching: PyTree | None = None
) -> GradientRows:
    """Return the rows of lazy or stacked gradients: at the parameters, or at the features and the parameters after them.

    level "parameters" costs one backward pass an objective over what it reaches (an encoder: two, whatever K);
    "features" costs one an objective over the heads, and one encoder backward for the update.
    touching: which objectives reach each leaf of a stacked tree (bool[K] a leaf); None: all of them do.

    Raises:
      ValueError: level "features" with gradients that are not lazy or were made without `encode`.
    """
    if level == "features":
        return _rows_at_features(grads, num_objectives)
    if not isinstance(grads, ObjectiveGrads):
        leaves, structure = jax.tree.flatten(grads)
        reached = touching_of(grads, touching)
        rows = _split(leaves, None if reached is None else jax.tree.leaves(reached))
        return GradientRows(num_objectives, rows, lambda combined: jax.tree.unflatten(structure, combined))
    pairs, structure = jax.tree.flatten(grads.pairs(), is_leaf=lambda x: isinstance(x, LeafGradients))
    index = {name: k for k, name in enumerate(grads.names)}
    if any(not leaf for leaf in pairs):  # a leaf that nothing reaches: its gradient is zero, its shape known from here
        zeros = jax.tree.leaves(grads.weighted(jnp.zeros(num_objectives)))
        pairs = [leaf or {grads.names[0]: jnp.zeros_like(zero)} for leaf, zero in zip(pairs, zeros, strict=True)]
    return GradientRows(
        num_objectives,
        tuple({index[name]: g for name, g in leaf.items()} for leaf in pairs),
        lambda combined: jax.tree.unflatten(structure, combined),
        names=grads.names,
    )


def _rows_at_features(grads: ObjectiveGrads | PyTree, num_objectives: int) -> GradientRows:
    if not isinstance(grads, ObjectiveGrads):
        raise ValueError(
            'level="features" needs lazy gradients, from mmjax.objective_grads(losses_fn, encode=...); got a stacked tree'
        )
    features = grads.features()
    at_features, features_structure = jax.tree.flatten(features.cotangents)
    direct, structure = jax.tree.flatten(features.direct)
    count = len(at_features)
    rows = _split(at_features + direct, jax.tree.leaves(features.touching) + jax.tree.leaves(features.direct_touching))

    def assemble(combined: list[Array]) -> PyTree:
        cotangents = jax.tree.unflatten(features_structure, combined[:count])
        return features.pull_back(cotangents, jax.tree.unflatten(structure, combined[count:]))

    return GradientRows(
        num_objectives,
        rows,
        assemble,
        names=grads.names,
        modalities=tuple(sorted(features.features)),
        axis_name=grads.axis_name,
    )


def _split(leaves: Sequence[Array], touching: Sequence[Any] | None) -> tuple[dict[int, Array], ...]:
    """Return the rows of stacked leaves that the objectives reach. XLA never builds the others."""
    if touching is None:
        return tuple(dict(enumerate(leaf)) for leaf in leaves)
    rows = [{k: leaf[k] for k in range(leaf.shape[0]) if t[k]} for leaf, t in zip(leaves, touching, strict=True)]
    return tuple(row or {0: jnp.zeros_like(leaf[0])} for row, leaf in zip(rows, leaves, strict=True))


def combine_rows(rows: GradientRows, weights: Sequence[Array], active: Array | None = None) -> PyTree:
    """Return the update Σ_k w_k g_k, leaf by leaf, as a tree like params; summed in float32, in one pass.

    weights: one [K] a leaf. active: bool[K]; rows that are not are left out whatever they hold.
    """

    def combine(leaf: dict[int, Array], w: Array) -> Array:
        (dtype,) = {g.dtype for g in leaf.values()}
        wide = jnp.promote_types(dtype, jnp.float32)
        terms = []
        for k, g in leaf.items():
            term = w[k].astype(wide) * g.astype(wide)
            terms.append(term if active is None else jnp.where(active[k], term, 0))
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total.astype(dtype)

    return rows.assemble([combine(leaf, w) for leaf, w in zip(rows.leaves, weights, strict=True)])
