"""Missing modalities, drawn: complete data with some of their modalities taken away at stated rates."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

import numpy as np

from mmjax.data.dataset import Dataset, Splits


def rate_problems(rates: Mapping[str, float], available: tuple[str, ...]) -> list[str]:
    """Return what is wrong with rates at which modalities are missing, {modality: probability in [0, 1)}.

    >>> rate_problems({"imgae": 0.5, "audio": 1.0}, ("audio", "image"))  # doctest: +NORMALIZE_WHITESPACE
    ["missing names 'imgae', which the data do not hold; did you mean 'image'? (available: audio, image)",
     "missing['audio'] must be a probability of at least 0 and below 1, got 1.0"]
    """
    problems = []
    for name, rate in rates.items():
        if name not in available:
            near = difflib.get_close_matches(name, available, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(
                f"missing names {name!r}, which the data do not hold{hint} (available: {', '.join(available)})"
            )
        if not 0.0 <= rate < 1.0:
            problems.append(f"missing[{name!r}] must be a probability of at least 0 and below 1, got {rate}")
    return problems


def with_missing(splits: Splits, rates: Mapping[str, float], seed: int) -> Splits:
    """Return the splits with each example's modalities missing at these rates, independently; never all of them.

    rates: {modality: probability in [0, 1)}; 0 where not named. An example that would lose everything is drawn again, so
    a little less is missing than the rates say (of two at .3 each, .23). Each split has a stream of its own.

    Raises:
      ValueError: a rate out of range, or of a modality that is not there; data that lack modalities already.

    >>> from mmjax.data.dataset import Task
    >>> inputs = {"a": np.zeros((1000, 1)), "b": np.zeros((1000, 1))}
    >>> data = Dataset(inputs, np.arange(1000) % 2, Task("classification", 2))
    >>> train = with_missing(Splits(data, data, data), {"a": 0.3}, seed=0).train
    >>> train.present.mean(axis=0).round(1).tolist()
    [0.7, 1.0]
    """
    names = splits.train.modalities
    problems = rate_problems(rates, names)
    if any(part.present is not None for part in (splits.train, splits.validation, splits.test)):
        problems.append("missing is for complete data; these lack modalities already")
    if problems:
        raise ValueError("\n  ".join(problems))
    if not any(rates.values()):
        return splits
    absent = np.array([rates.get(name, 0.0) for name in names])

    def part(code: int, dataset: Dataset) -> Dataset:
        present = np.zeros((len(dataset), len(names)), bool)
        empty = np.arange(len(dataset))
        rng = np.random.default_rng([seed, code])
        while empty.size:
            present[empty] = rng.random((empty.size, len(names))) >= absent
            empty = np.flatnonzero(~present.any(axis=1))
        return dataclasses.replace(dataset, present=present)

    return Splits(*(part(code, d) for code, d in enumerate((splits.train, splits.validation, splits.test))))
