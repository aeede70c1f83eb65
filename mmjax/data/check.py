"""What an npz file holds and everything that is wrong with it, without loading it for training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmjax.data.arrays import OTHERS, TaskChoice, array_problems, read_npz, stored_label
from mmjax.data.dataset import Task, TaskKind
from mmjax.data.splitting import SPLIT_NAMES, split_codes, split_problems
from mmjax.data.validation import absence_warnings, infer_task, label_problems, label_warnings, present_problems


@dataclass(frozen=True)
class ArrayReport:
    """One array of the file; `low` and `high` are over its finite values, None where there are no numbers.

    >>> ArrayReport("image", "image", (10, 8, 8, 1), "float32", 0.0, 1.0).row()
    ('image', 'image', '10 x 8 x 8 x 1', 'float32', '0 .. 1')
    """

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    low: float | None
    high: float | None

    def row(self) -> tuple[str, ...]:
        """Return name, role, shape, type and range as text."""
        span = "" if self.low is None else f"{self.low:.6g} .. {self.high:.6g}"
        return (self.name, self.role, " x ".join(map(str, self.shape)), self.dtype, span)


@dataclass(frozen=True)
class Report:
    """What `describe` found.

    problems: what must be put right before the file loads; warnings: what loads, but may not be meant.
    counts: {split: examples of each class (or label)}, the key "all" where the file has no split of its own; empty
    for regression. sizes: {split: examples}. missing: {modality: examples that lack it}, where the file has `present`.

    >>> Report("x.npz", (), None, 0, {}, {}, ("no label",), ()).ok
    False
    """

    path: str
    arrays: tuple[ArrayReport, ...]
    task: TaskKind | None
    num_outputs: int
    sizes: dict[str, int]
    counts: dict[str, tuple[int, ...]]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    missing: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True if the file can be loaded."""
        return not self.problems

    def rows(self) -> list[tuple[str, ...]]:
        """Return one row an array: name, role, shape, type, range."""
        return [array.row() for array in self.arrays]

    def class_rows(self) -> list[tuple[str, ...]]:
        """Return one row a class: its number, then its examples in each split of `counts`, in that order."""
        if not self.counts:
            return []
        return [(str(i), *(str(counts[i]) for counts in self.counts.values())) for i in range(self.num_outputs)]


def describe(
    path: str | Path, *, task: TaskChoice = "auto", num_outputs: int = 0, images: Iterable[str] = ()
) -> Report:
    """Return what the npz file at `path` holds, with all its problems; the options are those of `Npz`.

    Raises:
      FileNotFoundError: no file at `path`.

    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "mine.npz")
    ...     np.savez(path, audio=np.array([[1.0], [np.nan]]), label=np.array([0, 1, 1]))
    ...     report = describe(path)
    >>> report.task, len(report.problems), report.rows()[0]
    ('classification', 2, ('audio', 'vector', '2 x 1', 'float64', '1 .. 1'))
    """
    images = tuple(images)
    try:
        arrays, problems = read_npz(path)
    except ValueError as error:
        return Report(str(path), (), None, 0, {}, {}, (str(error),), ())
    label, split, present = (arrays.get(name) for name in ("label", "split", "present"))
    inputs = {name: array for name, array in arrays.items() if name not in OTHERS}
    if label is None:
        if not any(problem.startswith("label ") for problem in problems):
            problems.append("there is no array `label`")
        # modalities are still checked against one another: the first stands in for the missing labels' length
        count = next((len(array) for array in inputs.values() if array.ndim), 0)
        stand_in = np.zeros(count)
        found = array_problems(inputs, stand_in, split, present=present, images=images)
        problems += [problem for problem in found if not problem.startswith("label ")]
    else:
        problems += array_problems(
            inputs, label, split, present=present, task=task, num_outputs=num_outputs, images=images
        )
    shown = tuple(_array_report(name, array, images) for name, array in arrays.items())
    missing = _missing(inputs, present)
    inputs = _there(inputs, present)
    kind = None if label is None else infer_task(label) if task == "auto" else task
    if label is None or kind is None or label_problems(label, kind, num_outputs):
        return Report(str(path), shown, kind, 0, {}, {}, tuple(problems), tuple(_input_warnings(inputs)), missing)
    warnings = _input_warnings(inputs) + (label_warnings(label, kind) if task == "auto" else [])
    label = stored_label(label, kind)
    outputs = num_outputs or (int(label.max()) + 1 if kind == "classification" else label.shape[1])
    meaning = Task(kind, outputs)
    parts = _parts(label, split)
    warnings += absence_warnings(parts.get("train", label), meaning)
    return Report(
        str(path),
        shown,
        kind,
        outputs,
        {name: len(part) for name, part in parts.items()},
        {} if kind == "regression" else {name: _counts(part, meaning) for name, part in parts.items()},
        tuple(problems),
        tuple(warnings),
        missing,
    )


