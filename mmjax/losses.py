"""Losses of the three tasks, per example and as one weighted mean over the whole batch, on any number of devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.data.dataset import Task


def example_losses(task: Task, logits: Array, label: Array, *, label_smoothing: float = 0.0) -> Array:
    """Return the loss of each example, [B], in float32 at least.

    classification: cross-entropy of logits [B, C] against label int [B], in nats, with `label_smoothing` of the mass
    spread over all classes; multilabel: mean over labels of the Bernoulli cross-entropy, label [B, L] of 0 and 1;
    regression: half the squared error, summed over outputs, label [B, L].

    >>> task = Task("classification", 2)
    >>> example_losses(task, jnp.array([[0.0, 0.0]]), jnp.array([1])).tolist()
    [0.6931471824645996]
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if task.kind == "classification":
        targets = jax.nn.one_hot(label, task.num_outputs, dtype=logits.dtype)
        targets = (1 - label_smoothing) * targets + label_smoothing / task.num_outputs
        return optax.softmax_cross_entropy(logits, targets)
    label = label.astype(logits.dtype)
    if task.kind == "multilabel":
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, label), axis=-1)
    return 0.5 * jnp.sum((logits - label) ** 2, axis=-1)


def weighted_mean(losses: Array, weight: Array, axis_name: str | None = None, *, here: Array | None = None) -> Array:
    """Return Σ w l / Σ w over the whole batch, as each device's share of it.

    losses, weight: [B]. here: bool [B], the examples that count, whatever the others' losses are; None: all. Where none
    does the mean is 0. Under `axis_name` the result is this device's term, scaled so that the mean over devices is the
    mean over the global batch (its weights, and who counts, may be spread unevenly).

    >>> losses = jnp.array([1.0, 3.0, jnp.nan])
    >>> float(weighted_mean(losses, jnp.ones(3), here=jnp.array([True, True, False])))
    2.0
    """
    if here is not None:
        losses, weight = jnp.where(here, losses, 0), jnp.where(here, weight, 0)
    total = jnp.sum(weight * losses)
    mass = jnp.sum(weight)
    if axis_name is not None:
        mass = jax.lax.pmean(mass, axis_name)
    if here is not None:
        mass = jnp.where(mass > 0, mass, 1)
    return total / mass
