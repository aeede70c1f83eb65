"""What may be wrong with arrays and splits. `*_problems` list everything; `validate` and `check_splits` raise."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mmjax.data.dataset import Dataset, Splits, Task, TaskKind

RESERVED = ("fusion", "label", "late_fusion", "present", "split")
"""Names that no modality may have: those of experts besides the modalities', and of an npz file's other arrays."""

_ROWS = 1024  # rows a chunk, so that a check never copies a whole array
_SHOWN = 5  # classes that a message lists before it only counts


def name_problems(name: str) -> list[str]:
    """Return what is wrong with a modality's name.

    >>> name_problems("my image")
    ["modality name 'my image' must be letters, digits and underscores, not starting with a digit"]
    """
    if name in RESERVED:
        return [f"modality name {name!r} is taken; rename the array (reserved: {', '.join(RESERVED)})"]
    if not name.isidentifier():
        return [f"modality name {name!r} must be letters, digits and underscores, not starting with a digit"]
    return []


def input_problems(name: str, array: np.ndarray, here: np.ndarray | None = None) -> list[str]:
    """Return what is wrong with a modality's array [N, ...]: type, shape, or a value that float32 cannot hold.

    here: bool [N], the examples that have the modality; None: all. What the others hold does not matter.

    >>> input_problems("audio", np.array([[0.0, 1.0], [np.nan, 1.0]]))
    ['audio holds nan at [1, 0]; every value must be a finite number']
    """
    if array.dtype.kind not in "biuf":
        return [f"{name} has type {array.dtype}; a modality must hold real numbers"]
    if array.ndim < 2:
        return [f"{name} has shape {array.shape}; it must be [N, ...] with at least one axis after the examples"]
    if array.size == 0:
        return [f"{name} has shape {array.shape}: it is empty"]
    index = first_unusable(array, here)
    if index is None:
        return []
    value = array[index].item()
    wanted = "a finite number" if not np.isfinite(value) else "within the range of float32"
    return [f"{name} holds {value!r} at {list(index)}; every value must be {wanted}"]


def first_unusable(array: np.ndarray, here: np.ndarray | None = None) -> tuple[int, ...] | None:
    """Return the index of the first value that is NaN or infinite as a float32, or None; here: bool [N], rows to look at.

    >>> first_unusable(np.array([[1.0], [1e300]]))
    (1, 0)
    """
    if array.dtype.kind != "f":
        return None
    for start in range(0, len(array), _ROWS):
        with np.errstate(over="ignore"):
            finite = np.isfinite(array[start : start + _ROWS].astype(np.float32, copy=False))
        if here is not None:
            finite[~here[start : start + _ROWS]] = True
        if not finite.all():
            row, *rest = (int(i) for i in np.unravel_index(int(finite.argmin()), finite.shape))
            return (start + row, *rest)
    return None


def length_problems(label: np.ndarray, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Return which arrays do not have one entry for each label.

    >>> length_problems(np.zeros(3), {"image": np.zeros((2, 4))})
    ['image has 2 examples, but label has 3; all arrays must have the same length']
    """
    return [
        f"{name} has {array.shape[0] if array.ndim else 'no'} examples, but label has {len(label)}; "
        "all arrays must have the same length"
        for name, array in arrays.items()
        if array.shape[:1] != label.shape[:1]
    ]


def present_problems(present: np.ndarray, names: Iterable[str], count: int) -> list[str]:
    """Return what is wrong with `present`, which must be bool [count, M] with something in every row.

    names: of the M modalities, whose sorted order is that of the columns.

    >>> present_problems(np.array([[True, False], [False, False]]), ("image", "audio"), 2)
    ['present: row 1 has no modality; leave such examples out']
    """
    names = sorted(names)
    order = ", ".join(names)
    if present.dtype != bool:
        return [f"present has type {present.dtype}; it must be bool, a column for each of {order}"]
    if present.shape != (count, len(names)):
        return [
            f"present has shape {present.shape}; expected ({count}, {len(names)}), an example a row and, in this order, "
            f"a column for each of {order}"
        ]
    empty = np.flatnonzero(~present.any(axis=1))
    if not empty.size:
        return []
    shown = ", ".join(str(i) for i in empty[:_SHOWN])
    if empty.size == 1:
        return [f"present: row {shown} has no modality; leave such examples out"]
    more = f" and {empty.size - _SHOWN} more" if empty.size > _SHOWN else ""
    return [f"present: rows {shown}{more} have no modality; leave such examples out"]