def _parts(label: np.ndarray, split: np.ndarray | None) -> dict[str, np.ndarray]:
    """Labels by split; all together where the split is absent or of no use."""
    if split is None or split.shape != label.shape[:1] or split_problems(split):
        return {"all": label}
    codes = split_codes(split)
    return {name: label[codes == code] for code, name in enumerate(SPLIT_NAMES) if (codes == code).any()}


def _counts(label: np.ndarray, task: Task) -> tuple[int, ...]:
    if task.kind == "classification":
        return tuple(np.bincount(label, minlength=task.num_outputs).tolist())
    return tuple(label.sum(axis=0).astype(int).tolist())


def _array_report(name: str, array: np.ndarray, images: tuple[str, ...]) -> ArrayReport:
    low = high = None
    if array.dtype.kind in "biuf":
        finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
        if finite.size:
            low, high = float(finite.min()), float(finite.max())
    role = name if name in OTHERS else _kind(array, name in images)
    return ArrayReport(name, role, array.shape, str(array.dtype), low, high)


def _kind(array: np.ndarray, named_image: bool) -> str:
    """What the shape says, in the words of `from_arrays`."""
    if array.ndim == 3:
        return "image" if named_image or array.dtype == np.uint8 else "sequence"
    return {2: "vector", 4: "image"}.get(array.ndim, "array")


def _missing(inputs: dict[str, np.ndarray], present: np.ndarray | None) -> dict[str, int]:
    """How many examples lack each modality; empty where `present` does not say so in the right form."""
    if present is None or present_problems(present, inputs, len(present) if present.ndim else 0):
        return {}
    return {name: int((~present[:, i]).sum()) for i, name in enumerate(sorted(inputs))}


def _there(inputs: dict[str, np.ndarray], present: np.ndarray | None) -> dict[str, np.ndarray]:
    """Inputs at the examples that have them, as far as `present` is of the right form."""
    if present is None or not _missing(inputs, present):
        return inputs
    here = {name: present[:, i] for i, name in enumerate(sorted(inputs))}
    return {name: x[here[name]] if x.shape[:1] == present.shape[:1] else x for name, x in inputs.items()}


def _input_warnings(inputs: dict[str, np.ndarray]) -> list[str]:
    """What standardisation in float32 would bring to light: inputs that say nothing, or lose their digits."""
    warnings = []
    for name, array in inputs.items():
        if array.dtype.kind not in "biuf" or array.ndim < 2 or array.size == 0:
            continue
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            continue
        if bool((array == array[:1]).all()) and len(array) > 1:
            warnings.append(f"{name} is the same for every example: it says nothing about the label")
            continue
        columns = array.reshape(-1, array.shape[-1])
        mean, deviation = columns.mean(axis=0, dtype=np.float64), columns.std(axis=0, dtype=np.float64)
        lossy = (deviation > 0) & (np.abs(mean) > 1e5 * deviation)
        if lossy.any():
            at = int(lossy.argmax())
            warnings.append(
                f"{name} varies by {deviation[at]:.3g} around {mean[at]:.9g} in feature {at}: float32 loses most of "
                "that; subtract the mean before saving"
            )
    return warnings
