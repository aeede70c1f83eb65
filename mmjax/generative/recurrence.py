"""Rounds of a recurrent computation: a given number of them, differentiable, or until nothing changes any more."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any


def check_rounds(n_steps: int, backprop_steps: int | None = None) -> None:
    """Raise ValueError unless n_steps is an integer >= 0 and backprop_steps None or one of at least 1.

    >>> check_rounds(-1)
    Traceback (most recent call last):
    ...
    ValueError: n_steps must be at least 0, got -1
    """
    if not isinstance(n_steps, numbers.Integral) or n_steps < 0:
        raise ValueError(f"n_steps must be at least 0, got {n_steps}")
    if backprop_steps is not None and (not isinstance(backprop_steps, numbers.Integral) or backprop_steps < 1):
        raise ValueError(f"backprop_steps must be None or at least 1, got {backprop_steps}")


def iterate(
    step: Callable[[PyTree], PyTree], state: PyTree, n_steps: int, *, backprop_steps: int | None = None
) -> PyTree:
    """Return the state after `n_steps` rounds of `step`.

    backprop_steps: gradients reach back through this many of the last rounds (truncated backpropagation); None: all.

    Raises:
      ValueError: n_steps < 0, backprop_steps < 1.

    >>> halve = lambda x: x / 2
    >>> jax.grad(lambda x: iterate(halve, x, 3))(8.0).tolist()
    0.125
    >>> jax.grad(lambda x: iterate(halve, x, 3, backprop_steps=2))(8.0).tolist()
    0.0
    """
    check_rounds(n_steps, backprop_steps)

    def rounds(state: PyTree, count: int) -> PyTree:
        return jax.lax.scan(lambda s, _: (step(s), None), state, length=count)[0]

    if backprop_steps is None or backprop_steps >= n_steps:
        return rounds(state, n_steps)
    return rounds(jax.lax.stop_gradient(rounds(state, n_steps - backprop_steps)), backprop_steps)


def until_converged(
    step: Callable[[Array], Array], state: Array, tolerance: float, max_steps: int
) -> tuple[Array, Array]:
    """Repeat `step` until no entry of an example changes by more than `tolerance`, at most `max_steps` times.

    state: [B, ...] or a scalar; an example that has converged stays as it is, so that its answer does not depend on who
    else is in the batch. Returns the state and the largest number of rounds that one took, int32. Not differentiable
    in reverse (a while loop).

    Raises:
      ValueError: tolerance < 0, max_steps < 0.

    >>> state, count = until_converged(lambda x: x / 2, jnp.array([1.0, 0.25]), tolerance=0.1, max_steps=50)
    >>> state.tolist(), count.tolist()
    ([0.0625, 0.0625], 4)
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    check_rounds(max_steps)

    def goes_on(carry: tuple[Array, Array, Array]) -> Array:
        _, count, moving = carry
        return (count < max_steps) & jnp.any(moving)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, count, moving = carry
        new = step(old)
        new = jnp.where(moving.reshape(moving.shape + (1,) * (old.ndim - moving.ndim)), new, old)
        change = jnp.max(jnp.abs(new - old), axis=tuple(range(1, old.ndim)))
        return new, count + 1, change > tolerance

    start = (state, jnp.zeros((), jnp.int32), jnp.ones(state.shape[:1], bool))
    final, count, _ = jax.lax.while_loop(goes_on, body, start)
    return final, count
