"""Whether the splits of a study are disjoint: the head must not be judged on what it was fitted to."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np

from mmjax.data import Dataset, Splits

TOLERATED = 0.05
"""Share of a split's examples that may also stand in another one: published sets hold some examples twice."""

ROOM = 1000
"""Different examples possible for each one there is, from which on two that are equal are no chance: of N examples drawn
evenly from 1000 N, one in 2000 has an equal."""


def check_disjoint(splits: Splits) -> None:
    """Check that no two of training, validation and test split hold the same examples, inputs and label alike.

    Examples of a few discrete features recur by chance: where the values that the features take allow at most `ROOM` times
    as many different examples as there are, what recurs within a split tells how many that is, and only what goes
    beyond twice that is counted. Inputs that are computed on demand are not looked into.

    Warns (UserWarning) of up to a twentieth of shared examples.

    Raises:
      ValueError: two splits share more than that; it says how many, and which is the first.

    >>> from mmjax.data import Task
    >>> data = Dataset({"a": np.arange(9.0)[:, None]}, np.zeros((9, 1)), Task("regression", 1))
    >>> check_disjoint(Splits(data, data, data))
    Traceback (most recent call last):
    ...
    ValueError: the training and the validation split share 9 examples of 9 (the first: example 0 of the validation \
split): a study needs three disjoint splits, to train, to refit the head, and to evaluate
    """
    parts = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    keys = {name: _keys(part) for name, part in parts.items()}
    recur = {name: _recur_by_chance(part) for name, part in parts.items() if keys[name]}
    for (one, ours), (other, theirs) in itertools.combinations(keys.items(), 2):
        if not ours or not theirs:
            continue
        seen = set(ours)
        shared = [i for i, key in enumerate(theirs) if key in seen]
        by_chance = 2 * (len(theirs) - len(set(theirs))) if recur[one] and recur[other] else 0
        if len(shared) <= by_chance:
            continue
        text = (
            f"the {one} and the {other} split share {len(shared)} examples of {len(theirs)} (the first: example "
            f"{shared[0]} of the {other} split)"
        )
        if len(shared) - by_chance > TOLERATED * len(theirs):
            raise ValueError(
                f"{text}: a study needs three disjoint splits, to train, to refit the head, and to evaluate"
            )
        warnings.warn(text, UserWarning, stacklevel=3)


def _keys(dataset: Dataset) -> list[int]:
    """Return a hash of each example, or nothing where an input is not an array."""
    arrays = [dataset.inputs[m] for m in dataset.modalities]
    if not all(isinstance(array, np.ndarray) for array in arrays):
        return []
    # as float32, so that one number is one number in splits of different types
    rows = [np.ascontiguousarray(np.asarray(array, np.float32)) for array in (*arrays, dataset.label)]
    return [hash(tuple(array[i].tobytes() for array in rows)) for i in range(len(dataset))]


def _recur_by_chance(dataset: Dataset) -> bool:
    """Return whether the features take so few values that equal examples are to be expected."""
    possible = 0.0  # log of the number of different examples
    for m in dataset.modalities:
        for column in np.asarray(dataset.inputs[m]).reshape(len(dataset), -1).T:
            possible += math.log(len(np.unique(column)))
            if possible > math.log(ROOM * len(dataset)):
                return False
    return True
