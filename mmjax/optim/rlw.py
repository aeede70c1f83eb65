"""RLW: random weights, another draw each step; the control of every method that computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.optim.options import SCALES, Scale, check_choice, check_key
from mmjax.optim.promises import Promise
from mmjax.optim.weighing import Observed, masked_softmax, weighing_method


def rlw(*, scale: Scale = "mean", num_objectives: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Weigh at random: w = softmax(N(0, I)), drawn anew each step. One backward pass.

    scale: "sum" multiplies the weights by K, so that they sum to K as those of `uniform`; in the mean over draws it is
      then `uniform`.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `key`, required; `active` bool[K]: the softmax runs over the active ones.

    Raises:
      ValueError: an unknown scale, `key` missing, gradients that are not one an objective.

    Source: Lin et al., "Reasonable Effectiveness of Random Weighting" (2022), with normal logits.

    >>> import jax.numpy as jnp
    >>> tx = rlw(scale="sum")
    >>> params = {"w": jnp.zeros(1)}
    >>> grads = {"w": jnp.array([[1.0], [1.0], [1.0]])}
    >>> updates, state = tx.update(grads, tx.init(params), params, key=jax.random.key(0))
    >>> round(float(updates["w"][0]), 5)
    3.0
    """

    def weigh(memory: Any, observed: Observed) -> tuple[Array, Any]:
        key = check_key(observed.extra.get("key"), "rlw")
        return masked_softmax(jax.random.normal(key, observed.values.shape), observed.active), memory

    return weighing_method("rlw", weigh, scale=scale, needs_values=False, num_objectives=num_objectives)


@dataclass(frozen=True, kw_only=True)
class RlwConfig(MethodConfig):
    """Random weights, drawn anew each step: what a method that computes them must beat.

    Example:
    >>> RlwConfig().name
    'rlw'
    """

    name: str = "rlw"
    scale: Scale = "mean"
    """sum: weights sum to K, as in uniform; mean: to 1."""

    source: ClassVar[str] = "Lin et al., Reasonable Effectiveness of Random Weighting, 2022"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {Promise.IDENTITY_FOR_ONE, Promise.PERMUTATION_EQUIVARIANT, Promise.LINEAR_UNDER_SCALING}
    )

    def validate(self) -> None:
        """Raise ValueError for an unknown scale."""
        check_choice("method.scale", self.scale, SCALES)

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `rlw` for the context's objectives."""
        return rlw(scale=self.scale, num_objectives=len(context.names))
