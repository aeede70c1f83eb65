"""The pure functions of a run: one training step, the gradients' geometry, the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.data import Batch, Task
from mmjax.lazy_gradients import ObjectiveGrads
from mmjax.losses import example_losses, weighted_mean
from mmjax.method import Forward, Rule, plain_losses
from mmjax.models.heads import LastLayer
from mmjax.models.multimodal import Outputs, parameter_groups
from mmjax.objectives import FUSION, objective_grads, objective_names
from mmjax.optim.geometry import Geometry, named_geometry
from mmjax.optim.monitor import MonitorState, monitor
from mmjax.train.modality_dropout import drop_modalities
from mmjax.train.state import Moved, TrainState, advanced, trained_params

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

    combiner: what balances the objectives. optimizer: what follows it. rule: the method's objectives. class_weights: one a
    class, or None. axis_name: the devices' axis under pmap; None under jit. modality_dropout: probability that an example
    loses a modality that it has. frozen: modules (names in `params`) that stay as they are. counted: the objectives that
    count, one flag each; None: all. skip_nonfinite: steps that may be skipped because something is not finite.
    """

    inference: Inference
    combiner: optax.GradientTransformation
    optimizer: optax.GradientTransformation
    rule: Rule = plain_losses
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    axis_name: str | None = None
    modality_dropout: float = 0.0
    frozen: tuple[str, ...] = ()
    counted: tuple[bool, ...] | None = None
    skip_nonfinite: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives, in their order."""
        return objective_names(cast(Any, self.inference.model).objectives)

    @property
    def tx(self) -> optax.GradientTransformationExtraArgs:
        """The combiner, watched, and the optimizer."""
        return optax.chain(self.watched(0), self.optimizer)

    def watched(self, every: int) -> optax.GradientTransformationExtraArgs:
        """Return the combiner under a monitor that measures the gradients at every `every`-th step; 0: never.

        Its state is the same, whatever `every`.
        """
        return monitor(self.combiner, every, num_objectives=len(self.names))


class StepMetrics(NamedTuple):
    """What a step tells: values [K], the losses, NaN where an objective did not count in this batch; weights [K]."""

    values: Array
    weights: Array


@flax.struct.dataclass
class _HeadAux:
    """What comes out of the losses besides them."""

    outputs: Outputs
    model_state: PyTree
    extra: dict[str, Any]

    @property
    def last_layer(self) -> dict[str, LastLayer]:
        """For FeatureGrads.from_last_layer."""
        return self.outputs.last_layer


def prepare(inference: Inference, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Apply each modality's device-side preprocessing."""
    return {m: inference.preprocess[m](x) if m in inference.preprocess else x for m, x in inputs.items()}


def outputs_of(
    inference: Inference, variables: PyTree, inputs: Mapping[str, Array], present: Array | None = None
) -> Outputs:
    """Return what the model says in evaluation mode.

    variables: {"params": ..., and the model's other collections}; present: bool [B, M], or None: everything is there.
    """
    given: dict[str, Any] = {} if present is None else {"present": present}  # not every family of models knows it
    return cast(Outputs, inference.model.apply(variables, prepare(inference, inputs), **given))


def forward(
    inference: Inference, variables: PyTree, inputs: Mapping[str, Array], present: Array | None = None
) -> dict[str, Array]:
    """Return the logits of every expert, {"fusion": [B, C], modality: [B, C]}, of `outputs_of`."""
    return outputs_of(inference, variables, inputs, present).by_objective


def _loss(training: Training, batch: Batch, here: Array | None, logits: Array) -> Array:
    """Return the run's loss of logits [B, C] over the examples that are `here`; under pmap this device's share of it."""
    weight = batch.weight
    if training.class_weights is not None:
        weight = weight * jnp.asarray(training.class_weights)[batch.label]
    losses = example_losses(training.inference.task, logits, batch.label, label_smoothing=training.label_smoothing)
    return weighted_mean(losses, weight, training.axis_name, here=here)


def _active(training: Training, batch: Batch, outputs: Outputs) -> Array | None:
    """Return bool [K], which objectives count and have an example in the global batch; None: all do, in every batch."""
    if outputs.present is None:
        return None if training.counted is None else jnp.asarray(training.counted)
    flags = []
    for name in objective_names(outputs.by_objective):
        here = outputs.here(name)
        flags.append(jnp.array(True) if here is None else jnp.any(here & (batch.weight > 0)))
    active = jnp.stack(flags)
    if training.axis_name is not None:
        active = jax.lax.pmax(active.astype(jnp.int32), training.axis_name) > 0
    return active if training.counted is None else active & jnp.asarray(training.counted)


def _with_dropout(training: Training, key: Array, batch: Batch) -> Batch:
    if not training.modality_dropout:
        return batch
    shape = (batch.label.shape[0], len(batch.inputs))
    return batch._replace(
        present=drop_modalities(batch.present, shape, training.modality_dropout, key, training.axis_name)
    )


