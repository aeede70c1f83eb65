"""One's own data: NumPy arrays in memory, or an npz file with one array a modality, `label` and optionally `split`."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np

from mmjax.config import DataConfig
from mmjax.data.dataset import Dataset, Splits, Task, TaskKind
from mmjax.data.splitting import TRAIN, assign, split_problems
from mmjax.data.standardize import Standardize, fit_standardize
from mmjax.data.tokens import TokenNumbers, token_problems
from mmjax.data.validation import (
    check_splits,
    chosen_modalities,
    infer_task,
    input_problems,
    label_problems,
    label_warnings,
    length_problems,
    name_problems,
    present_problems,
    raise_problems,
)

TaskChoice = Literal["auto", "classification", "multilabel", "regression"]

OTHERS = ("label", "present", "split")
"""Arrays of an npz file that are no modality."""


def array_problems(
    inputs: Mapping[str, np.ndarray],
    label: np.ndarray,
    split: np.ndarray | None = None,
    *,
    present: np.ndarray | None = None,
    task: TaskChoice = "auto",
    num_outputs: int = 0,
    images: Iterable[str] = (),
    tokens: Iterable[str] = (),
) -> list[str]:
    """Return everything that keeps arrays from being a data set; empty if nothing does.

    >>> array_problems({"a": np.ones((2, 3))}, np.array([0, 1, 1]))
    ['a has 2 examples, but label has 3; all arrays must have the same length']
    """
    problems = [] if inputs else ["no modality: there must be at least one array besides label"]
    if present is not None:
        problems += present_problems(present, inputs, len(label) if label.ndim else 0)
    for name, array in inputs.items():
        problems += name_problems(name) + input_problems(name, array, _column(present, inputs, name))
    if task not in get_args(TaskChoice):
        problems.append(f"task must be one of {', '.join(get_args(TaskChoice))}; got {task!r}")
    else:
        problems += label_problems(label, infer_task(label) if task == "auto" else task, num_outputs)
    if label.ndim:
        problems += length_problems(label, {**inputs, **({} if split is None else {"split": split})})
    if split is not None:
        problems += split_problems(split)
    for name in images:
        if name not in inputs:
            problems.append(f"images names {name!r}, which is not a modality ({', '.join(sorted(inputs))})")
        elif inputs[name].ndim not in (3, 4):
            problems.append(f"images names {name}, whose shape is {inputs[name].shape}; an image is [N, H, W(, C)]")
    for name in tokens:
        if name not in inputs:
            problems.append(f"tokens names {name!r}, which is not a modality ({', '.join(sorted(inputs))})")
        else:
            problems += token_problems(name, inputs[name])
    return problems


def _column(present: np.ndarray | None, names: Iterable[str], name: str) -> np.ndarray | None:
    """Return a modality's column of `present`, or None where it has none of the right form."""
    names = sorted(names)
    if present is None or present.dtype != bool or present.ndim != 2 or present.shape[1] != len(names):
        return None
    return present[:, names.index(name)]