def require_complete(splits: Splits, what: str) -> None:
    """Raise ValueError if a modality is missing anywhere; `what` is the thing that needs them all.

    >>> data = Dataset({"a": np.zeros((1, 1))}, np.array([0]), Task("classification", 2))
    >>> require_complete(Splits(data, data, data), "a study")
    """
    for name in ("train", "validation", "test"):
        present = getattr(splits, name).present
        if present is not None:
            raise ValueError(
                f"{what} needs every modality of every example; {int((~present.all(axis=1)).sum())} examples of the "
                f"{name} split lack one"
            )


def infer_task(label: np.ndarray) -> TaskKind | None:
    """Return the kind of task that labels state by themselves, or None where they leave it open.

    Integers or bool [N]: classification. Only 0 and 1, [N, L]: multilabel. Other floats: regression.

    >>> infer_task(np.array([2, 0])), infer_task(np.array([[0.0, 1.0]])), infer_task(np.array([0.3]))
    ('classification', 'multilabel', 'regression')
    """
    if label.ndim == 1 and label.dtype.kind in "biu":
        return "classification"
    if label.ndim == 2 and label.dtype.kind in "biuf" and _is_binary(label):
        return "multilabel"
    if label.ndim in (1, 2) and label.dtype.kind == "f":
        return "regression"
    return None


def label_problems(label: np.ndarray, kind: TaskKind | None, num_outputs: int = 0) -> list[str]:
    """Return what is wrong with labels for this kind of task; `num_outputs` 0: as many as the labels show.

    >>> label_problems(np.array([0, 1, 5]), "classification", num_outputs=3)
    ['label[2] is 5; with 3 classes it must be in 0..2']
    """
    if label.dtype.kind not in "biuf":
        return [f"label has type {label.dtype}; it must hold numbers (number the classes 0, 1, 2, ...)"]
    if label.ndim not in (1, 2):
        return [f"label has shape {label.shape}; it must be [N] or [N, L]"]
    if label.size == 0:
        return [f"label has shape {label.shape}: there are no examples"]
    if kind is None:
        return [
            f"label ({label.dtype} {list(label.shape)}) does not say what it is: classes are integers [N], several "
            "labels an example are 0 and 1 [N, L], real values are floats; or set task"
        ]
    if kind == "classification":
        return _class_problems(label, num_outputs)
    index = first_unusable(label)
    if index is not None:
        return [f"label holds {label[index].item()!r} at {list(index)}; every label must be a finite number"]
    if kind == "multilabel" and not _is_binary(label):
        bad = ~np.isin(label, (0, 1))
        at = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        return [f"label holds {label[at].item()!r} at {list(at)}; multilabel labels must be 0 or 1"]
    width = 1 if label.ndim == 1 else label.shape[1]
    if num_outputs and num_outputs != width:
        return [f"label has {width} values an example, but num_outputs is {num_outputs}; they must be equal"]
    return []


def _class_problems(label: np.ndarray, num_outputs: int) -> list[str]:
    if label.dtype.kind == "f":
        return [f"label has type {label.dtype}; class labels must be integers 0, 1, 2, ..."]
    if label.ndim != 1:
        return [f"label has shape {label.shape}; class labels must have shape [N]"]
    highest = int(label.max())
    count = num_outputs or highest + 1
    bad = label >= count  # as bool: an unsigned label never compares below 0
    if label.dtype.kind == "i":
        bad |= label < 0
    if bad.any():
        at = int(bad.argmax())
        if num_outputs:
            return [f"label[{at}] is {label[at]}; with {count} classes it must be in 0..{count - 1}"]
        return [f"label[{at}] is {label[at]}; class labels must be 0, 1, 2, ..."]
    if count < 2:
        return ["label holds class 0 only; classification needs at least 2 classes"]
    if not num_outputs and count > len(label):
        return [
            f"label[{int(label.argmax())}] is {highest}, which makes {count} classes of {len(label)} examples; "
            "number the classes 0, 1, 2, ... without gaps, or give num_outputs"
        ]
    return []