def _gradients(training: Training, state: TrainState, batch: Batch) -> tuple[Array, ObjectiveGrads, _HeadAux, PyTree]:
    key = jax.random.fold_in(state.key, state.step)
    rngs = {"dropout": key}
    mutable = list(state.model_state)
    inference = training.inference
    frozen = {name: state.params[name] for name in training.frozen}

    def apply(params: PyTree, value: PyTree, present: Array | None, method: str) -> tuple[Any, PyTree]:
        variables = {"params": {**params, **frozen}, **state.model_state}
        given: dict[str, Any] = {} if present is None else {"present": present}
        return inference.model.apply(variables, value, train=True, method=method, rngs=rngs, mutable=mutable, **given)

    def encode(params: PyTree, batch: Batch) -> tuple[dict[str, Array], PyTree]:
        return apply(params, prepare(inference, batch.inputs), batch.present, "encode")

    def losses_fn(params: PyTree, features: dict[str, Array], batch: Batch) -> tuple[dict[str, Array], _HeadAux]:
        outputs, model_state = apply(params, features, batch.present, "decide")

        def loss(logits: Array, objective: str = FUSION) -> Array:
            return _loss(training, batch, outputs.here(objective), logits)

        forward = Forward(
            outputs=outputs,
            label=batch.label,
            decide=lambda features: apply(params, features, batch.present, "decide")[0],
            loss=loss,
            mean_over_devices=partial(_mean_over_devices, training.axis_name),
            state=state.opt_state[0].inner,
            key=jax.random.fold_in(key, 2),
            active=_active(training, batch, outputs),
        )
        losses, extra = training.rule(forward)
        if set(losses) != set(outputs.by_objective):
            raise ValueError(
                f"a method's objectives must be those of the model, {sorted(outputs.by_objective)}; its rule returned "
                f"{sorted(losses)}"
            )
        return losses, _HeadAux(outputs, model_state, extra)

    compute = objective_grads(losses_fn, encode=encode, has_aux=True, batch_argnums=1, axis_name=training.axis_name)
    values, grads, (encoded_state, aux) = compute(trained_params(state.params, training.frozen), batch)
    merged = _merge(encoded_state, aux.model_state)
    return values, grads, aux, _with_frozen(merged, state.model_state, training.frozen)


def _mean_over_devices(axis_name: str | None, tree: PyTree) -> PyTree:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _merge(encoded: PyTree, decided: PyTree) -> PyTree:
    """Take each module's statistics from the pass that ran it: the encoders' from encoding, the rest from deciding."""
    return {
        collection: {name: (encoded if name.startswith("encoders_") else decided)[collection][name] for name in modules}
        for collection, modules in decided.items()
    }


def _with_frozen(new: PyTree, old: PyTree, frozen: tuple[str, ...]) -> PyTree:
    """Return the new statistics, and the old ones of frozen modules."""
    return {
        collection: {name: (old if name in frozen else new)[collection][name] for name in modules}
        for collection, modules in new.items()
    }


class _Combined(NamedTuple):
    """A step up to the combiner: whose loss is finite or does not count [K]; the gradient; what comes beside it."""

    sound: Array
    gradient: PyTree
    watched: MonitorState
    model_state: PyTree
    extra: dict[str, Any]


def _combined(training: Training, state: TrainState, batch: Batch, monitor_every: int) -> _Combined:
    batch = _with_dropout(training, _dropout_key(state), batch)
    values, grads, aux, model_state = _gradients(training, state, batch)
    outputs = aux.outputs
    missing: dict[str, Any] = {}
    logit_loss: Any = partial(_loss, training, batch, None)
    active = _active(training, batch, outputs)
    if active is not None:
        missing = {"active": active}
    if outputs.present is not None:
        missing["present"] = outputs.present_by_objective
        logit_loss = {name: partial(_loss, training, batch, outputs.here(name)) for name in grads.names}
    trained = trained_params(state.params, training.frozen)
    extra: dict[str, Any] = {
        "values": values,
        "groups": parameter_groups(trained),
        "labels": batch.label,
        "logit_loss": logit_loss,
        "unimodal_logits": outputs.unimodal_logits,
        "last_layer": outputs.last_layer,
        "validation_values": state.validation_values,
        "key": jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1),
        **missing,
        **aux.extra,
    }
    gradient, watched = training.watched(monitor_every).update(grads, state.opt_state[0], trained, **extra)
    sound = jnp.isfinite(values) if active is None else jnp.isfinite(values) | ~active
    return _Combined(sound, gradient, watched, model_state, extra)


def train_step(training: Training, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
    """Take one step: losses, per-objective gradients, combiner and optimizer, new parameters and statistics."""
    combined = _combined(training, state, batch, monitor_every=0)

    def move() -> Moved:
        trained = trained_params(state.params, training.frozen)
        optimizer = optax.with_extra_args_support(training.optimizer)
        updates, opt_state = optimizer.update(combined.gradient, state.opt_state[1], trained, **combined.extra)
        params = {**state.params, **optax.apply_updates(trained, updates)}
        return Moved(params, combined.model_state, (combined.watched, opt_state))

    new_state = advanced(state, combined.sound, combined.gradient, move, training.skip_nonfinite)
    return new_state, StepMetrics(combined.watched.values, combined.watched.weights)


def measure_gradients(training: Training, state: TrainState, batch: Batch) -> dict[str, Array]:
    """Return what `monitor` measures at this state and batch, by name: {"norm/a": ‖∇L_a‖, "cosine/a/b": cos(∇L_a, ∇L_b)}.

    They are of the gradients of the step from this state; NaN where no example of the batch has the modality, and for
    pairs that meet in no parameter.
    """
    measured = _combined(training, state, batch, monitor_every=1).watched
    return named_geometry(Geometry(measured.norms, measured.cosines), training.names)


def reached_modules(training: Training, state: TrainState, batch: Batch, objectives: Iterable[str]) -> set[str]:
    """Return the modules (names in `params`) that the losses of these objectives can move; traced, never run.

    training: without an axis of devices. state, batch: arrays or their shapes.
    """
    reached: set[str] = set()

    def trace(state: TrainState, batch: Batch) -> None:
        _, grads, _, _ = _gradients(training, state, batch)
        places = [grads.names.index(name) for name in objectives]
        for name, tree in grads.touching.items():
            if any(leaf[places].any() for leaf in jax.tree.leaves(tree)):
                reached.add(name)

    jax.eval_shape(trace, state, batch)
    return reached


def _dropout_key(state: TrainState) -> Array:
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), 3)
