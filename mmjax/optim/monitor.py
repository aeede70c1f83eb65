"""A combiner that is watched: its weights and losses at every step, the gradients' geometry at some."""

from __future__ import annotations

import numbers
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.conditions import any_run
from mmjax.optim.geometry import geometry_of, without_inactive
from mmjax.optim.gradients import count_objectives
from mmjax.optim.options import check_active, check_num_objectives, check_values
from mmjax.optim.record import CAPACITY, WeightRecord, empty_record, recorded

PyTree = Any


class MonitorState(NamedTuple):
    """State of `monitor`. inner: the combiner's; count: steps taken; measurements: steps measured (int32 scalars).

    The padded arrays hold K entries (or K x K), and NaN (0 for conflicts) up to 16 where `num_objectives` was not given;
    the properties cut them to K outside a trace.

    >>> import jax.numpy as jnp
    >>> from mmjax.optim import monitor, uniform
    >>> tx, params = monitor(uniform(), every=1), {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.eye(2)}
    >>> _, state = tx.update(grads, tx.init(params), params, values=jnp.array([0.5, 0.25]))
    >>> state.norms.tolist(), state.values.tolist()
    ([1.0, 1.0], [0.5, 0.25])
    """

    inner: PyTree
    count: Array  # type: ignore[assignment]  # hides tuple.count, as in Optax's own states
    measurements: Array
    record: WeightRecord
    padded_values: Array
    padded_norms: Array
    padded_cosines: Array
    padded_conflicts: Array

    @property
    def weights(self) -> Array:
        """The last weights used, [K]; NaN for a combiner whose state has none."""
        return self.record.weights

    @property
    def values(self) -> Array:
        """The last losses, [K]; NaN where none came, and for inactive objectives."""
        return self._cut(self.padded_values, 1)

    @property
    def diagnostics(self) -> dict[str, Array]:
        """The combiner's own, {name: scalar}; empty for one that has none."""
        return getattr(self.inner, "diagnostics", {})

    @property
    def norms(self) -> Array:
        """Length of each objective's gradient at the last measurement, [K]; NaN before, and for inactive ones."""
        return self._cut(self.padded_norms, 1)

    @property
    def cosines(self) -> Array:
        """Cosines between the gradients last measured, [K, K]; NaN as for norms, and for two that share no parameter."""
        return self._cut(self.padded_cosines, 2)

    @property
    def conflicts(self) -> Array:
        """How many measurements found two gradients at an angle above 90 degrees, int32 [K, K]."""
        return self._cut(self.padded_conflicts, 2)

    def _cut(self, padded: Array, axes: int) -> Array:
        k = self.weights.shape[-1]
        return padded[(..., *[slice(k)] * axes)]


def monitor(
    combiner: optax.GradientTransformation, every: int = 0, *, num_objectives: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Pass everything on to `combiner`, and keep in the state what it did: for any training loop.

    At every step: the weights and the losses (extra argument `values`), free of charge. At every `every`-th step, the first
    included: norms, cosines and conflicts of the objectives' gradients, at the cost of two encoder backwards (lazy
    gradients) or of some products (stacked ones); 0: never. Steps in between pay nothing for it; under `vmap`, steps at
    which no run measures.

    combiner: any, lazy or stacked, with extra arguments or without. every: static. num_objectives: K, for a state of
    exactly K entries (needed above 16 objectives). Extra arguments of update: the combiner's; `values`, `active`,
    `touching` are used here, too.

    Raises:
      ValueError: `every` or `num_objectives` out of range, or gradients that are not one an objective.

    >>> from mmjax.optim import uniform
    >>> tx = optax.chain(monitor(uniform(), every=10), optax.sgd(0.1))
    >>> params = {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.array([[3.0, 4.0], [-1.0, 0.0]])}
    >>> updates, state = tx.update(grads, tx.init(params), params, values=jnp.array([0.5, 0.25]))
    >>> watched = state[0]
    >>> watched.weights.tolist(), watched.values.tolist(), watched.norms.tolist()
    ([1.0, 1.0], [0.5, 0.25], [5.0, 1.0])
    >>> round(float(watched.cosines[0, 1]), 3), watched.conflicts.tolist()
    (-0.6, [[0, 1], [1, 0]])
    """
    if not isinstance(every, numbers.Integral) or every < 0:
        raise ValueError(f"every must be an integer >= 0 (0: never measure), got {every!r}")
    check_num_objectives(num_objectives)
    inner = optax.with_extra_args_support(combiner)
    size = CAPACITY if num_objectives is None else num_objectives

    def init(params: PyTree) -> MonitorState:
        return MonitorState(
            inner=inner.init(params),
            count=jnp.zeros((), jnp.int32),
            measurements=jnp.zeros((), jnp.int32),
            record=empty_record(num_objectives),
            padded_values=jnp.full(size, jnp.nan, jnp.float32),
            padded_norms=jnp.full(size, jnp.nan, jnp.float32),
            padded_cosines=jnp.full((size, size), jnp.nan, jnp.float32),
            padded_conflicts=jnp.zeros((size, size), jnp.int32),
        )

    def update(
        grads: Any, state: MonitorState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, MonitorState]:
        updates, inner_state = inner.update(grads, state.inner, params, **extra_args)
        k = count_objectives(grads)
        weights = getattr(inner_state, "weights", None)
        values, active = extra_args.get("values"), check_active(extra_args.get("active"), k)
        losses = jnp.full(k, jnp.nan) if values is None else check_values(values, k, "monitor")
        state = state._replace(
            inner=inner_state,
            record=recorded(state.record, jnp.full(k, jnp.nan) if weights is None else weights[:k]),
            padded_values=_padded(losses if active is None else jnp.where(active, losses, jnp.nan), size),
        )
        if every:
            due = state.count % every == 0

            def measured(state: MonitorState) -> MonitorState:
                # Lazy gradients are asked for in here, inside the branch: a step that does not measure computes none.
                norms, cosines = without_inactive(geometry_of(grads, extra_args.get("touching")), active)
                return state._replace(
                    measurements=optax.safe_increment(state.measurements),
                    padded_norms=_padded(norms, size),
                    padded_cosines=_padded(cosines, size),
                    padded_conflicts=state.padded_conflicts.at[:k, :k].add(cosines < 0),
                )

            def measured_where_due(state: MonitorState) -> MonitorState:
                # under vmap it may be another's turn
                return jax.tree.map(partial(jnp.where, due), measured(state), state)

            if every == 1:  # no branch: on a CPU what is inside one runs on one thread
                state = measured(state)
            else:
                state = jax.lax.cond(any_run(due), measured_where_due, lambda state: state, state)
        return updates, state._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _padded(entries: Array, size: int) -> Array:
    """Return float32 entries with every axis filled up to `size` by NaN."""
    room = [(0, size - length) for length in entries.shape]
    return jnp.pad(entries.astype(jnp.float32), room, constant_values=jnp.nan)
