"""How a generative run does with modalities missing: by the number of rounds of inference, and what it fills in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import numpy as np

from mmjax.data import Dataset, gather
from mmjax.generative.reader import Reader
from mmjax.generative.recurrence import check_rounds
from mmjax.train.predictor import Predictor
from mmjax.train.run import Run
from mmjax.train.step import prepare

ROUNDS = (0, 1, 2, 5, 10)
"""Numbers of rounds that are compared, as published."""


def reader_of(run: Run) -> Reader:
    """Return the reader of a generative run. Raises ValueError for a run of another family."""
    model = run.inference.model
    if not isinstance(model, Reader):
        raise ValueError(f"the run's model is a {type(model).__name__}; only generative models infer what is missing")
    return model


def scores_by_rounds(run: Run, dataset: Dataset, rounds: Iterable[int] = ROUNDS) -> dict[int, dict[str, float]]:
    """Return {rounds: metrics} of the run's classifier, metrics as of `evaluate`: {"left/accuracy": ...}.

    "fusion" has every modality and nothing to infer; a modality's name is the pattern in which it alone is there. The
    classifier stays the one fitted on features of complete examples.

    Raises:
      ValueError: a run whose model is not generative, rounds < 0.
    """
    reader = reader_of(run)
    found = {}
    for count in rounds:
        check_rounds(count)
        inference = dataclasses.replace(run.inference, model=reader.clone(rounds=count))
        found[count] = Predictor(inference, run.route).metrics(run.variables, dataset)
    return found


def fill_in(run: Run, dataset: Dataset, indices: np.ndarray, given: str) -> dict[str, np.ndarray]:
    """Return examples as the model completes them from one modality, {modality: [B, ...]} in the data's shapes.

    Values are those of the visible units (means, as a step sees inputs), `given` as it is.

    Raises:
      ValueError: a run whose model is not generative, an unknown modality.
    """
    reader = reader_of(run)
    inputs = prepare(run.inference, jax.tree.map(jax.numpy.asarray, gather(dataset, indices).inputs))
    if given not in inputs:
        raise ValueError(f"no modality {given!r}; the model has {sorted(inputs)}")
    filled: Mapping[str, jax.Array] = reader.infer(run.variables, {given: inputs[given]}).inputs
    return {m: np.asarray(x).reshape(inputs[m].shape) for m, x in filled.items()}
