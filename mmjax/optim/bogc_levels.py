"""The two levels of BOGC, features and parameters: the gradients there, and the way from combined ones to the update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmjax.bayes.moments import Gradients, as_rows, take_rows
from mmjax.config import Layout
from mmjax.lazy_gradients import LeafGradients, ObjectiveGrads
from mmjax.optim.rows import gradient_rows
from mmjax.reductions import sum_rows

PyTree = Any


@dataclass(frozen=True)
class Located:
    """The gradients at the level, and the way from combined leaves, one each, to the update."""

    gradients: Gradients
    assemble: Callable[[list[Array]], PyTree]


def widened(dtype: Any) -> Any:
    """Return float32, or the dtype itself if it holds more."""
    return jnp.promote_types(dtype, jnp.float32)


def at_features(grads: Any, layout: Layout | None, here: Array) -> Located:
    """Locate lazy gradients at the features, which must be those of `layout`; here: bool [K], who is there.

    Raises:
      ValueError: stacked gradients, or features of other sizes.
    """
    if not isinstance(grads, ObjectiveGrads):
        raise ValueError(
            'level="features" needs lazy gradients, from mmjax.objective_grads(losses_fn, encode=...); got a stacked tree'
        )
    features = grads.features()
    assert layout is not None
    found = {m: tuple(z.shape[1:]) for m, z in features.features.items()}
    if found != {m: tuple(shape) for m, shape in layout.features.items()}:
        raise ValueError(f"the features have shapes {found} an example; the layout says {dict(layout.features)}")
    modalities = sorted(features.features)
    objectives = tuple(_reached(features.touching[m]) for m in modalities)

    def taken(tree: Mapping[str, Array], axis: int) -> tuple[Array, ...]:
        """Take from {m: [..., K, ...]} the objectives that reach m."""
        return tuple(
            take_rows(tree[m].astype(widened(tree[m].dtype)), ids, axis)
            for m, ids in zip(modalities, objectives, strict=True)
        )

    def pull_back(samples: Mapping[str, Array]) -> tuple[tuple[Array, ...], ...]:
        pulled = features.from_last_layer(samples)
        return tuple(
            tuple(jax.lax.index_in_dim(pulled[m], i, axis=1, keepdims=False) for i in ids)
            for m, ids in zip(modalities, objectives, strict=True)
        )

    def summed(leaf: Array) -> Array:
        wide = leaf.astype(widened(leaf.dtype))
        return sum_rows(jnp.where(as_rows(here, wide), wide, 0)).astype(leaf.dtype)

    def assemble(combined: list[Array]) -> PyTree:
        return features.pull_back(dict(zip(modalities, combined, strict=True)), jax.tree.map(summed, features.direct))

    gradients = Gradients(
        objectives,
        rows=taken(features.cotangents, 0),
        parts=lambda n: taken(features.parts(n), 1),
        examples=True,
        pull_back=pull_back,
        last_layer=lambda: features.last_layer,
        axis_name=features.axis_name,
    )
    return Located(gradients, assemble)


def _reached(touching: np.ndarray) -> tuple[int, ...]:
    """Return the objectives that reach a leaf; the first where none does: it has zeros, so never an opinion."""
    return tuple(int(i) for i in np.flatnonzero(touching)) or (0,)


def at_parameters(grads: Any, num_objectives: int, touching: PyTree) -> Located:
    """Locate gradients, lazy or stacked, at the parameters; parts of the batch need lazy ones (ValueError)."""
    rows = gradient_rows(grads, num_objectives, level="parameters", touching=touching)
    objectives = tuple(tuple(sorted(leaf)) for leaf in rows.leaves)
    dtypes = [next(iter(leaf.values())).dtype for leaf in rows.leaves]

    def parts(n: int) -> tuple[Array, ...]:
        if not isinstance(grads, ObjectiveGrads):
            raise ValueError(
                "micro-batch moments at the parameters need lazy gradients, from mmjax.objective_grads(losses_fn, "
                "batch_argnums=...); got a stacked tree"
            )
        leaves = jax.tree.leaves(grads.parts(n), is_leaf=lambda x: isinstance(x, LeafGradients))
        made = []
        for leaf, ids, whole in zip(leaves, objectives, rows.leaves, strict=True):
            zeros = jnp.zeros((n, *whole[ids[0]].shape))  # of a leaf that nothing reaches
            each = [leaf.get(grads.names[i], zeros) for i in ids]
            made.append(jnp.stack([g.astype(widened(g.dtype)) for g in each], axis=1))
        return tuple(made)

    gradients = Gradients(
        objectives,
        rows=tuple(
            jnp.stack([leaf[i].astype(widened(leaf[i].dtype)) for i in ids])
            for leaf, ids in zip(rows.leaves, objectives, strict=True)
        ),
        parts=parts,
    )
    return Located(
        gradients, lambda combined: rows.assemble([u.astype(t) for u, t in zip(combined, dtypes, strict=True)])
    )
