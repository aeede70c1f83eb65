"""Predictive uncertainty of a trained model: its last layers' Laplace posteriors, fitted after training."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array

from mmjax.bayes.laplace import (
    Likelihood,
    Posterior,
    check_prior_precision,
    empty_precision,
    posteriors,
    precision,
    predictive,
    warn_of_blocks,
)
from mmjax.data import Dataset, evaluation_batches, gather
from mmjax.evaluation.metrics import expert_metrics
from mmjax.method import Refresh
from mmjax.models.heads import LastLayer
from mmjax.train.predictor import BATCH
from mmjax.train.refresher import Refresher
from mmjax.train.run import Run
from mmjax.train.step import Inference, outputs_of, prepare

PyTree = Any


def laplace_metrics(
    run: Run,
    train: Dataset,
    dataset: Dataset,
    *,
    prior_precision: float | None = None,
    samples: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """Return the task's metrics of every expert's Monte Carlo predictive: {"fusion/nll": ..., "fusion/ece": ..., ...}.

    train: what the posteriors are taken from, in one pass; dataset: what is predicted. prior_precision: τ > 0; None: a
    tenth of the number of training examples. samples: draws of the weights, the same for every example.
    To be read beside `evaluate`, whose probabilities are those of the weights as trained.

    Raises:
      ValueError: a task without a likelihood here (regression), other modalities or another task than the model's, τ <= 0.
    """
    task = run.inference.task
    if task.kind == "regression":
        raise ValueError("the Laplace predictive is for classification and multi-label; the task here is regression")
    for given in (train, dataset):
        if set(given.modalities) != set(run.modalities) or given.task != task:
            raise ValueError(
                f"a dataset has {given.modalities}, {given.task}; the model {sorted(run.modalities)}, {task}"
            )
    tau = len(train) / 10 if prior_precision is None else prior_precision
    check_prior_precision(tau)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    likelihood: Likelihood = "softmax" if task.kind == "classification" else "sigmoid"
    posteriors = _posteriors(run, train, tau, likelihood)
    program = jax.jit(
        partial(_predictive, run.inference, likelihood, samples, seed), out_shardings=run.route.replicated
    )
    devices = len(run.route.devices)
    size = -(-min(BATCH, len(dataset)) // devices) * devices
    parts = []
    for batch in evaluation_batches(dataset, size):
        given = jax.device_put((batch.inputs, batch.present), run.route.sharded)
        parts.append(jax.device_get(program(run.variables, posteriors, *given)))
    experts = {name: np.concatenate([part[name] for part in parts])[: len(dataset)] for name in parts[0]}
    logits = {name: _as_logits(probability, likelihood) for name, probability in experts.items()}
    here = None if dataset.present is None else {m: dataset.has(m) for m in dataset.modalities}
    return expert_metrics(task, logits, dataset.label, here)


def _posteriors(run: Run, train: Dataset, tau: float, likelihood: Likelihood) -> dict[str, Posterior]:
    example = prepare(run.inference, gather(train, np.zeros(1, np.int64)).inputs)
    shapes = jax.eval_shape(run.inference.model.apply, run.variables, example).last_layer
    layers = {name: layer.kernel.shape for name, layer in shapes.items()}
    for name, (inputs, outputs) in layers.items():
        warn_of_blocks(name, inputs, outputs, likelihood)

    def add(carry: dict[str, Array], outputs: Any, label: Array, weight: Array) -> dict[str, Array]:
        del label
        return {
            n: total + precision(*_arrays(outputs.last_layer[n]), outputs.weight_of(n, weight), likelihood)
            for n, total in carry.items()
        }

    refresh = Refresh(
        every=1,
        start=lambda state: {name: empty_precision(d, c, likelihood) for name, (d, c) in layers.items()},
        add=add,
        finish=lambda carry, state: posteriors(carry, tau),
    )
    return Refresher(refresh, run.inference, run.route)(run.variables, (), train)


def _predictive(
    inference: Inference,
    likelihood: Likelihood,
    samples: int,
    seed: int,
    variables: PyTree,
    posteriors: dict[str, Posterior],
    inputs: Any,
    present: Array | None,
) -> dict[str, Array]:
    outputs = outputs_of(inference, variables, inputs, present)
    keys = {name: jax.random.fold_in(jax.random.key(seed), k) for k, name in enumerate(sorted(posteriors))}
    return {
        name: predictive(posteriors[name], *_arrays(layer), keys[name], samples=samples, likelihood=likelihood)
        for name, layer in outputs.last_layer.items()
    }


def _arrays(layer: LastLayer) -> tuple[Array, Array, Array]:
    return layer.inputs, layer.kernel, layer.bias


def _as_logits(probability: np.ndarray, likelihood: Likelihood) -> np.ndarray:
    tiny = np.finfo(np.float32).tiny
    p = np.maximum(probability.astype(np.float64), tiny)
    return np.log(p) if likelihood == "softmax" else np.log(p) - np.log(np.maximum(1 - p, tiny))
