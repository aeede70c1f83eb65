"""Joint training: the fusion loss alone; uni-modal heads, if any, are probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.optim.gradients import check_like_params, count_objectives, touching_of, weighted_sum
from mmjax.optim.options import check_active, check_num_objectives
from mmjax.optim.promises import Promise
from mmjax.optim.record import WeightRecord, empty_record, recorded


class JointState(NamedTuple):
    """State of `joint`.

    >>> import jax.numpy as jnp
    >>> from mmjax.optim import joint
    >>> tx, params = joint(), {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.eye(2)}
    >>> _, state = tx.update(grads, tx.init(params), params, values=jnp.array([0.5, 0.25]))
    >>> state.weights.tolist()
    [1.0, 0.0]
    """

    record: WeightRecord

    @property
    def weights(self) -> Array:
        """The last weights used, [K]: 1 for the fusion loss, 0 for the others."""
        return self.record.weights


def joint(*, num_objectives: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Follow the fusion loss alone, g_0, on every parameter that it reaches. One backward pass.

    A parameter that the fusion loss does not reach (a uni-modal head) keeps the sum of the gradients of its own
    objectives. On features under stop_gradient such heads are probes: they measure each modality inside the joint
    model and steer nothing. Which leaves those are is static: from lazy gradients, or `touching`; for a bare stacked
    tree every objective reaches every leaf, and the result is g_0.

    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `touching`, a tree like params of bool[K]; `active` bool[K].

    Raises:
      ValueError: gradients that are not one an objective, or `active` of the wrong length.

    >>> tx = joint()
    >>> params = {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.array([[1.0, 0.0], [0.0, 2.0]])}
    >>> tx.update(grads, tx.init(params), params)[0]["w"].tolist()
    [1.0, 0.0]
    """
    check_num_objectives(num_objectives)

    def init(params: Any) -> JointState:
        del params
        return JointState(empty_record(num_objectives))

    def update(
        grads: Any,
        state: JointState,
        params: Any = None,
        *,
        touching: Any = None,
        active: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, JointState]:
        del extra_args
        check_like_params(grads, params)
        k = count_objectives(grads)
        active = check_active(active, k)
        here = jnp.ones(k, jnp.float32) if active is None else active.astype(jnp.float32)
        fusion = np.arange(k) == 0
        weights = here * fusion
        # Selected, not only weighted by 0: a uni-modal loss that diverges has no say in the fusion's gradient.
        updates = weighted_sum(grads, weights, fusion if active is None else fusion & active)
        touching = touching_of(grads, touching)
        if touching is not None:
            # The second sum is dead code, and compiled away, wherever the fusion loss reaches.
            rest = weighted_sum(grads, here - weights, ~fusion if active is None else ~fusion & active)
            updates = jax.tree.map(lambda u, r, t: u if bool(t[0]) else r, updates, rest, touching)
        return updates, JointState(recorded(state.record, weights))

    return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True, kw_only=True)
class JointConfig(MethodConfig):
    """The fusion loss alone; the uni-modal heads are probes on stop_gradient(features).

    Example:
    >>> JointConfig().probe_heads
    True
    """

    name: str = "joint"

    probe_heads: ClassVar[bool] = True
    source: ClassVar[str] = "the usual way to train a multi-modal model"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {Promise.IDENTITY_FOR_ONE, Promise.PERMUTATION_EQUIVARIANT, Promise.LINEAR_UNDER_SCALING}
    )

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `joint` for the context's objectives."""
        return joint(num_objectives=len(context.names))