def _is_binary(label: np.ndarray) -> bool:
    return bool(((label == 0) | (label == 1)).all())


def label_warnings(label: np.ndarray, kind: TaskKind) -> list[str]:
    """Return what labels look like beside the kind of task that was inferred from them.

    >>> label_warnings(np.array([[0.0, 1.0], [1.0, 0.0]]), "multilabel")[0][:40]
    'every row of label has exactly one 1: ta'
    """
    if kind == "multilabel" and label.shape[1] > 1 and bool((label.sum(axis=1) == 1).all()):
        return [
            "every row of label has exactly one 1: taken as multilabel; if the classes exclude each other, store "
            "class numbers [N], else set task='multilabel'"
        ]
    if kind == "regression" and label.ndim == 1 and bool((label == np.round(label)).all()):
        return [
            "label holds floats that are all whole numbers: taken as regression; if they are classes, store them as "
            "integers, else set task='regression'"
        ]
    return []


def absent_outputs(label: np.ndarray, task: Task) -> list[int]:
    """Return the classes (or labels) that no example has; always empty for regression.

    >>> absent_outputs(np.array([0, 2, 2]), Task("classification", 3))
    [1]
    """
    if task.kind == "classification":
        return np.flatnonzero(np.bincount(label, minlength=task.num_outputs) == 0).tolist()
    if task.kind == "multilabel":
        return np.flatnonzero(label.sum(axis=0) == 0).tolist()
    return []


def absence_warnings(label: np.ndarray, task: Task) -> list[str]:
    """Return a warning that names the classes without a training example, `label` being that of training.

    >>> absence_warnings(np.array([0, 2]), Task("classification", 3, ("cat", "dog", "owl")))
    ["class 1 ('dog') has no training example: a model cannot learn it"]
    """
    absent = absent_outputs(label, task)
    if not absent:
        return []
    word = "class" if task.kind == "classification" else "label"
    named = [f"{i} ({task.label_names[i]!r})" if task.label_names else str(i) for i in absent[:_SHOWN]]
    more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
    if len(absent) == 1:
        return [f"{word} {named[0]} has no training example: a model cannot learn it"]
    plural = f"{word}es" if word == "class" else f"{word}s"
    return [f"{plural} {', '.join(named)}{more} have no training example: a model cannot learn them"]


def dataset_problems(dataset: Dataset) -> list[str]:
    """Return everything that is wrong with a split.

    Inputs that are computed on demand are not looked into: their source answers for their values.

    >>> dataset_problems(Dataset({"a": np.zeros((2, 1))}, np.array([0, 3]), Task("classification", 2)))
    ['label[1] is 3; with 2 classes it must be in 0..1']
    """
    problems = [problem for name in dataset.modalities for problem in name_problems(name)]
    for name in dataset.modalities:
        array = dataset.inputs[name]
        if isinstance(array, np.ndarray):
            problems += input_problems(name, array, None if dataset.present is None else dataset.has(name))
    if dataset.present is not None:
        problems += present_problems(dataset.present, dataset.modalities, len(dataset))
    problems += label_problems(dataset.label, dataset.task.kind, dataset.task.num_outputs)
    if dataset.task.kind != "classification" and dataset.label.ndim != 2:
        problems.append(f"label has shape {dataset.label.shape}; for {dataset.task.kind} it must be [N, L]")
    names = dataset.task.label_names
    if names and len(names) != dataset.task.num_outputs:
        problems.append(f"label_names has {len(names)} names, but the task has {dataset.task.num_outputs} outputs")
    return problems


def validate(dataset: Dataset, name: str) -> Dataset:
    """Return `dataset` if nothing is wrong with it; `name` (a split or a source) begins the message otherwise.

    Raises:
      ValueError: NaN or infinite inputs (with modality and first index), labels out of range or of the wrong type,
        a bad name, an empty array; all of it in one message.

    >>> data = Dataset({"a": np.zeros((2, 1))}, np.array([0, 1]), Task("classification", 2))
    >>> validate(data, "train") is data
    True
    """
    raise_problems(name, dataset_problems(dataset))
    return dataset


