"""Uncertainty weighting: every loss divided by a variance that is learned beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.optim.options import check_positive
from mmjax.optim.promises import Promise
from mmjax.optim.weighing import Observed, adam_direction, adam_memory, weighing_method


class UncertaintyMemory(NamedTuple):
    """What `uncertainty` learns: log_variance s [K]; adam: its optimizer's memory."""

    log_variance: Array
    adam: optax.ScaleByAdamState


def uncertainty(
    learning_rate: float = 0.01, *, num_objectives: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Descend Σ_k ½ e^{−s_k} L_k + ½ s_k over the parameters and the log-variances s. One backward pass.

    The weights are ½ e^{−s_k}: ½ each at the start, since s starts at 0. After each step Adam, with a step size of its
    own, moves s along the loss's gradient ½ − ½ e^{−s_k} L_k, from the same values that the step was taken on. Where s
    has settled a weight is 1/(2 L_k): a small loss weighs much.

    learning_rate: Adam's step size on s, > 0.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `values` [K], the losses, required; `active` bool[K]: s of an absent objective stands.

    Raises:
      ValueError: learning_rate not above 0, `values` missing or of the wrong length, gradients that are not one an
        objective.

    Source: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses" (2018), with s = log σ² and
    their factor ½ for every loss; the optimizer of s is ours (there it is the network's).

    >>> tx = uncertainty(0.1)
    >>> params = {"w": jnp.zeros(1)}
    >>> grads = {"w": jnp.array([[1.0], [10.0]])}
    >>> updates, state = tx.update(grads, tx.init(params), params, values=jnp.array([0.5, 2.0]))
    >>> updates["w"].tolist(), [round(float(s), 3) for s in state.memory.log_variance[:2]]
    ([5.5], [-0.1, 0.1])
    """
    check_positive("learning_rate", learning_rate)

    def remember(room: int) -> UncertaintyMemory:
        return UncertaintyMemory(jnp.zeros(room, jnp.float32), adam_memory(room))

    def weigh(memory: UncertaintyMemory, observed: Observed) -> tuple[Array, UncertaintyMemory]:
        weights = 0.5 * jnp.exp(-memory.log_variance)
        gradient = 0.5 - weights * observed.values
        direction, adam = adam_direction(memory.adam, gradient, observed.seen)
        return weights, UncertaintyMemory(memory.log_variance - learning_rate * direction, adam)

    return weighing_method("uncertainty", weigh, remember=remember, num_objectives=num_objectives)


@dataclass(frozen=True, kw_only=True)
class UncertaintyConfig(MethodConfig):
    """Every loss divided by a variance that is learned beside it.

    Example:
    >>> UncertaintyConfig().name
    'uncertainty'
    """

    name: str = "uncertainty"
    learning_rate: float = 0.01
    """Step size of Adam on the log-variances, > 0."""

    source: ClassVar[str] = "Kendall et al., Multi-Task Learning Using Uncertainty to Weigh Losses, 2018"
    reading: ClassVar[Literal["paper", "our reading"]] = "our reading"
    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.PERMUTATION_EQUIVARIANT, Promise.LINEAR_UNDER_SCALING})

    def validate(self) -> None:
        """Raise ValueError for a step size not above 0."""
        check_positive("method.learning_rate", self.learning_rate)

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `uncertainty` for the context's objectives."""
        return uncertainty(self.learning_rate, num_objectives=len(context.names))
