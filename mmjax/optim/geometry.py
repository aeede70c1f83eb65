"""Norms of the objectives' gradients and the angles between them."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from mmjax.objectives import LeafGradients


class Gradients(Protocol):
    """The gradients of several objectives: `ObjectiveGrads`, or anything else that has them by name."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objectives, in order."""

    def pairs(self) -> Any:
        """Return a tree of `LeafGradients`."""


def gradient_geometry(grads: Gradients) -> dict[str, Array]:
    """Return {"norm/a": ‖∇L_a‖, ..., "cosine/a/b": cos(∇L_a, ∇L_b), ...}, float32 scalars.

    A norm is over all parameters. A cosine is over the parameters that both objectives reach (the fusion loss and one
    modality meet in that modality's encoder); a pair that meets nowhere has no entry. Where a gradient is zero the
    cosine is 0. Names in objective order, "fusion" first.

    >>> import mmjax
    >>> def losses_fn(params):
    ...     return {"fusion": params["a"] ** 2 + params["b"] ** 2, "m": -(params["a"] ** 2)}
    >>> _, grads = mmjax.objective_grads(losses_fn)({"a": 1.0, "b": 2.0})
    >>> {k: round(float(v), 3) for k, v in gradient_geometry(grads).items()}
    {'norm/fusion': 4.472, 'norm/m': 2.0, 'cosine/fusion/m': -1.0}
    """
    names = grads.names
    leaves = jax.tree.leaves(grads.pairs(), is_leaf=lambda x: isinstance(x, LeafGradients))
    squares = {(a, i): jnp.vdot(leaf[a], leaf[a]) for i, leaf in enumerate(leaves) for a in leaf}
    geometry = {}
    for a in names:
        own = [squares[a, i] for i, leaf in enumerate(leaves) if a in leaf]
        geometry[f"norm/{a}"] = jnp.sqrt(sum(own, jnp.zeros(())))
    for k, a in enumerate(names):
        for b in names[k + 1 :]:
            shared = [i for i, leaf in enumerate(leaves) if a in leaf and b in leaf]
            if not shared:
                continue
            product = sum(jnp.vdot(leaves[i][a], leaves[i][b]) for i in shared)
            scale = jnp.sqrt(sum(squares[a, i] for i in shared)) * jnp.sqrt(sum(squares[b, i] for i in shared))
            geometry[f"cosine/{a}/{b}"] = jnp.where(scale > 0, product / jnp.where(scale > 0, scale, 1), 0.0)
    return geometry