def raise_problems(name: str, problems: Iterable[str]) -> None:
    """Raise ValueError with all `problems`, one a line, unless there are none; `name` (if any) begins the message.

    >>> raise_problems("train", [])
    """
    problems = list(problems)
    if problems:
        raise ValueError((f"{name}: " if name else "") + "\n  ".join(problems))


def check_splits(splits: Splits) -> Splits:
    """Return `splits` if they are fit for training; every source ends with this.

    Warns (UserWarning) of classes that have no training example.

    Raises:
      ValueError: an empty split, splits that differ in task, modalities or shapes, a modality that no training example
        has, or what `validate` finds.

    >>> data = Dataset({"a": np.zeros((2, 1))}, np.array([0, 1]), Task("classification", 2))
    >>> check_splits(Splits(data, data, data)).test is data
    True
    """
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    for name, dataset in parts.items():
        if len(dataset) == 0:
            raise ValueError(f"{name} split is empty; it needs at least one example")
    for name, dataset in parts.items():
        for what in ("task", "modalities"):
            if getattr(dataset, what) != getattr(splits.train, what):
                raise ValueError(
                    f"{name} split has {what} {getattr(dataset, what)}, train has {getattr(splits.train, what)}"
                )
        for modality in dataset.modalities:
            shape, expected = (part.inputs[modality].shape[1:] for part in (dataset, splits.train))
            if shape != expected:
                raise ValueError(f"{modality} has shape {shape} an example in the {name} split, {expected} in train")
        if dict(dataset.preprocess) != dict(splits.train.preprocess):
            raise ValueError(f"{name} split has preprocessing other than train's; it must be fitted on train alone")
        validate(dataset, f"{name} split")
    for warning in absence_warnings(splits.train.label, splits.train.task):
        warnings.warn(warning, UserWarning, stacklevel=2)
    for modality in splits.train.modalities:
        if not splits.train.has(modality).any():
            raise ValueError(f"no training example has {modality}: leave it out (data.modalities)")
    return splits


def chosen_modalities(wanted: Iterable[str], available: Iterable[str]) -> tuple[str, ...]:
    """Return the modalities to use, sorted: those `wanted`, or every one `available` if none is named.

    Raises:
      ValueError: a modality that is not there (the nearest name is shown), or one named twice.

    >>> chosen_modalities(("audoi",), ("image", "audio"))
    Traceback (most recent call last):
    ...
    ValueError: modalities names 'audoi', which the data do not hold; did you mean 'audio'? (available: audio, image)
    """
    wanted, available = tuple(wanted), tuple(sorted(available))
    for name in wanted:
        if name not in available:
            near = difflib.get_close_matches(name, available, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"modalities names {name!r}, which the data do not hold{hint} (available: {', '.join(available)})"
            )
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"modalities names one twice: {', '.join(wanted)}")
    return tuple(sorted(wanted)) or available


def select(splits: Splits, wanted: Iterable[str]) -> Splits:
    """Return the splits with only the modalities `wanted` (all if none is named); labels stay as they are.

    Raises:
      ValueError: as `chosen_modalities`.

    >>> data = Dataset({"a": np.zeros((1, 1)), "b": np.zeros((1, 1))}, np.array([0]), Task("classification", 2))
    >>> select(Splits(data, data, data), ("b",)).train.modalities
    ('b',)
    """
    names = chosen_modalities(wanted, splits.train.modalities)

    def only(dataset: Dataset) -> Dataset:
        inputs: dict[str, Any] = {name: dataset.inputs[name] for name in names}
        preprocess = {name: f for name, f in dataset.preprocess.items() if name in names}
        present = None if dataset.present is None else np.stack([dataset.has(name) for name in names], axis=1)
        return Dataset(inputs, dataset.label, dataset.task, preprocess, present)

    return Splits(only(splits.train), only(splits.validation), only(splits.test))
