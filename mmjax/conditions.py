"""Conditions that stay conditions when runs are batched."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap


@custom_vmap
def any_run(flag: Array) -> Array:
    """Return a bool scalar as it is; under `vmap`, for every run whether any of them says True: not mapped, for `cond`.

    With a mapped predicate `cond` computes both of its branches. Afterwards the caller selects by its own flag.

    >>> import jax
    >>> jax.vmap(lambda due: jax.lax.cond(any_run(due), lambda: 1, lambda: 0))(jnp.array([False, True])).tolist()
    [1, 1]
    """
    return flag


@any_run.def_vmap
def _any_of_runs(axis_size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    del axis_size
    return any_run(jnp.any(flag) if in_batched[0] else flag), False
