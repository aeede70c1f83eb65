"""A linear classifier on given features, fitted to the bottom of its convex loss."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mmjax.data.dataset import Task
from mmjax.losses import example_losses


class Linear(NamedTuple):
    """logits = features @ kernel + bias; kernel: [D, C]; bias: [C]."""

    kernel: Array
    bias: Array


def fit_linear(
    features: Any, label: Any, task: Task, *, l2: float = 1e-4, max_steps: int = 200, tolerance: float = 1e-4
) -> Linear:
    """Return the linear classifier (multi-label: one a label; regression: least squares) of least training loss.

    features: [N, D]; label: [N] or [N, L]. The loss is the task's mean loss plus ½ l2 ‖kernel‖², minimised by L-BFGS
    until the gradient's norm is below `tolerance` or for `max_steps` steps.

    Raises:
      ValueError: lengths that differ, a negative l2.

    >>> features, label = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> kernel, bias = fit_linear(features, label, Task("classification", 2), l2=1e-3)
    >>> (features @ kernel + bias).argmax(axis=1).tolist()
    [0, 0, 1, 1]
    """
    if len(features) != len(label):
        raise ValueError(f"features and label differ in length: {len(features)} and {len(label)}")
    if l2 < 0:
        raise ValueError(f"l2 must be at least 0, got {l2}")
    return _fit(jnp.asarray(features, jnp.float32), jnp.asarray(label), task, l2, max_steps, tolerance)


@partial(jax.jit, static_argnames=("task", "max_steps"))
def _fit(features: Array, label: Array, task: Task, l2: float, max_steps: int, tolerance: float) -> Linear:
    # centred and scaled features make the loss rounder, which is what L-BFGS is fast on; the penalty is on the
    # kernel of the features as they are
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = jnp.where(scale > 0, scale, 1.0)

    def kernel_of(weights: Linear) -> Array:
        return weights.kernel / scale[:, None]

    def loss(weights: Linear) -> Array:
        logits = features @ kernel_of(weights) + (weights.bias - mean @ kernel_of(weights))
        return jnp.mean(example_losses(task, logits, label)) + 0.5 * l2 * jnp.sum(kernel_of(weights) ** 2)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)
    start = Linear(jnp.zeros((features.shape[1], task.num_outputs)), jnp.zeros(task.num_outputs))

    def goes_on(carry: tuple[Linear, Any, Array, Array]) -> Array:
        _, _, step, norm = carry
        return (step < max_steps) & (norm > tolerance)

    def advance(carry: tuple[Linear, Any, Array, Array]) -> tuple[Linear, Any, Array, Array]:
        weights, state, step, _ = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = solver.update(grad, state, weights, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(weights, updates), state, step + 1, optax.tree.norm(grad)

    begin = (start, solver.init(start), jnp.zeros((), jnp.int32), jnp.full((), np.inf))
    weights = jax.lax.while_loop(goes_on, advance, begin)[0]
    kernel = kernel_of(weights)
    return Linear(kernel, weights.bias - mean @ kernel)
