"""A method's pass over the training split, when it is due."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from mmjax.data import Batch, Dataset, evaluation_batches
from mmjax.method import Refresh
from mmjax.train.parallel import Route
from mmjax.train.predictor import BATCH
from mmjax.train.step import Inference, outputs_of

PyTree = Any


class Refresher:
    """Runs a `Refresh` over a dataset, under jit with the batches sharded over the route's devices, on either route."""

    def __init__(self, refresh: Refresh, inference: Inference, route: Route):
        self.every = refresh.every
        self._route = route
        self._start = jax.jit(refresh.start, out_shardings=route.replicated)
        self._finish = jax.jit(refresh.finish, out_shardings=route.replicated)
        self._add = jax.jit(partial(_add, refresh, inference), donate_argnums=0, out_shardings=route.replicated)

    def __call__(self, variables: PyTree, combiner_state: PyTree, dataset: Dataset) -> PyTree:
        """Return the new combiner state. variables, combiner_state: one copy, replicated."""
        devices = len(self._route.devices)
        size = -(-min(BATCH, len(dataset)) // devices) * devices
        carry = self._start(combiner_state)
        for batch in evaluation_batches(dataset, size):
            carry = self._add(carry, variables, jax.device_put(batch, self._route.sharded))
        return self._finish(carry, combiner_state)


def _add(refresh: Refresh, inference: Inference, carry: PyTree, variables: PyTree, batch: Batch) -> PyTree:
    outputs = outputs_of(inference, variables, batch.inputs, batch.present)
    return refresh.add(carry, outputs, batch.label, batch.weight)
