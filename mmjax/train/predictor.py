"""The forward pass over whole datasets, compiled once a batch shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array

from mmjax.data import Dataset, evaluation_batches
from mmjax.evaluation.metrics import expert_metrics, late_fusion
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
        return over_dataset(lambda inputs, present: self._forward(variables, inputs, present), self._route, dataset)

    def metrics(self, variables: PyTree, dataset: Dataset) -> dict[str, float]:
        """Return {"fusion/accuracy": ..., "image/nll": ..., ...}: the task's metrics of every expert.

        With uni-modal experts of two modalities or more also of their late fusion, as "late_fusion/accuracy" and so on. A
        modality is measured on the examples that have it, and left out where none has.
        """
        return measured(dataset, self.logits(variables, dataset))


def measured(dataset: Dataset, experts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the metrics of experts {name: logits [N, C]} on a dataset, and of the late fusion of several modalities."""
    here = None if dataset.present is None else {m: dataset.has(m) for m in dataset.modalities}
    alone = {m: experts[m] for m in dataset.modalities if m in experts}
    if len(alone) > 1:
        experts = {**experts, LATE_FUSION: late_fusion(dataset.task, alone, here)}
    return expert_metrics(dataset.task, experts, dataset.label, here)


def over_dataset(
    compiled: Callable[[dict[str, Array], Array | None], dict[str, Array]], route: Route, dataset: Dataset
) -> dict[str, np.ndarray]:
    """Return what a compiled function of (inputs {modality: [B, ...]}, present) says of every example, {name: [N, ...]}."""
    devices = len(route.devices)
    size = -(-min(BATCH, len(dataset)) // devices) * devices
    parts = []
    for batch in evaluation_batches(dataset, size):
        parts.append(compiled(*jax.device_put((batch.inputs, batch.present), route.sharded)))
    host = jax.device_get(parts)
    return {name: np.concatenate([part[name] for part in host])[: len(dataset)] for name in host[0]}
