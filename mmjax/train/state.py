"""What a training run carries from step to step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes in training; a pytree of arrays, donated from step to step.

    step: int32, steps taken; params; model_state: collections besides params (running batch statistics); opt_state;
    key: the run's key, constant (a step folds its number in); first_bad: int32 [K + 1], the step that halted the run, for
    each objective whose loss, and last for the update, if it was not finite there; otherwise -1; skipped: int32, steps
    at which something was not finite; validation_values: float32 [K], the objectives' losses on the validation split when
    it was last looked at, NaN before.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: Array
    first_bad: Array
    skipped: Array
    validation_values: Array


def create_state(
    model: nn.Module,
    example: PyTree,
    tx: optax.GradientTransformation,
    num_objectives: int,
    seed: int,
    frozen: Collection[str] = (),
) -> TrainState:
    """Initialise parameters and optimizer. example: inputs {modality: [1, ...]} as the model sees them."""
    init_key, _ = jax.random.split(jax.random.key(seed))
    variables = model.init({"params": init_key}, example, train=False)
    return state_from(dict(variables), tx, num_objectives, seed, frozen)


def trained_params(params: Mapping[str, Any], frozen: Collection[str]) -> dict[str, Any]:
    """Return the parameters without the modules named in `frozen`.

    >>> trained_params({"encoders_a": 1, "fusion": 2}, ("fusion",))
    {'encoders_a': 1}
    """
    return {name: tree for name, tree in params.items() if name not in frozen}


def state_from(
    variables: Mapping[str, PyTree],
    tx: optax.GradientTransformation,
    num_objectives: int,
    seed: int,
    frozen: Collection[str] = (),
    step: int = 0,
) -> TrainState:
    """Return the state at the beginning of a stage, from these weights; the optimizer starts anew.

    frozen: modules (names in `params`) that the optimizer has nothing to do with.
    """
    others = dict(variables)
    params = others.pop("params")
    _, run_key = jax.random.split(jax.random.key(seed))
    return TrainState(
        step=jnp.full((), step, jnp.int32),
        params=params,
        model_state=others,
        opt_state=tx.init(trained_params(params, frozen)),
        key=run_key,
        first_bad=jnp.full(num_objectives + 1, -1, jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        validation_values=jnp.full(num_objectives, jnp.nan, jnp.float32),
    )


def settled(before: TrainState, after: TrainState, sound: Array, updates: PyTree, allowed: int) -> TrainState:
    """Return the state after a step, or what the step found, if a loss or the update is not finite.

    sound: bool [K], whether each loss is finite, or does not count. allowed: how many such steps are skipped; what they
    found stays, and the next step follows. One more halts the run: from then on the state, its step included, stays what
    that step found, so that the loop can look at what went wrong.
    """
    finite = jnp.append(sound, jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(updates)])))
    good, halted = jnp.all(finite), before.skipped > allowed
    skipped = jnp.where(halted, before.skipped, before.skipped + ~good)
    halts = skipped > allowed

    def chosen(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(good & ~halted, a, b), new, old)

    return after.replace(
        step=jnp.where(halts, before.step, after.step),
        params=chosen(after.params, before.params),
        model_state=chosen(after.model_state, before.model_state),
        opt_state=chosen(after.opt_state, before.opt_state),
        first_bad=jnp.where(halts & ~halted & ~finite, before.step, before.first_bad),
        skipped=skipped,
    )
