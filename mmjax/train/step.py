"""The pure functions of a run: one training step, the gradients' geometry, the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.data import Batch, Task
from mmjax.losses import example_losses, weighted_mean
from mmjax.models.heads import LastLayer
from mmjax.models.multimodal import Outputs, parameter_groups
from mmjax.objectives import ObjectiveGrads, objective_grads
from mmjax.optim.geometry import gradient_geometry
from mmjax.train.state import TrainState

PyTree = Any


@dataclass(frozen=True)
class Inference:
    """What it takes to predict, besides the variables.

    model: maps inputs {modality: [B, ...]} to `Outputs`: a `MultiModal`, or a module of another family that does so.
    preprocess: {modality: pure function of a batch}, run inside the compiled programs; none: unchanged.
    """

    model: nn.Module
    task: Task
    preprocess: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What it takes to train, besides the state.

    tx: optax.chain(combiner, ...). class_weights: one a class, or None. axis_name: the devices' axis under pmap; None
    under jit.
    """

    inference: Inference
    tx: optax.GradientTransformationExtraArgs
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    axis_name: str | None = None


class StepMetrics(NamedTuple):
    """What a step tells: values [K], the losses; weights [K], what the combiner made of them."""

    values: Array
    weights: Array


@flax.struct.dataclass
class _HeadAux:
    """What comes out of the losses besides them."""

    outputs: Outputs
    model_state: PyTree

    @property
    def last_layer(self) -> dict[str, LastLayer]:
        """For FeatureGrads.from_last_layer."""
        return self.outputs.last_layer


def prepare(inference: Inference, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Apply each modality's device-side preprocessing."""
    return {m: inference.preprocess[m](x) if m in inference.preprocess else x for m, x in inputs.items()}


def forward(inference: Inference, variables: PyTree, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the logits of every expert, {"fusion": [B, C], modality: [B, C]}, in evaluation mode.

    variables: {"params": ..., and the model's other collections}.
    """
    outputs = cast(Outputs, inference.model.apply(variables, prepare(inference, inputs)))
    return outputs.by_objective


def _weight(training: Training, batch: Batch) -> Array:
    if training.class_weights is None:
        return batch.weight
    return batch.weight * jnp.asarray(training.class_weights)[batch.label]


def _gradients(training: Training, state: TrainState, batch: Batch) -> tuple[Array, ObjectiveGrads, Outputs, PyTree]:
    rngs = {"dropout": jax.random.fold_in(state.key, state.step)}
    mutable = list(state.model_state)
    inference = training.inference
    inputs = prepare(inference, batch.inputs)

    def apply(params: PyTree, value: PyTree, method: str) -> tuple[Any, PyTree]:
        variables = {"params": params, **state.model_state}
        return inference.model.apply(variables, value, train=True, method=method, rngs=rngs, mutable=mutable)

    def encode(params: PyTree, batch: Batch) -> tuple[dict[str, Array], PyTree]:
        return apply(params, inputs, "encode")

    def losses_fn(params: PyTree, features: dict[str, Array], batch: Batch) -> tuple[dict[str, Array], _HeadAux]:
        outputs, model_state = apply(params, features, "decide")
        weight = _weight(training, batch)
        losses = {
            name: weighted_mean(
                example_losses(inference.task, logits, batch.label, label_smoothing=training.label_smoothing),
                weight,
                training.axis_name,
            )
            for name, logits in outputs.by_objective.items()
        }
        return losses, _HeadAux(outputs, model_state)

    compute = objective_grads(losses_fn, encode=encode, has_aux=True, batch_argnums=1, axis_name=training.axis_name)
    values, grads, (encoded_state, aux) = compute(state.params, batch)
    return values, grads, aux.outputs, _merge(encoded_state, aux.model_state)


def _merge(encoded: PyTree, decided: PyTree) -> PyTree:
    """Take each module's statistics from the pass that ran it: the encoders' from encoding, the rest from deciding."""
    return {
        collection: {name: (encoded if name.startswith("encoders_") else decided)[collection][name] for name in modules}
        for collection, modules in decided.items()
    }


def train_step(training: Training, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
    """Take one step: losses, per-objective gradients, combiner and optimizer, new parameters and statistics."""
    values, grads, outputs, model_state = _gradients(training, state, batch)
    updates, opt_state = training.tx.update(
        grads,
        state.opt_state,
        state.params,
        values=values,
        groups=parameter_groups(state.params),
        labels=batch.label,
        unimodal_logits=outputs.unimodal_logits,
        last_layer=outputs.last_layer,
        key=jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1),
    )
    finite = jnp.append(jnp.isfinite(values), _all_finite(updates))
    new_state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        model_state=model_state,
        opt_state=opt_state,
        first_bad=jnp.where((state.first_bad < 0) & ~finite, state.step, state.first_bad),
    )
    return new_state, StepMetrics(values, opt_state[0].weights)


def _all_finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def measure_gradients(training: Training, state: TrainState, batch: Batch) -> dict[str, Array]:
    """Return norms and cosines of the objectives' gradients at this state and batch; see `gradient_geometry`."""
    _, grads, _, _ = _gradients(training, state, batch)
    return gradient_geometry(grads)
