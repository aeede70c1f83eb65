"""A dataset: arrays by modality, labels, and what the labels mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

TaskKind = Literal["classification", "multilabel", "regression"]


class ArrayLike(Protocol):
    """What an input must offer: a first axis of examples that is indexed by an integer array.

    NumPy arrays do; so does an array computed on demand (`avmnist` mixes waveforms when a batch asks for them).
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __getitem__(self, index: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Task:
    """What a label says.

    kind: "classification" (labels int32 [N] in 0..num_outputs-1), "multilabel" (float32 [N, num_outputs] of 0 and 1)
    or "regression" (float32 [N, num_outputs]).

    >>> Task("classification", 10).num_outputs
    10
    """

    kind: TaskKind
    num_outputs: int
    label_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """One split: `inputs` {modality: [N, ...]}, `label` [N] or [N, L], `task`, and device-side preprocessing.

    present: bool [N, M], which examples have which modality, columns in the order of `modalities`; what an input holds
    where it is absent is never looked at. None: everything is there (an array that says so becomes None).
    preprocess: {modality: pure function of a float32 batch [B, ...]}, run inside the compiled step (a spectrogram,
    a standardisation); a modality without an entry passes unchanged. Functions must be hashable and constant.

    Raises:
      ValueError: no modality, arrays whose lengths differ, preprocessing of a modality that is not there, or `present`
        of another shape or type.
        What is in the arrays (NaN, labels out of range) is the matter of `mmjax.data.validate`.

    >>> task = Task("classification", num_outputs=2)
    >>> data = Dataset({"a": np.zeros((3, 4)), "b": np.zeros((3, 8, 8, 1))}, np.array([0, 1, 1]), task)
    >>> len(data), data.modalities
    (3, ('a', 'b'))
    """

    inputs: Mapping[str, ArrayLike]
    label: np.ndarray
    task: Task
    preprocess: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    present: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ValueError("inputs holds no modality; a dataset needs at least one array besides label")
        if len(self.label.shape) == 0:
            raise ValueError("label must have a first axis of examples, got a single value")
        for name in self.modalities:
            shape = self.inputs[name].shape
            if shape[:1] != self.label.shape[:1]:
                raise ValueError(f"{name} has shape {shape}, but label has {len(self)} examples: lengths must be equal")
        unknown = sorted(set(self.preprocess) - set(self.inputs))
        if unknown:
            raise ValueError(f"preprocess names {unknown}, but the modalities are {list(self.modalities)}")
        if self.present is None:
            return
        if self.present.shape != (len(self), len(self.modalities)) or self.present.dtype != bool:
            raise ValueError(
                f"present must be bool [{len(self)}, {len(self.modalities)}], an example a row and a column for each of "
                f"{', '.join(self.modalities)}; got {self.present.dtype} {list(self.present.shape)}"
            )
        if self.present.all():
            object.__setattr__(self, "present", None)  # so that training is what it is without the array, to the bit

    def has(self, modality: str) -> np.ndarray:
        """Return bool [N], the examples that have a modality.

        >>> here = np.array([[True, True], [False, True]])
        >>> task = Task("classification", 2)
        >>> Dataset({"b": np.zeros((2, 1)), "a": np.zeros((2, 1))}, np.array([0, 1]), task, present=here).has("a").tolist()
        [True, False]
        """
        if self.present is None:
            return np.ones(len(self), bool)
        return self.present[:, self.modalities.index(modality)]

    def __len__(self) -> int:
        return int(self.label.shape[0])

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, sorted."""
        return tuple(sorted(self.inputs))


@dataclass(frozen=True)
class Splits:
    """Training, validation and test split of one source.

    >>> data = Dataset({"a": np.zeros((3, 4))}, np.array([0, 1, 1]), Task("classification", num_outputs=2))
    >>> len(Splits(train=data, validation=data, test=data).test)
    3
    """

    train: Dataset
    validation: Dataset
    test: Dataset
