"""The forward pass over whole datasets, compiled once a batch shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array

from mmjax.data import Dataset, evaluation_batches
from mmjax.evaluation.metrics import late_fusion, task_metrics
from mmjax.train.parallel import Route
from mmjax.train.step import Inference, forward

PyTree = Any

LATE_FUSION = "late_fusion"
"""The averaged uni-modal experts among the metrics; they are no expert of the model's own."""
BATCH = 512  # examples a forward pass: large enough to be fast, small enough for any memory


class Predictor:
    """Logits of every expert for every example of a dataset, in order; padding never shows."""

    def __init__(self, inference: Inference, route: Route):
        self._route = route
        self._forward = jax.jit(partial(forward, inference), out_shardings=route.replicated)

    def logits(self, variables: PyTree, dataset: Dataset) -> dict[str, np.ndarray]:
        """Return {"fusion": float32 [N, C], modality: [N, C]}.

        variables: {"params": ..., and the model's other collections}.
        """
        return over_dataset(lambda inputs: self._forward(variables, inputs), self._route, dataset)

    def metrics(self, variables: PyTree, dataset: Dataset) -> dict[str, float]:
        """Return {"fusion/accuracy": ..., "image/nll": ..., ...}: the task's metrics of every expert.

        With two modalities or more also of their late fusion, as "late_fusion/accuracy" and so on.
        """
        experts = self.logits(variables, dataset)
        if len(dataset.modalities) > 1:
            experts = experts | {LATE_FUSION: late_fusion(dataset.task, experts)}
        return {
            f"{name}/{metric}": value
            for name, logits in experts.items()
            for metric, value in task_metrics(dataset.task, logits, dataset.label).items()
        }


def over_dataset(
    compiled: Callable[[dict[str, Array]], dict[str, Array]], route: Route, dataset: Dataset
) -> dict[str, np.ndarray]:
    """Return what a compiled function of inputs {modality: [B, ...]} says of every example, {name: [N, ...]}."""
    devices = len(route.devices)
    size = -(-min(BATCH, len(dataset)) // devices) * devices
    parts = []
    for batch in evaluation_batches(dataset, size):
        inputs = jax.device_put(batch.inputs, route.sharded)
        parts.append(compiled(inputs))
    host = jax.device_get(parts)
    return {name: np.concatenate([part[name] for part in host])[: len(dataset)] for name in host[0]}
