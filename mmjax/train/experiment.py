"""From a configuration to everything static that a run needs; all of its checks come before any compilation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np
from jax import Array

from mmjax.config import Config, Layout, MethodContext, validate
from mmjax.data import Batch, Dataset, Splits
from mmjax.evaluation.metrics import loss_name, score_name
from mmjax.generative.config import GenerativeConfig
from mmjax.models import ExpertModel, ExpertsConfig, MultiModal
from mmjax.objectives import FUSION
from mmjax.train.base import Experiment, one_example
from mmjax.train.generative import build_generative
from mmjax.train.inference import build_inference
from mmjax.train.parallel import make_route
from mmjax.train.state import TrainState, create_state, state_from
from mmjax.train.step import Inference, StepMetrics, Training, measure_gradients, train_step
from mmjax.train.token_range import check_token_range

PyTree = Any


@dataclass(frozen=True, kw_only=True)
class Classifier(Experiment):
    """A `MultiModal` or a product of experts, with a way of balancing its objectives."""

    training: Training

    @property
    def inference(self) -> Inference:
        """What it takes to predict, besides the variables."""
        return self.training.inference

    def initial_state(self) -> TrainState:
        """Return the state at step 0 (not yet placed)."""
        return create_state(
            self.inference.model,
            self.example(),
            self.training.tx,
            len(self.names),
            self.config.train.seed,
            self.training.frozen,
        )

    def state_after(self, variables: PyTree) -> TrainState:
        """Return the state at the beginning of this stage, with the weights that the one before it left."""
        seed, frozen = self.config.train.seed, self.training.frozen
        return state_from(variables, self.training.tx, len(self.names), seed, frozen, self.start)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        """Take one training step; pure."""
        return train_step(self.training, state, batch)

    def measure(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Return norms and cosines of the objectives' gradients; pure."""
        return measure_gradients(self.training, state, batch)

    def criterion(self, metrics: Mapping[str, float]) -> float:
        """Return the fusion's loss, or its negative score; where it does not count, the sum over those that do."""
        task, counted = self.splits.train.task, self.training.counted
        names = [FUSION]
        if counted is not None and not counted[0]:
            names = [name for name, counts in zip(self.names, counted, strict=True) if counts]
        if self.config.train.select == "loss":
            return sum(metrics[f"{name}/{loss_name(task)}"] for name in names)
        return -sum(metrics[f"{name}/{score_name(task)}"] for name in names)


def build_experiment(config: Config, splits: Splits | None = None) -> Experiment:
    """Load the data (unless given), choose the devices, build the model and the method.

    Raises:
      ValueError: a field out of range, a batch larger than the data or not divisible by the devices, options that the
        task does not have; token numbers beyond a vocabulary; a configuration of several stages (`build_stages`).
    """
    validate(config)
    if config.stages:
        raise ValueError("what is asked for trains in one stage; the configuration has stages: leave them out")
    splits = config.data.load() if splits is None else splits
    train, task = config.train, splits.train.task
    if train.batch_size > len(splits.train):
        raise ValueError(
            f"train.batch_size = {train.batch_size} is larger than the training split of {len(splits.train)} examples"
        )
    for option, default in (("label_smoothing", 0.0), ("class_weights", "none")):
        if task.kind != "classification" and getattr(train, option) != default:
            raise ValueError(f"train.{option} is for classification; the task here is {task.kind}")
    for name, part in (("training", splits.train), ("validation", splits.validation), ("test", splits.test)):
        check_token_range(config.model, part, f"the {name} split")
    route = make_route(train.parallel, train.devices, train.batch_size)
    steps_per_epoch = math.ceil(len(splits.train) / train.batch_size)
    evaluate_every = train.evaluate_every or steps_per_epoch
    common: dict[str, Any] = {
        "config": config,
        "splits": splits,
        "route": route,
        "total_steps": math.ceil(train.epochs * len(splits.train) / train.batch_size),
        "evaluate_every": evaluate_every,
        "checkpoint_every": train.checkpoint_every or evaluate_every,
    }
    inference = build_inference(
        config, splits.train.modalities, task, splits.train.preprocess, axis_name=route.axis_name
    )
    if isinstance(config.model, GenerativeConfig):
        return build_generative(inference, **common)
    return _build_classifier(inference, steps_per_epoch, **common)


def build_classifier(config: Config, splits: Splits | None = None) -> Classifier:
    """Return `build_experiment(config, splits)` of a `MultiModal`. Raises ValueError also for any other model."""
    if isinstance(config.model, GenerativeConfig | ExpertsConfig):
        raise ValueError(
            f"model is a {type(config.model).__name__}; what is asked for needs a MultiModal: a ModelConfig"
        )
    experiment = build_experiment(config, splits)
    assert isinstance(experiment, Classifier)
    return experiment


def _build_classifier(inference: Inference, steps_per_epoch: int, **common: Any) -> Classifier:
    config, splits, route = common["config"], common["splits"], common["route"]
    train, fusion = config.train, config.model.fusion
    if fusion is not None and inference.task.kind not in fusion.tasks:
        raise ValueError(
            f"model.fusion {fusion.name!r} is for {' and '.join(fusion.tasks)}; the task here is {inference.task.kind}"
        )
    names = cast(MultiModal | ExpertModel, inference.model).objectives
    context = MethodContext(
        names=names,
        num_examples=len(splits.train),
        batch_size=train.batch_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=common["total_steps"],
        task=inference.task,
        layout=_layout(inference, splits.train),
    )
    training = Training(
        inference=inference,
        combiner=config.method.build(context),
        optimizer=config.optimizer.build(common["total_steps"]),
        rule=config.method.objectives,
        label_smoothing=train.label_smoothing,
        class_weights=_balanced(splits.train) if train.class_weights == "balanced" else None,
        axis_name=route.axis_name,
        modality_dropout=train.modality_dropout,
        skip_nonfinite=train.skip_nonfinite,
    )
    return Classifier(**common, names=names, training=training, refresh=config.method.refresh(context))


def _layout(inference: Inference, train: Dataset) -> Layout:
    inputs = one_example(inference, train)
    outputs, _ = jax.eval_shape(lambda: inference.model.init_with_output(jax.random.key(0), inputs, train=False))
    return Layout(
        features={m: z.shape[1:] for m, z in outputs.features.items()},
        last_layer={name: last.kernel.shape for name, last in outputs.last_layer.items()},
    )


def _balanced(train: Dataset) -> tuple[float, ...]:
    counts = np.bincount(train.label, minlength=train.task.num_outputs)
    if not counts.all():
        warnings.warn(
            f"class {int(np.argmin(counts))} has no training example; its class weight is 0", UserWarning, stacklevel=4
        )
    return tuple(np.where(counts > 0, len(train) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0).tolist())