def erased(inputs: Mapping[str, np.ndarray], present: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return inputs with 0 where `present` (bool [N, M], columns in the sorted order of the names) says absent.

    >>> erased({"a": np.array([[np.nan], [2.0]])}, np.array([[False], [True]]))["a"].tolist()
    [[0.0], [2.0]]
    """
    if present is None:
        return dict(inputs)
    here = {name: present[:, i] for i, name in enumerate(sorted(inputs))}
    return {
        name: np.where(here[name].reshape(-1, *[1] * (array.ndim - 1)), array, array.dtype.type(0))
        for name, array in inputs.items()
    }


def from_arrays(
    inputs: Mapping[str, np.ndarray],
    label: np.ndarray,
    *,
    split: np.ndarray | None = None,
    present: np.ndarray | None = None,
    task: TaskChoice = "auto",
    num_outputs: int = 0,
    label_names: tuple[str, ...] = (),
    images: Iterable[str] = (),
    standardize: bool = True,
    raw: Iterable[str] = (),
    tokens: Iterable[str] = (),
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Splits:
    """Make training, validation and test split of arrays in memory; any number of modalities >= 1.

    inputs: {modality: [N, ...] numbers}: vector [N, D], sequence [N, T, F], image [N, H, W, C]. A uint8 array of
      three axes, or one named in `images`, is an image [N, H, W] and gets its channel axis.
    label: integers [N] (classification), 0 and 1 [N, L] (multilabel) or floats [N] or [N, L] (regression).
    split: "train", "validation", "test" or 0, 1, 2, an entry an example. Without it, or without validation examples
      in it, examples are drawn with `split_seed`, stratified by class, the same for the same seed and data.
    present: bool [N, M], which examples have which modality, columns in the sorted order of the names. What an array
      holds where it is absent (NaN, say) is not looked at, and statistics are taken over the examples that are there.
    task: "auto" takes the kind from `label`.  num_outputs: number of classes; 0: highest label + 1.
    standardize: give every feature of the last axis (dimension, spectral bin, colour channel) mean 0 and standard
      deviation 1 over training. All numbers are treated alike, pixels and counts too, since a modality whose scale
      is off learns at another speed, and that imbalance would be the file's and not the data's. It is done in
      `preprocess`, so the arrays and later inputs stay raw.
    raw: modalities that are not standardised all the same, such as tags of 0 and 1 for binary units.
    tokens: modalities whose integers [N, T] are token numbers, 0 for padding; encoders get them as int32.

    Warns (UserWarning) of classes that training lacks and of labels that look like another kind of task.

    Raises:
      ValueError: everything that `array_problems` finds, in one message; fractions or seed out of range.

    >>> rng = np.random.default_rng(0)
    >>> splits = from_arrays({"a": rng.normal(size=(20, 3)), "b": rng.normal(size=(20, 5))}, np.arange(20) % 2)
    >>> len(splits.train), len(splits.validation), len(splits.test), splits.train.task.kind
    (14, 2, 4, 'classification')
    """
    inputs = {name: np.asarray(array) for name, array in inputs.items()}
    label = np.asarray(label)
    split = None if split is None else np.asarray(split)
    present = None if present is None else np.asarray(present)
    images, raw, tokens = set(images), set(raw), set(tokens)
    problems = array_problems(
        inputs,
        label,
        split,
        present=present,
        task=task,
        num_outputs=num_outputs,
        images=images,
        tokens=sorted(tokens),
    )
    problems += [
        f"raw names {name!r}, which is not a modality ({', '.join(sorted(inputs))})"
        for name in sorted(raw - set(inputs))
    ]
    raise_problems("", problems)
    kind: TaskKind | None = infer_task(label) if task == "auto" else task
    assert kind is not None  # array_problems reports labels that leave it open
    if task == "auto":
        for warning in label_warnings(label, kind):
            warnings.warn(warning, UserWarning, stacklevel=2)
    label = stored_label(label, kind)
    outputs = int(label.max()) + 1 if kind == "classification" else label.shape[1]
    meaning = Task(kind, num_outputs or outputs, label_names)
    codes = assign(
        split,
        label if kind == "classification" else np.zeros(len(label), np.int8),
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=split_seed,
    )
    training = codes == TRAIN
    preprocess: dict[str, Standardize | TokenNumbers] = {}
    for name, array in inputs.items():
        add_channel = array.ndim == 3 and (name in images or array.dtype == np.uint8)
        here = _column(present, inputs, name)
        seen = training if here is None else training & here
        if not seen.any():
            raise ValueError(f"no training example has {name}: leave it out (modalities)")
        if name in tokens:
            preprocess[name] = TokenNumbers()
        elif standardize and name not in raw:
            preprocess[name] = fit_standardize(array[seen], add_channel=add_channel)
        elif add_channel:
            preprocess[name] = Standardize((0.0,), (1.0,), add_channel=True)

    def part(code: int) -> Dataset:
        chosen = np.flatnonzero(codes == code)
        here = None if present is None else present[chosen]
        arrays = erased({name: array[chosen] for name, array in inputs.items()}, here)
        stored = {name: stored_input(array) for name, array in arrays.items()}
        return Dataset(stored, label[chosen], meaning, preprocess, here)

    return check_splits(Splits(part(0), part(1), part(2)))


def stored_input(array: np.ndarray) -> np.ndarray:
    """Return inputs as they are kept: uint8 as it is (a batch becomes float32 when it is gathered), else float32.

    Token numbers, too: they become integers again in the compiled step.

    >>> stored_input(np.array([[1, 2]])).dtype
    dtype('float32')
    """
    return array if array.dtype == np.uint8 else array.astype(np.float32, copy=False)


def stored_label(label: np.ndarray, kind: TaskKind) -> np.ndarray:
    """Return labels as they are kept: int32 [N] for classification, else float32 [N, L].

    >>> stored_label(np.array([0.5, 2.0]), "regression").shape
    (2, 1)
    """
    if kind == "classification":
        return label.astype(np.int32)
    return label.reshape(len(label), -1).astype(np.float32)


def read_npz(path: str | Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the arrays of an npz file by name, and what kept others from being read. Never unpickles.

    Raises:
      FileNotFoundError: no file at `path`.
      ValueError: a file that is not an npz archive.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no file at {str(path)!r}; give an npz file (numpy.savez)")
    arrays, problems = {}, []
    with path.open("rb") as file:  # opened here: numpy leaves a file that it cannot read open
        try:
            archive = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile):  # what numpy says invites to unpickle it
            raise ValueError(f"{path} is not an npz file (numpy.savez), or is damaged") from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError(f"{path} holds one bare array; an npz file (numpy.savez) has one a modality, and label")
        for name in archive.files:
            try:
                arrays[name] = archive[name]
            except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
                why = "it holds Python objects" if "allow_pickle" in str(error) else str(error)
                problems.append(f"{name} cannot be read: {why}; store plain numbers or strings")
    return arrays, problems


def read_inputs(path: str | Path, modalities: Iterable[str]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Return the inputs of `modalities` from an npz file, for prediction, and which are there; others are not looked at.

    The second is bool [N, M], the columns of the file's `present` for these modalities, sorted; None if it has no such
    array. Its columns in the file are those of all arrays that may be modalities, sorted. Absent inputs come out as 0.

    Raises:
      FileNotFoundError: no file at `path`.
      ValueError: a modality that is missing or cannot be read, lengths that differ, NaN or infinite values, a `present`
        of another form or with a row in which none of these modalities is there.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "new.npz"
    ...     np.savez(path, sound=np.zeros((3, 8)))
    ...     read_inputs(path, ["sound"])[0]["sound"].shape
    (3, 8)
    """
    arrays, unreadable = read_npz(path)
    wanted = tuple(modalities)
    problems = [problem for problem in unreadable if problem.split(" ", 1)[0] in wanted]
    raise_problems(str(path), problems)
    held = sorted(name for name in arrays if name not in OTHERS)
    absent = sorted(set(wanted) - set(held))
    if absent:
        raise ValueError(f"{path} has no array {absent[0]!r}, which the model takes (it has {', '.join(held)})")
    names = tuple(sorted(wanted))
    inputs = {name: arrays[name] for name in names}
    if len({len(array) for array in inputs.values() if array.ndim}) > 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in inputs.items())
        raise ValueError(f"{path}: all modalities must have the same number of examples, got {lengths}")
    present = arrays.get("present")
    if present is not None:
        count = max(len(array) if array.ndim else 0 for array in inputs.values())
        raise_problems(str(path), present_problems(present, held, count))
        present = present[:, [held.index(name) for name in names]]
        raise_problems(str(path), present_problems(present, names, count))
    problems = [p for name in names for p in input_problems(name, inputs[name], _column(present, names, name))]
    raise_problems(str(path), problems)
    return {name: stored_input(array) for name, array in erased(inputs, present).items()}, present


