"""Methods that weigh by numbers and never look at gradients: their common form, and what they remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.optim.gradients import check_like_params, count_objectives, weighted_sum
from mmjax.optim.options import SCALES, Scale, check_active, check_choice, check_num_objectives, check_values
from mmjax.optim.record import WeightRecord, check_room, empty_record, recorded, room_for

PyTree = Any


@dataclass(frozen=True)
class Observed:
    """What one step tells a weighing rule.

    values: float32 [K], the losses, 1 where not `seen`, which is harmless in a logarithm and a quotient; active: bool
    [K]; seen: bool [K], active and of a finite loss: what may be learned from. extra: the other extra arguments.
    """

    values: Array
    active: Array
    seen: Array
    extra: Mapping[str, Any]


Weigh = Callable[[PyTree, Observed], tuple[Array, PyTree]]
"""(memory, observed) -> (weights [K], memory). Weights of inactive objectives are ignored."""


class WeighingState(NamedTuple):
    """State of a weighing method. memory: what it remembers, one entry an objective in front, scalars apart.

    >>> import jax.numpy as jnp
    >>> from mmjax.optim import stch
    >>> tx, params = stch(smoothing=1.0), {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.eye(2)}
    >>> _, state = tx.update(grads, tx.init(params), params, values=jnp.array([0.5, 0.25]))
    >>> round(float(state.weights.sum()), 5)
    1.0
    """

    memory: PyTree
    record: WeightRecord

    @property
    def weights(self) -> Array:
        """The last weights used, [K]."""
        return self.record.weights


def weighing_method(
    method: str,
    weigh: Weigh,
    *,
    remember: Callable[[int], PyTree] = lambda room: (),
    scale: Scale = "mean",
    needs_values: bool = True,
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Turn a rule for weights into a combiner: Σ_k w_k g_k in one backward pass.

    method: its name, for errors. remember: number of objectives to make room for -> memory before the first step; a
    leaf is a scalar or [room, ...], and the rule sees [K, ...]. scale: "mean" for weights as the rule gives them, "sum"
    for these times the number of active objectives; a rule whose weights sum to K already says "mean".
    needs_values: whether an update without `values` is an error.

    An inactive objective weighs 0. With a loss that is not finite among the active ones the weights are those of the
    plain sum, so that it reaches the update unhidden and never turns into a weight.
    """
    check_num_objectives(num_objectives)
    check_choice("scale", scale, SCALES)

    def init(params: Any) -> WeighingState:
        del params
        # A buffer for every leaf, also where a rule names one array twice: a training step that is given its state's
        # memory (donation) can be given each buffer once.
        memory = jax.tree.map(jnp.copy, remember(room_for(num_objectives)))
        return WeighingState(memory, empty_record(num_objectives))

    def update(
        grads: Any,
        state: WeighingState,
        params: Any = None,
        *,
        values: Any = None,
        active: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, WeighingState]:
        check_like_params(grads, params)
        k = count_objectives(grads)
        check_room(state.record, k)
        active = check_active(active, k)
        here = jnp.ones(k, bool) if active is None else active
        losses = jnp.ones(k) if values is None and not needs_values else check_values(values, k, method)
        seen = here & jnp.isfinite(losses)
        observed = Observed(jnp.where(seen, losses, 1.0), here, seen, extra_args)
        weights, memory = weigh(_front(state.memory, k), observed)
        if scale == "sum":
            weights = weights * jnp.sum(here)
        weights = jnp.where(jnp.all(seen == here), weights, 1.0)
        weights = jnp.where(here, weights, 0.0)
        new_state = WeighingState(_with_front(state.memory, memory), recorded(state.record, weights))
        return weighted_sum(grads, weights, active), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _front(memory: PyTree, k: int) -> PyTree:
    return jax.tree.map(lambda x: x[:k] if jnp.ndim(x) else x, memory)


def _with_front(memory: PyTree, front: PyTree) -> PyTree:
    def put(old: Array, new: Array) -> Array:
        return old.at[: new.shape[0]].set(new) if jnp.ndim(old) else new

    return jax.tree.map(put, memory, front)


class RunningMean(NamedTuple):
    """Sum and count of what was seen of each objective. total: float32 [K]; count: int32 [K]."""

    total: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count, as in Optax's own states

    @property
    def mean(self) -> Array:
        """The mean, [K]; 0 where nothing was seen."""
        return self.total / jnp.maximum(self.count, 1)

    def with_values(self, observed: Observed) -> RunningMean:
        """Add the losses of one step, where seen."""
        return RunningMean(self.total + jnp.where(observed.seen, observed.values, 0.0), self.count + observed.seen)

    def cleared(self, when: Array) -> RunningMean:
        """Return the empty mean where `when` (bool scalar), else this one."""
        return RunningMean(jnp.where(when, 0.0, self.total), jnp.where(when, 0, self.count))


def nothing_seen(room: int) -> RunningMean:
    """Return the mean of nothing, for so many objectives."""
    return RunningMean(jnp.zeros(room, jnp.float32), jnp.zeros(room, jnp.int32))


_ADAM = optax.scale_by_adam()  # Optax's defaults: .9, .999, 1e-8


def adam_memory(room: int) -> optax.ScaleByAdamState:
    """Return Adam's memory before the first step, for one number an objective, each with a step count of its own."""
    return jax.vmap(_ADAM.init)(jnp.zeros(room, jnp.float32))


def adam_direction(
    memory: optax.ScaleByAdamState, gradient: Array, moves: Array
) -> tuple[Array, optax.ScaleByAdamState]:
    """Return Adam's direction [K] for numbers with this gradient; where not `moves`, 0 and the memory as it was.

    The number of an objective that is absent thus stands still, its moments and its step count too.
    """
    direction, new = jax.vmap(_ADAM.update)(gradient, memory)
    kept = jax.tree.map(lambda n, o: jnp.where(moves, n, o), new, memory)
    return jnp.where(moves, direction, 0.0), kept


def masked_softmax(logits: Array, mask: Array) -> Array:
    """Return the softmax over where `mask`, 0 elsewhere; all 0 where nothing is.

    >>> masked_softmax(jnp.array([1.0, 1.0, 9.0]), jnp.array([True, True, False])).tolist()
    [0.5, 0.5, 0.0]
    """
    top = jnp.max(logits, where=mask, initial=-jnp.inf)
    exponentials = jnp.exp(jnp.where(mask, logits - top, -jnp.inf))
    exponentials = jnp.where(mask, exponentials, 0.0)
    total = jnp.sum(exponentials)
    return exponentials / jnp.where(total > 0, total, 1.0)
