"""FAMO: weights that make all losses fall at one rate, learned from how fast each fell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.optim.options import SCALES, Scale, check_at_least, check_choice, check_positive
from mmjax.optim.promises import Promise
from mmjax.optim.weighing import Observed, adam_direction, adam_memory, masked_softmax, weighing_method

LOSS_FLOOR = 1e-8
"""Losses count as no smaller than this (the authors' constant): the method divides by them and takes their logarithm."""


class FamoMemory(NamedTuple):
    """What `famo` learns and remembers.

    logits: ξ [K]; adam: its optimizer's memory; log_values: log L [K] at the last call; seen: bool [K], which of them
    there are.
    """

    logits: Array
    adam: optax.ScaleByAdamState
    log_values: Array
    seen: Array


def famo(
    learning_rate: float = 0.025,
    decay: float = 1e-3,
    *,
    scale: Scale = "mean",
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Make all losses fall at one rate: w_k = (z_k/L_k) / Σ_j z_j/L_j, z = softmax(ξ), ξ learned. One backward pass.

    ξ starts at 0. With δ_k = log L_k before a step − log L_k after it, Adam moves ξ against (diag z − z zᵀ) δ + decay·ξ:
    what fell fast loses weight. L after the step is here what the next call brings, on the next batch, so that no
    further forward pass is needed; ξ moves at the beginning of that call.

    learning_rate: Adam's step size on ξ, > 0. decay: >= 0, pulls ξ back to 0.
    scale: "sum" multiplies the weights by K, so that they sum to K as those of `uniform`.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `values` [K], the losses, required; `active` bool[K]: ξ of an objective that was not there
      in this call and in the last one stands, and z there runs over the others.

    Raises:
      ValueError: an option out of range, `values` missing or of the wrong length, gradients that are not one an
        objective.

    Source: Liu et al., "FAMO: Fast Adaptive Multitask Optimization" (2023), with the defaults of the
    authors' code; the losses after the step on the next batch in place of the same one are our reading.

    >>> tx = famo()
    >>> params = {"w": jnp.zeros(1)}
    >>> grads = {"w": jnp.array([[1.0], [10.0]])}
    >>> updates, state = tx.update(grads, tx.init(params), params, values=jnp.array([3.0, 1.0]))
    >>> [round(float(w), 3) for w in state.weights]  # log-losses weigh alike at first: 1/L
    [0.25, 0.75]
    >>> _, state = tx.update(grads, state, params, values=jnp.array([3.0, 0.5]))
    >>> [round(float(x), 3) for x in state.memory.logits[:2]]  # the second fell faster
    [0.025, -0.025]
    """
    check_positive("learning_rate", learning_rate)
    check_at_least("decay", decay, 0)

    def remember(room: int) -> FamoMemory:
        logits, log_values = jnp.zeros((2, room), jnp.float32)  # two arrays: one cannot be donated twice
        return FamoMemory(logits, adam_memory(room), log_values, jnp.zeros(room, bool))

    def weigh(memory: FamoMemory, observed: Observed) -> tuple[Array, FamoMemory]:
        values = jnp.maximum(observed.values, LOSS_FLOOR)
        log_values = jnp.log(values)
        compared = memory.seen & observed.seen
        fell = jnp.where(compared, memory.log_values - log_values, 0.0)
        z = masked_softmax(memory.logits, compared)
        gradient = z * (fell - jnp.sum(z * fell)) + decay * memory.logits
        direction, adam = adam_direction(memory.adam, gradient, compared)
        logits = memory.logits - learning_rate * direction
        # z_k/L_k in logarithms: L may be as small as its floor
        weights = masked_softmax(logits - log_values, observed.active)
        kept = jnp.where(observed.seen, log_values, 0.0)
        return weights, FamoMemory(logits, adam, kept, observed.seen)

    return weighing_method("famo", weigh, remember=remember, scale=scale, num_objectives=num_objectives)


@dataclass(frozen=True, kw_only=True)
class FamoConfig(MethodConfig):
    """All losses are to fall at one rate: the weights are learned from how fast each fell.

    Example:
    >>> FamoConfig().name
    'famo'
    """

    name: str = "famo"
    learning_rate: float = 0.025
    """Step size of Adam on the weights' logits, > 0."""
    decay: float = 1e-3
    """Pull of the logits back to 0, >= 0."""
    scale: Scale = "mean"
    """sum: weights sum to K, as in uniform; mean: to 1."""

    source: ClassVar[str] = "Liu et al., FAMO: Fast Adaptive Multitask Optimization, 2023"
    reading: ClassVar[Literal["paper", "our reading"]] = "our reading"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {
            Promise.IDENTITY_FOR_ONE,
            Promise.PERMUTATION_EQUIVARIANT,
            Promise.UNIFORM_WHEN_BALANCED,  # with scale="sum"
            Promise.LINEAR_UNDER_SCALING,
        }
    )

    def validate(self) -> None:
        """Raise ValueError for an option out of range."""
        check_positive("method.learning_rate", self.learning_rate)
        check_at_least("method.decay", self.decay, 0)
        check_choice("method.scale", self.scale, SCALES)

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `famo` for the context's objectives."""
        return famo(self.learning_rate, self.decay, scale=self.scale, num_objectives=len(context.names))
