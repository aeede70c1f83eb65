"""The experiment of a generative model: its step, and a linear classifier fitted anew at every evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mmjax.data import Batch, Dataset, evaluation_batches, gather, require_complete
from mmjax.evaluation.linear import fit_linear
from mmjax.evaluation.metrics import loss_name, score_name
from mmjax.generative.config import GenerativeConfig, MDRNNConfig
from mmjax.generative.methods import GenerativeMethod
from mmjax.generative.reader import Reader, flat
from mmjax.generative.visible import Moments, check_moments, merge_moments, moments
from mmjax.objectives import FUSION
from mmjax.optim.geometry import geometry_of, named_geometry
from mmjax.train.base import Experiment
from mmjax.train.predictor import BATCH, over_dataset
from mmjax.train.state import Moved, TrainState, advanced, create_state
from mmjax.train.step import Inference, StepMetrics, prepare

PyTree = Any

SCALED_TO = 1000
"""Training examples from which a start is scaled: means and spreads to 3 %."""


@dataclass(frozen=True, kw_only=True)
class Generative(Experiment):
    """A model of `mmjax.generative` with one of its methods.

    The loss is what the method descends and the sparsity penalty. Best on validation is the lowest
    mean, over the patterns (all there, and each modality alone), of the classifier's loss, or the highest of its score.
    """

    reading: Inference
    tx: optax.GradientTransformation

    @property
    def inference(self) -> Inference:
        """What it takes to predict, besides the variables."""
        return self.reading

    @property
    def core(self) -> Any:
        """The generative model."""
        return cast(Reader, self.reading.model).core

    @property
    def method(self) -> GenerativeMethod:
        """What trains it."""
        return cast(GenerativeMethod, self.config.method)

    def initial_state(self) -> TrainState:
        """Return the state at step 0 (not yet placed)."""
        state = create_state(self.reading.model, self.example(), self.tx, len(self.names), self.config.train.seed)
        if not (isinstance(self.config.model, MDRNNConfig) and self.config.model.start == "scaled"):
            return state
        train = self.splits.train
        some = gather(train, np.arange(min(SCALED_TO, len(train)))).inputs
        inputs = flat(prepare(self.inference, jax.tree.map(jnp.asarray, some)))
        return state.replace(params={"core": self.core.scaled_to(state.params["core"], inputs)})

    def _losses(self, params: PyTree, state: TrainState, batch: Batch) -> tuple[Array, tuple[Array, Array, PyTree]]:
        core, inputs = self.core, flat(prepare(self.inference, batch.inputs))
        key = jax.random.fold_in(state.key, state.step)
        chains = state.model_state.get("chains", {})
        losses = self.method.losses(core, params["core"], chains, inputs, key, state.step)
        values, weights = (jnp.stack([told[n] for n in self.names]) for told in (losses.values, losses.weights))
        return losses.total + self.method.penalty(core, params["core"], inputs), (values, weights, losses.chains)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        """Take one training step; pure."""
        gradient = jax.grad(self._losses, has_aux=True)
        grads, (values, weights, chains) = gradient(state.params, state, batch)

        def move() -> Moved:
            updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
            updates = self._trained(updates, state)
            model_state = state.model_state | ({"chains": chains} if chains else {})
            return Moved(optax.apply_updates(state.params, updates), model_state, opt_state)

        new_state = advanced(
            state, jnp.isfinite(values), self._trained(grads, state), move, self.config.train.skip_nonfinite
        )
        return new_state, StepMetrics(values, weights)

    def _trained(self, tree: PyTree, state: TrainState) -> PyTree:
        """Return gradients or updates with 0 for what this step does not train."""
        trained = self.method.trained(self.core, state.params["core"], state.step)
        if trained is None:
            return tree
        return {"core": jax.tree.map(lambda on, u: jnp.where(on, u, 0), trained, tree["core"])}

    def measure(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Return norms and cosines of the objectives' gradients; pure."""

        def one(place: int) -> PyTree:
            return jax.grad(lambda params: self._losses(params, state, batch)[1][0][place])(state.params)

        rows = [one(place) for place in range(len(self.names))]
        return named_geometry(geometry_of(jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)), self.names)

    def ready(self, variables: PyTree) -> PyTree:
        """Return the variables with the linear classifier fitted on the features of complete training examples."""
        train, l2 = self.splits.train, cast(GenerativeConfig, self.config.model).classifier_l2
        features = over_dataset(lambda x, present: self._features(variables, x), self.route, train)["features"]
        fitted = fit_linear(features, train.label, train.task, l2=l2)
        classifier = {"kernel": fitted.kernel, "bias": fitted.bias}
        return variables | {"classifier": jax.device_put(classifier, self.route.replicated)}

    def _features(self, variables: PyTree, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"features": self._encode(variables, inputs)}

    @cached_property
    def _encode(self) -> Any:
        inference, core = self.inference, self.core

        def encode(variables: PyTree, inputs: Mapping[str, Array]) -> Array:
            return jax.nn.sigmoid(core.hidden_logits(variables["params"]["core"], flat(prepare(inference, inputs))))

        return jax.jit(encode, out_shardings=self.route.replicated)

    def criterion(self, metrics: Mapping[str, float]) -> float:
        """Return the mean over patterns of the classifier's loss, or of its negative score."""
        task, patterns = self.splits.train.task, (FUSION, *self.splits.train.modalities)
        if self.config.train.select == "loss":
            return float(np.mean([metrics[f"{name}/{loss_name(task)}"] for name in patterns]))
        return -float(np.mean([metrics[f"{name}/{score_name(task)}"] for name in patterns]))


def check_data(inference: Inference, dataset: Dataset) -> None:
    """Check inputs, as a step sees them, against the visible units that are to stand for them.

    Warns (UserWarning) of real features that are not standardised.

    Raises:
      ValueError: inputs that are not finite, or outside [0, 1] for binary units.
    """
    seen: dict[str, Moments] = {}
    for batch in evaluation_batches(dataset, min(BATCH, len(dataset))):
        real = int(batch.weight.sum())
        for m, x in prepare(inference, batch.inputs).items():
            found = moments(np.asarray(x)[:real])
            seen[m] = merge_moments(seen[m], found) if m in seen else found
    for m, found in seen.items():
        check_moments(m, cast(Reader, inference.model).core.visible[m], found)


def build_generative(inference: Inference, **common: Any) -> Generative:
    """Make the experiment of a generative model; common: what every `Experiment` has, but for the objectives' names.

    Raises:
      ValueError: a method that cannot train the model, options of a classifier, data that do not fit the units.
    """
    config, splits = common["config"], common["splits"]
    train, method, modalities = config.train, config.method, splits.train.modalities
    for option, default in (("label_smoothing", 0.0), ("class_weights", "none"), ("parallel", "jit")):
        if getattr(train, option) != default:
            raise ValueError(f"train.{option} is not for generative models: leave it at {default!r}")
    core = cast(Reader, inference.model).core
    method.check(core)
    method.check_length(core, common["total_steps"])
    if train.modality_dropout:
        raise ValueError("train.modality_dropout is not for generative models: leave it at 0.0")
    require_complete(splits, "a generative model")
    check_data(inference, splits.train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the other splits are standardised by the training split
        for part in (splits.validation, splits.test):
            check_data(inference, part)
    return Generative(
        **common,
        names=method.names(modalities),
        reading=inference,
        tx=config.optimizer.build(common["total_steps"]),
    )
