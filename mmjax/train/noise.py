"""How a run does with noise in one modality at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mmjax.data import Dataset
from mmjax.data.tokens import TokenNumbers
from mmjax.evaluation.metrics import score_name
from mmjax.evaluation.robustness import robustness_curves
from mmjax.objectives import FUSION
from mmjax.train.predictor import Predictor
from mmjax.train.run import Run, check_dataset


def scores_by_noise(run: Run, dataset: Dataset, levels: Sequence[float], seed: int = 0) -> dict[str, np.ndarray]:
    """Return {modality: float64 [levels]}: the fusion's score (accuracy, mAP or R2) with so much noise in that modality.

    levels, seed: as `robustness_curves` takes them; a level of 1 is noise as large as each feature's own spread over the
    dataset, or every token replaced by another. Where examples lack a modality, the noise passes them by.

    Raises:
      ValueError: modalities or a task other than the model's, levels out of range.

    >>> import mmjax
    >>> from mmjax.data import Planted
    >>> from mmjax.train.optimizer import AdamConfig
    >>> train = mmjax.TrainConfig(epochs=1, batch_size=32, monitor_every=0, devices=1)
    >>> data, method = Planted(train_examples=100), mmjax.optim.UniformConfig()
    >>> run = mmjax.fit(mmjax.Config(data=data, method=method, optimizer=AdamConfig(), train=train))
    >>> curves = scores_by_noise(run, data.load().test, [0.0, 1.0])
    >>> sorted(curves), bool(curves["a"][0] == curves["b"][0] == run.metrics["fusion/accuracy"])
    (['a', 'b'], True)
    """
    check_dataset(run, dataset)
    predictor, score = Predictor(run.inference, run.route), score_name(dataset.task)

    def scored(inputs: Mapping[str, np.ndarray]) -> float:
        return predictor.metrics(run.variables, dataclasses.replace(dataset, inputs=inputs))[f"{FUSION}/{score}"]

    return robustness_curves(scored, as_meant(dataset), levels, seed=seed, present=dataset.present)


def as_meant(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return the inputs {modality: [N, ...]}, token numbers as integers and everything that is measured in float32.

    Arrays may be stored otherwise: token numbers in float32, pixels in bytes. What tells them apart is the preprocessing;
    integers without any are token numbers.

    >>> from mmjax.data import from_arrays
    >>> arrays = {"words": np.ones((20, 3), int), "image": np.ones((20, 2), np.uint8)}
    >>> train = from_arrays(arrays, np.arange(20) % 2, tokens=("words",)).train
    >>> train.inputs["words"].dtype.name, {m: x.dtype.name for m, x in as_meant(train).items()}
    ('float32', {'image': 'float32', 'words': 'int32'})
    """
    everybody = np.arange(len(dataset))  # an input may be computed when it is asked for
    found = {}
    for m in dataset.modalities:
        array, preprocess = np.asarray(dataset.inputs[m][everybody]), dataset.preprocess.get(m)
        whole = isinstance(preprocess, TokenNumbers) or (preprocess is None and array.dtype.kind in "iu")
        found[m] = array.astype(np.int32 if whole else np.float32)
    return found