@dataclass(frozen=True, kw_only=True)
class Npz(DataConfig):
    """One's own arrays, in an npz file.

    The file holds one array a modality, `label`, and optionally `split` and `present`, as `from_arrays` takes them.

    Example:
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "mine.npz"
    ...     np.savez(path, sound=np.zeros((20, 8)), picture=np.zeros((20, 4, 4, 1)), label=np.arange(20) % 2)
    ...     splits = Npz(path=str(path)).load()
    >>> splits.train.modalities, splits.train.task.kind, splits.train.task.num_outputs
    (('picture', 'sound'), 'classification', 2)
    """

    name: str = "npz"
    path: str = ""
    """The npz file."""
    task: TaskChoice = "auto"
    """What the labels are; auto: integers [N] are classes, 0 and 1 [N, L] labels, other floats real values."""
    num_outputs: int = 0
    """Number of classes; 0: highest label + 1."""
    images: tuple[str, ...] = ()
    """Modalities that are images [N, H, W] without a channel axis (uint8 arrays of that shape are taken so)."""
    standardize: bool = True
    """Give every feature mean 0 and standard deviation 1 over the training split."""
    raw: tuple[str, ...] = ()
    """Modalities that are not standardised all the same, such as tags of 0 and 1."""
    tokens: tuple[str, ...] = ()
    """Modalities whose integers [N, T] are token numbers, 0 for padding; never standardised."""
    validation_fraction: float = 0.1
    """Share for validation where the file has no `split`; of training where `split` names no validation example."""
    test_fraction: float = 0.2
    """Share for the test where the file has no `split`."""
    split_seed: int = 0
    """Seed of the splits that are drawn."""

    needs: ClassVar[str] = "an npz file: one array a modality, label, optionally split and present (--data.path FILE)"

    def load(self) -> Splits:
        """Read the file, check all of it, and return its splits.

        Raises:
          FileNotFoundError: no file at `path`.
          ValueError: whatever is wrong with the arrays (`mmjax data check FILE` lists it too).
        """
        if not self.path:
            raise ValueError("data.path is empty; name the npz file to load")
        arrays, problems = read_npz(self.path)
        if "label" not in arrays and not any(problem.startswith("label ") for problem in problems):
            problems.append("there is no array `label`")
        raise_problems(self.path, problems)
        held = sorted(name for name in arrays if name not in OTHERS)
        names = chosen_modalities(self.modalities, held)
        present = arrays.get("present")
        if present is not None:
            raise_problems(self.path, present_problems(present, held, len(arrays["label"])))
            present = present[:, [held.index(name) for name in names]]

        def named(option: tuple[str, ...]) -> tuple[str, ...]:  # what it says of modalities that are left out is moot
            return tuple(name for name in option if name in names or name not in held)

        try:
            return from_arrays(
                {name: arrays[name] for name in names},
                arrays["label"],
                split=arrays.get("split"),
                present=present,
                task=self.task,
                num_outputs=self.num_outputs,
                images=named(self.images),
                standardize=self.standardize,
                raw=named(self.raw),
                tokens=named(self.tokens),
                validation_fraction=self.validation_fraction,
                test_fraction=self.test_fraction,
                split_seed=self.split_seed,
            )
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
