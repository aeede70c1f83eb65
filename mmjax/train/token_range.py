"""Whether token numbers are within the vocabulary of the encoders that read them."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmjax.data import Dataset
from mmjax.data.tokens import TokenNumbers


def check_token_range(model: Any, dataset: Dataset, where: str) -> None:
    """Check every modality of token numbers: whole, at least 0, below the `vocabulary` of each of its encoders.

    An embedding answers NaN beyond its end. model: a configuration with `encoders`, {modality: configuration} (and
    perhaps `inter_encoders`). where: says whose examples they are. Inputs computed on demand are not looked into.

    Raises:
      ValueError: a number that is none of its vocabulary, with modality and first example.

    >>> from mmjax.data import Task
    >>> from mmjax.models import TransformerConfig, ExpertsConfig
    >>> words = np.array([[3.0, 0.0], [12.0, 1.0]], np.float32)
    >>> data = Dataset({"words": words}, np.zeros(2, int), Task("classification", 2), {"words": TokenNumbers()})
    >>> check_token_range(ExpertsConfig(encoders={"words": TransformerConfig(vocabulary=10)}), data, "the test split")
    Traceback (most recent call last):
    ...
    ValueError: words of the test split has token number 12, first in example 1, but model.encoders.words.vocabulary is 10
    """
    for m in dataset.modalities:
        tokens = dataset.inputs[m]
        if not isinstance(dataset.preprocess.get(m), TokenNumbers) or not isinstance(tokens, np.ndarray):
            continue
        rows = tokens.reshape(len(tokens), -1)
        odd = np.flatnonzero(((rows < 0) | (rows != np.floor(rows))).any(axis=1))
        if len(odd):
            raise ValueError(f"{m} of {where} must hold token numbers, whole and at least 0; not so example {odd[0]}")
        for section in ("encoders", "inter_encoders"):
            vocabulary = getattr(getattr(model, section, {}).get(m), "vocabulary", None)
            if not vocabulary:
                continue
            beyond = np.flatnonzero(rows.max(axis=1, initial=0) >= vocabulary)
            if len(beyond):
                raise ValueError(
                    f"{m} of {where} has token number {int(rows[beyond[0]].max())}, first in example {beyond[0]}, but "
                    f"model.{section}.{m}.vocabulary is {vocabulary}"
                )
