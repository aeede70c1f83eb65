"""What the loop needs of an experiment, whatever it trains: a first state, a pure step, and how to evaluate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array

from mmjax.config import Config
from mmjax.data import Batch, Dataset, Splits, gather
from mmjax.method import Refresh
from mmjax.train.parallel import Route
from mmjax.train.state import TrainState
from mmjax.train.step import Inference, StepMetrics, prepare

PyTree = Any


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """A configuration made concrete: data, devices, how long it takes, and the functions that train and evaluate.

    names: of the objectives, in the order of `StepMetrics`. `step` and `measure` are pure and are compiled by the loop;
    everything else runs on the host, at boundaries. title, start: of the stage of a run that this is, and its first step.
    """

    config: Config
    splits: Splits
    route: Route
    names: tuple[str, ...]
    total_steps: int
    evaluate_every: int
    checkpoint_every: int
    refresh: Refresh | None = None
    title: str = ""
    start: int = 0

    @property
    def end(self) -> int:
        """The step at which the stage is over."""
        return self.start + self.total_steps

    @property
    @abstractmethod
    def inference(self) -> Inference:
        """What it takes to predict, besides the variables."""

    @abstractmethod
    def initial_state(self) -> TrainState:
        """Return the state at step 0 (not yet placed)."""

    def state_after(self, variables: PyTree) -> TrainState:
        """Return the state at the beginning of this stage, with the weights that the one before it left."""
        raise TypeError(f"{type(self).__name__} trains in one stage")

    @abstractmethod
    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        """Take one training step; pure."""

    @abstractmethod
    def measure(self, state: TrainState, batch: Batch) -> dict[str, Array]:
        """Return the geometry of the objectives' gradients ("norm/a", "cosine/a/b"); pure."""

    @abstractmethod
    def criterion(self, metrics: Mapping[str, float]) -> float:
        """Return what "best on validation" means: lower is better."""

    def ready(self, variables: PyTree) -> PyTree:
        """Return the variables as they are evaluated, saved as the best, and used: here, as trained."""
        return variables

    def example(self) -> dict[str, Array]:
        """Return one training example's inputs, [1, ...], as a step sees them."""
        return one_example(self.inference, self.splits.train)


def one_example(inference: Inference, train: Dataset) -> dict[str, Array]:
    """Return the inputs of one example, {modality: [1, ...]}, as the model sees them."""
    inputs = gather(train, np.zeros(1, np.int64)).inputs
    return prepare(inference, jax.tree.map(jax.numpy.asarray, inputs))
