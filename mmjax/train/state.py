"""What a training run carries from step to step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

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
    each objective whose loss, and last for the combined gradient, if it was not finite there; otherwise -1; skipped: int32,
    how often something was not finite, at a step or in a method's pass; validation_values: float32 [K], the objectives'
    losses on the validation split when it was last looked at, NaN before.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: Array
    first_bad: Array
    skipped: Array
    validation_values: Array

    @property
    def variables(self) -> dict[str, PyTree]:
        """What the model is applied with: {"params": ..., and its other collections}."""
        return {"params": self.params, **self.model_state}


class Moved(NamedTuple):
    """What a step makes of a state."""

    params: PyTree
    model_state: PyTree
    opt_state: PyTree


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


def advanced(before: TrainState, sound: Array, gradient: PyTree, move: Callable[[], Moved], allowed: int) -> TrainState:
    """Return the state after a step; where a loss or the gradient is not finite, what the step found.

    sound: bool [K], whether each loss is finite, or does not count. gradient: what the optimizer is to act on. move: what
    the step makes of the state, asked for where all is finite. allowed: how many steps are skipped: what they found stays,
    and the next step follows. One more halts the run: from then on the state, its step included, stays what that step
    found, so that the loop can look at what went wrong. What the optimizer makes of a finite gradient is not looked at here.

    The move is a branch: a choice between two states after it would keep both, where the new one can take the old one's
    memory (docs/benchmarks.md has the figures, from a CPU).

    Raises:
      ValueError: arrays of the state that would change their shape or type, such as a method's own; they are named.
    """
    finite = jnp.append(sound, jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient)])))
    good, halted = jnp.all(finite), before.skipped > allowed

    def stay() -> Moved:
        return Moved(before.params, before.model_state, before.opt_state)

    _check_kept(stay(), jax.eval_shape(move))
    moved = jax.lax.cond(good & ~halted, move, stay)
    skipped = before.skipped + (~good & ~halted)
    halts = skipped > allowed
    return before.replace(
        step=jnp.where(halts, before.step, before.step + 1),
        params=moved.params,
        model_state=moved.model_state,
        opt_state=moved.opt_state,
        first_bad=jnp.where(halts & ~halted & ~finite, before.step, before.first_bad),
        skipped=skipped,
    )


def _check_kept(old: Moved, new: Moved) -> None:
    def layout(state: Moved) -> dict[str, str]:
        leaves = jax.tree.leaves_with_path(state)
        return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}

    before, after = layout(old), layout(new)
    for name in before | after:
        was, becomes = before.get(name, "nothing"), after.get(name, "nothing")
        if was != becomes:
            raise ValueError(
                f"a step must keep the shapes and types of its state: state{name} is {was}, would be {becomes}"
            )
