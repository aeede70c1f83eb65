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
    key: the run's key, constant (a step folds its number in); first_bad: int32 [K + 1], the step at which each
    objective's loss, or last the update, was first not finite, -1 as long as it never was; validation_values: float32
    [K], the objectives' losses on the validation split when it was last looked at, NaN before.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: Array
    first_bad: Array
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
        validation_values=jnp.full(num_objectives, jnp.nan, jnp.float32),
    )
