"""A trained model at hand: predict, evaluate, load from a work folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.config import Config
from mmjax.data import Dataset
from mmjax.data.arrays import erased
from mmjax.data.validation import present_problems, raise_problems
from mmjax.evaluation.metrics import probabilities
from mmjax.generative.reader import Reader
from mmjax.train import journal
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.generative import check_data
from mmjax.train.inference import build_inference
from mmjax.train.parallel import Route, make_route
from mmjax.train.predictor import Predictor
from mmjax.train.signature import example_inputs, read_signature
from mmjax.train.step import Inference, prepare
from mmjax.train.token_range import check_token_range

PyTree = Any


@dataclass(frozen=True)
class Run:
    """The outcome of `fit` or `load`: the best model on validation, and how it did.

    metrics: of the test split where it was evaluated, else empty.
    variables: {"params": ..., and the model's other collections}.
    modalities: {modality: shape of one example}.

    >>> import mmjax
    >>> from mmjax.data import Planted
    >>> from mmjax.train.optimizer import AdamConfig
    >>> train = mmjax.TrainConfig(epochs=1, batch_size=32, monitor_every=0, devices=1)
    >>> data, method = Planted(train_examples=200), mmjax.optim.UniformConfig()
    >>> run = mmjax.fit(mmjax.Config(data=data, method=method, optimizer=AdamConfig(), train=train))
    >>> run.modalities, run.predict({"a": np.zeros((3, 8)), "b": np.zeros((3, 8))})["fusion"].shape
    ({'a': (8,), 'b': (8,)}, (3, 16))
    """

    config: Config
    inference: Inference = field(repr=False)
    route: Route = field(repr=False)
    variables: PyTree = field(repr=False)
    metrics: dict[str, Any]
    modalities: dict[str, tuple[int, ...]]
    workdir: Path | None = None

    @property
    def params(self) -> PyTree:
        """The model's parameters."""
        return self.variables["params"]

    def predict(self, inputs: Mapping[str, np.ndarray], present: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return what every expert says of new inputs: {"fusion": [N, C], modality: [N, C]}.

        inputs: {modality: [N, ...]}, as the data source gave them (preprocessing is the model's). Probabilities for
        classification (rows sum to 1) and multi-label; values for regression.
        present: bool [N, M], which examples have which modality, columns in the sorted order of the names; None: all have
        all. What is absent is not looked at, and its own expert answers NaN.

        Raises:
          ValueError: a modality is missing or unknown, a shape or length differs, a value is not finite or, for binary
            units of a generative model, outside [0, 1]; `present` of another form, with a row of nothing, or for a model
            that takes complete examples only.
        """
        dataset = self._dataset(inputs, present)
        _check_presence(self.inference, dataset)
        logits = Predictor(self.inference, self.route).logits(self.variables, dataset)
        answers = {name: probabilities(self.inference.task, value) for name, value in logits.items()}
        for m in dataset.modalities:
            if m in answers:
                answers[m][~dataset.has(m)] = np.nan
        return answers

    def _dataset(self, inputs: Mapping[str, np.ndarray], present: np.ndarray | None = None) -> Dataset:
        if set(inputs) != set(self.modalities):
            raise ValueError(f"inputs are of modalities {sorted(inputs)}; the model takes {sorted(self.modalities)}")
        arrays = {m: np.asarray(x) for m, x in inputs.items()}
        for m, array in arrays.items():
            if array.shape[1:] != self.modalities[m] or array.ndim == 0 or len(array) == 0:
                expected = "".join(f", {n}" for n in self.modalities[m])
                raise ValueError(f"{m} has shape {array.shape}; expected [N{expected}] with N >= 1")
            if array.dtype.kind not in "fiub":
                raise ValueError(f"{m} has dtype {array.dtype}; expected numbers")
        lengths = {m: len(x) for m, x in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"inputs differ in length: {lengths}")
        n = next(iter(lengths.values()))
        if present is not None:
            present = np.asarray(present)
            raise_problems("", present_problems(present, arrays, n))
            arrays = erased(arrays, present)
        for m, array in arrays.items():
            bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
            if len(bad):
                raise ValueError(f"{m} has a NaN or infinite value, first in example {bad[0]}")
        task = self.inference.task
        label = np.zeros(n, np.int32) if task.kind == "classification" else np.zeros((n, task.num_outputs), np.float32)
        dataset = Dataset(arrays, label, task, self.inference.preprocess, present)
        check_token_range(self.config.model, dataset, "inputs")
        if isinstance(self.inference.model, Reader):
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", UserWarning
                )  # a handful of examples need not be standardised themselves
                check_data(self.inference, dataset)
        return dataset


def check_dataset(run: Run, dataset: Dataset) -> None:
    """Raise ValueError unless a dataset is one that the run's model can be evaluated on: its modalities, its task."""
    if set(dataset.modalities) != set(run.modalities):
        raise ValueError(f"the dataset has modalities {dataset.modalities}; the model takes {sorted(run.modalities)}")
    for m, expected in run.modalities.items():
        shape = tuple(dataset.inputs[m].shape[1:])
        if shape != tuple(expected):
            raise ValueError(f"{m} has shape {shape} an example; the model takes {tuple(expected)}")
    task, own = dataset.task, run.inference.task
    if (task.kind, task.num_outputs) != (own.kind, own.num_outputs):
        raise ValueError(
            f"the dataset is {task.kind} with {task.num_outputs} outputs; the model {own.kind} with {own.num_outputs}"
        )
    _check_presence(run.inference, dataset)


def _check_presence(inference: Inference, dataset: Dataset) -> None:
    if dataset.present is not None and isinstance(inference.model, Reader):
        raise ValueError("a generative model takes examples that have every modality; some lack one")


def evaluate(run: Run, dataset: Dataset) -> dict[str, float]:
    """Return the task's metrics of every expert on a dataset: {"fusion/accuracy": ..., "image/nll": ..., ...}.

    A modality's expert is measured on the examples that have it, and left out where none has.

    Raises:
      ValueError: the dataset's modalities, their shapes or its task differ from the model's, or it lacks modalities and the
        model is generative (what such a model infers, `mmjax.train.missing` measures).

    >>> import mmjax
    >>> from mmjax.data import Planted
    >>> from mmjax.train.optimizer import AdamConfig
    >>> train = mmjax.TrainConfig(epochs=1, batch_size=32, monitor_every=0, devices=1)
    >>> data, method = Planted(train_examples=200), mmjax.optim.UniformConfig()
    >>> run = mmjax.fit(mmjax.Config(data=data, method=method, optimizer=AdamConfig(), train=train))
    >>> 0.0 <= evaluate(run, data.load().validation)["a/accuracy"] <= 1.0
    True
    """
    check_dataset(run, dataset)
    return Predictor(run.inference, run.route).metrics(run.variables, dataset)


def load(workdir: str | Path) -> Run:
    """Return the best model of a work folder, without its data.

    Raises:
      FileNotFoundError: no work folder of a run, or no model saved in it yet.

    >>> import tempfile, mmjax
    >>> from mmjax.data import Planted
    >>> from mmjax.train.optimizer import AdamConfig
    >>> train = mmjax.TrainConfig(epochs=1, batch_size=32, monitor_every=0, devices=1)
    >>> config = mmjax.Config(
    ...     data=Planted(), method=mmjax.optim.UniformConfig(), optimizer=AdamConfig(), train=train
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trained = mmjax.fit(config, folder)
    ...     run = load(folder)
    >>> test = config.data.load().test
    >>> evaluate(run, test)["fusion/accuracy"] == run.metrics["fusion/accuracy"] == trained.metrics["fusion/accuracy"]
    True
    """
    folder = Path(workdir).absolute()
    config = journal.read_config(folder)
    signature = read_signature(folder)
    route = make_route("jit", 1, 1)
    modalities = tuple(sorted(signature.shapes))
    inference = build_inference(config, modalities, signature.task, signature.preprocess)
    model = inference.model
    inputs = prepare(inference, example_inputs(signature))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=False))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=route.replicated), dict(shapes))
    checkpoints = Checkpoints(folder / journal.CHECKPOINTS)
    try:
        if checkpoints.best_step() is None:
            raise FileNotFoundError(f"{folder} holds no evaluated model yet: train it further first")
        variables = checkpoints.restore_best(abstract)
    finally:
        checkpoints.close()
    rows = journal.read_rows(folder / journal.METRICS)
    test = next((row for row in rows if row["kind"] == "test"), {})
    metrics = {k: v for k, v in test.items() if k not in ("step", "kind", "best_step")}
    return Run(config, inference, route, variables, metrics, signature.shapes, folder)
