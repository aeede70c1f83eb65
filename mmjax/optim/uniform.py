"""Uniform: the plain sum of all objectives, the control of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.optim.gradients import check_like_params, count_objectives, weighted_sum
from mmjax.optim.options import check_active, check_num_objectives
from mmjax.optim.promises import Promise
from mmjax.optim.record import WeightRecord, empty_record, recorded


class UniformState(NamedTuple):
    """State of `uniform`.

    >>> import jax.numpy as jnp
    >>> from mmjax.optim import uniform
    >>> tx, params = uniform(), {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.eye(2)}
    >>> _, state = tx.update(grads, tx.init(params), params, values=jnp.array([0.5, 0.25]))
    >>> state.weights.tolist()
    [1.0, 1.0]
    """

    record: WeightRecord

    @property
    def weights(self) -> Array:
        """The last weights used, [K]."""
        return self.record.weights


def uniform(*, num_objectives: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Sum the gradients of all objectives, Σ_k g_k: the strongest simple baseline. One backward pass.

    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra argument of update: `active` bool[K]; an inactive objective weighs nothing.

    Raises:
      ValueError: gradients that are not one an objective, or `active` of the wrong length.

    >>> import optax
    >>> tx = optax.chain(uniform(), optax.sgd(0.1))
    >>> params = {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.array([[1.0, 0.0], [0.0, 2.0]])}  # [K, 2]: two objectives
    >>> updates, state = tx.update(grads, tx.init(params), params)
    >>> [round(float(u), 6) for u in updates["w"]], state[0].weights.tolist()
    ([-0.1, -0.2], [1.0, 1.0])
    """
    check_num_objectives(num_objectives)

    def init(params: Any) -> UniformState:
        del params
        return UniformState(empty_record(num_objectives))

    def update(
        grads: Any, state: UniformState, params: Any = None, *, active: Any = None, **extra_args: Any
    ) -> tuple[Any, UniformState]:
        del extra_args
        check_like_params(grads, params)
        k = count_objectives(grads)
        active = check_active(active, k)
        weights = jnp.ones(k, jnp.float32) if active is None else active.astype(jnp.float32)
        return weighted_sum(grads, weights, active), UniformState(recorded(state.record, weights))

    return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True, kw_only=True)
class UniformConfig(MethodConfig):
    """Plain sum of the fusion loss and every uni-modal loss: the control.

    Example:
    >>> UniformConfig().backward_passes
    '1'
    """

    name: str = "uniform"

    source: ClassVar[str] = "the strongest simple baseline"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {
            Promise.IDENTITY_FOR_ONE,
            Promise.PERMUTATION_EQUIVARIANT,
            Promise.UNIFORM_WHEN_BALANCED,
            Promise.LINEAR_UNDER_SCALING,
        }
    )

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `uniform` for the context's objectives."""
        return uniform(num_objectives=len(context.names))
