"""The sweep: subsets of the modalities x sample sizes x seeds, to risks and quality gaps.

Three disjoint splits: encoders and heads learn from samples of the training split, the head is refitted on the
validation split, everything is evaluated on the test split. Seed s learns from the same examples whatever the subset,
and a larger sample holds the smaller one, so that comparisons are paired.

What the spread over seeds shows: other training samples (of the same training split) and other initial parameters. What
it cannot show, other evaluation examples, is told by the spread over groups of them, and intervals hold both.
"""

from __future__ import annotations

import numbers
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config_file import to_json
from mmjax.data import Splits, Task, require_complete
from mmjax.evaluation.metrics import score_name, task_metrics
from mmjax.evaluation.subsets import Subset, choose_subsets, subset_name
from mmjax.theory.disjoint import check_disjoint
from mmjax.theory.intervals import Interval, mean_interval
from mmjax.theory.latent_quality import RiskDecomposition, latent_representation_quality, risk_decomposition
from mmjax.theory.learner import Learner
from mmjax.theory.sweep_file import SweepFile

GROUPS = 50
"""Groups of evaluation examples, at most: enough for an interval, few enough for a line of a file."""


@dataclass(frozen=True)
class Cell:
    """One subset at one sample size; tuples have one entry a seed.

    risk, score: of the trained pair h o g (score: accuracy, mAP or R2); head_risk: of the head refitted on the frozen
    encoders, the estimate of inf_h r(h o g). risk_groups, head_risk_groups: the means over seeds in each group of
    evaluation examples; the same groups for every subset. seconds: wall time, compilation included.

    >>> cell = Cell(
    ...     subset=("audio",), n=100, risk=(0.5, 0.7), score=(0.8, 0.75), head_risk=(0.5, 0.6),
    ...     risk_groups=(0.6, 0.6), head_risk_groups=(0.55, 0.55), seconds=2.0,
    ... )
    >>> round(cell.risk_interval.mean, 3), round(cell.score_interval.mean, 3)
    (0.6, 0.775)
    """

    subset: Subset
    n: int
    risk: tuple[float, ...]
    score: tuple[float, ...]
    head_risk: tuple[float, ...]
    risk_groups: tuple[float, ...]
    head_risk_groups: tuple[float, ...]
    seconds: float

    @property
    def risk_interval(self) -> Interval:
        """The 95 % interval of the risk. Raises ValueError for a single seed."""
        return mean_interval(self.risk, self.risk_groups)

    @property
    def score_interval(self) -> Interval:
        """The 95 % interval of the score, over seeds alone. Raises ValueError for a single seed."""
        return mean_interval(self.score)


@dataclass(frozen=True)
class Comparison:
    """A larger set M beside a subset N of it, at one sample size; negative: M is better.

    gap: r_M - r_N; gamma: the quality gap; both with their 95 % intervals. split: the exact identity of the means.

    >>> from mmjax.theory import LeastSquares, StrongWeak
    >>> splits = StrongWeak(train_examples=99, validation_examples=50, test_examples=50).load()
    >>> sweep = subset_risk_sweep(LeastSquares(), splits, sizes=[20], seeds=2)
    >>> found = sweep.compare(("strong", "weak"), ("weak",), n=20)
    >>> found.gap.high < 0, round(found.split.gap - found.gap.mean, 6) == 0  # with the strong modality it is better
    (True, True)
    """

    larger: Subset
    smaller: Subset
    n: int
    gap: Interval
    gamma: Interval
    split: RiskDecomposition


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    >>> from mmjax.theory import LeastSquares, StrongWeak
    >>> splits = StrongWeak(train_examples=99, validation_examples=50, test_examples=50).load()
    >>> sweep = subset_risk_sweep(LeastSquares(), splits, sizes=[20], seeds=2)
    >>> sweep.modalities, sweep.risk_unit, sweep.score, sweep.seeds
    (('strong', 'weak'), 'squared error', 'r2', 2)
    >>> [c.n for c in sweep.additions("weak")], sweep.cell(("weak",), 20).subset
    ([20], ('weak',))
    """

    task: Task
    modalities: tuple[str, ...]
    risk_unit: str
    cells: tuple[Cell, ...]

    @property
    def score(self) -> str:
        """Name of the score."""
        return score_name(self.task)

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """The subsets, small ones first."""
        return tuple(dict.fromkeys(sorted((c.subset for c in self.cells), key=lambda s: (len(s), s))))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sample sizes, ascending."""
        return tuple(sorted({cell.n for cell in self.cells}))

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.cells[0].risk)

    def cell(self, subset: Subset, n: int) -> Cell:
        """Return one cell. Raises KeyError if it was not run."""
        for cell in self.cells:
            if (cell.subset, cell.n) == (subset, n):
                return cell
        raise KeyError(f"no cell {subset_name(subset)}, n = {n}")

    def compare(self, larger: Subset, smaller: Subset, n: int) -> Comparison:
        """Return how `larger` does beside `smaller`, a subset of it. Raises KeyError, and ValueError for one seed."""
        m, k = self.cell(larger, n), self.cell(smaller, n)

        def difference(name: str) -> Interval:
            seeds, groups = (np.subtract(getattr(m, field), getattr(k, field)) for field in (name, f"{name}_groups"))
            return mean_interval(seeds, groups)

        split = risk_decomposition(
            risk_m=float(np.mean(m.risk)),
            head_risk_m=float(np.mean(m.head_risk)),
            risk_n=float(np.mean(k.risk)),
            head_risk_n=float(np.mean(k.head_risk)),
        )
        return Comparison(larger, smaller, n, difference("risk"), difference("head_risk"), split)

    def additions(self, modality: str) -> list[Comparison]:
        """Return what adding one modality does, size by size: the largest set that was run with and without it.

        Empty if no such pair was run.
        """
        known = set(self.subsets)
        pairs = [(s, without) for s in known if modality in s if (without := _without(s, modality)) in known]
        if not pairs:
            return []
        larger, smaller = min(pairs, key=lambda pair: (-len(pair[0]), pair))
        run = {(cell.subset, cell.n) for cell in self.cells}
        return [self.compare(larger, smaller, n) for n in self.sizes if (larger, n) in run and (smaller, n) in run]

    def quality(self, subset: Subset, n: int, oracle_risk: float) -> np.ndarray:
        """Return eta of each seed, from the refitted heads' risks; see `latent_representation_quality`."""
        return latent_representation_quality(self.cell(subset, n).head_risk, oracle_risk)


def _without(subset: Subset, modality: str) -> Subset:
    return tuple(m for m in subset if m != modality)


def subset_risk_sweep(
    learner: Learner,
    splits: Splits,
    *,
    sizes: Sequence[int],
    seeds: int,
    subsets: Iterable[str] = ("all",),
    first_seed: int = 0,
    band: bool = True,
    path: str | Path | None = None,
    on_cell: Callable[[Cell, int, int], None] | None = None,
) -> Sweep:
    """Learn from every subset at every size with every seed, and return risks, scores and refitted heads' risks.

    learner: `LeastSquares()` or `Trained(config)`. splits: see the module; training is what samples are drawn from.
    sizes: numbers of training examples. seeds: how many, from `first_seed` on. subsets: as `choose_subsets` takes them.
    band: intervals will be asked for; needs 2 seeds.
    path: a JSONL file, one cell a line, written as they come; cells that it already holds are not run again.
    on_cell: hears (cell, cells done, cells in all) after each.

    Warns (UserWarning) of splits that share a few examples, and of samples of more than half the training split: seeds
    then learn from much the same examples, and their spread is less than that of fresh samples.

    Raises:
      ValueError: an unknown modality in a subset, a size above the training split or below 1, no size, too few seeds,
        too few test examples, overlapping splits, examples that lack a modality, a file of another sweep.

    >>> from mmjax.theory import LeastSquares, StrongWeak
    >>> splits = StrongWeak(train_examples=400, validation_examples=200, test_examples=200).load()
    >>> sweep = subset_risk_sweep(LeastSquares(), splits, sizes=[50, 200], seeds=3)
    >>> sweep.subsets, sweep.sizes, len(sweep.cell(("strong", "weak"), 200).risk)
    ((('strong',), ('weak',), ('strong', 'weak')), (50, 200), 3)
    """
    require_complete(splits, "a study")
    wanted = choose_subsets(subsets, splits.train.modalities)
    sizes = sorted(set(_whole_numbers("sizes", sizes)))
    (seeds,) = _whole_numbers("seeds", [seeds])
    total = len(splits.train)
    if not sizes or sizes[0] < 1:
        raise ValueError(f"sizes must hold sample sizes of at least 1, got {sizes}")
    if sizes[-1] > total:
        raise ValueError(f"sizes holds {sizes[-1]}, but the training split has {total} examples")
    if seeds < 1 or (band and seeds < 2):
        least = "2, for a band needs a spread over seeds" if band else "1"
        raise ValueError(f"seeds must be at least {least}; got {seeds}")
    if band and len(splits.test) < 2:
        raise ValueError(f"the test split has {len(splits.test)} example; an interval needs at least 2")
    check_disjoint(splits)
    large = [n for n in sizes if 2 * n > total]
    if large:
        warnings.warn(
            f"samples of {', '.join(map(str, large))} are more than half of the {total} training examples: seeds learn "
            "from much the same examples, so the intervals are narrower than those of fresh samples",
            UserWarning,
            stacklevel=2,
        )
    header = {
        "learner": learner.identity(),
        "seeds": seeds,
        "first_seed": first_seed,
        "task": to_json(splits.train.task),
        "data": _fingerprint(splits),
    }
    todo = [(subset, n) for subset in wanted for n in sizes]
    cells: dict[tuple[Subset, int], Cell] = {}
    numbers = list(range(first_seed, first_seed + seeds))
    with SweepFile(path, header) as file:
        for row in file.rows:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
            cell = Cell(**values)
            cells[cell.subset, cell.n] = cell
        for done, (subset, n) in enumerate(todo, start=1):
            if (subset, n) not in cells:
                cells[subset, n] = _run_cell(learner, splits, subset, n, numbers)
                file.write(to_json_row(cells[subset, n]))
            if on_cell is not None:
                on_cell(cells[subset, n], done, len(todo))
    return Sweep(
        task=splits.train.task,
        modalities=splits.train.modalities,
        risk_unit=learner.risk_unit(splits.train.task),
        cells=tuple(cells[key] for key in todo),
    )


def to_json_row(cell: Cell) -> dict[str, Any]:
    """Return a cell as JSON values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(cell).items()}


def _run_cell(learner: Learner, splits: Splits, subset: Subset, n: int, seeds: list[int]) -> Cell:
    start = time.perf_counter()
    task, label = splits.train.task, splits.test.label
    predictions = learner.predict(splits, subset, n, seeds)
    risks, head_risks = (
        np.asarray(jax.device_get(learner.risks(task, logits, jnp.asarray(label))), np.float64)
        for logits in predictions
    )
    logits = np.asarray(predictions.trained)
    scores = [task_metrics(task, of_seed, label)[score_name(task)] for of_seed in logits]
    return Cell(
        subset=subset,
        n=n,
        risk=_floats(risks.mean(axis=1)),
        score=_floats(scores),
        head_risk=_floats(head_risks.mean(axis=1)),
        risk_groups=_groups(risks.mean(axis=0)),
        head_risk_groups=_groups(head_risks.mean(axis=0)),
        seconds=time.perf_counter() - start,
    )


def _groups(losses: np.ndarray) -> tuple[float, ...]:
    """Return the means of the examples' losses [N] in groups that no order of the source has a part in."""
    order = np.random.default_rng(0).permutation(len(losses))
    return _floats([losses[part].mean() for part in np.array_split(order, min(GROUPS, len(losses)))])


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _fingerprint(splits: Splits) -> dict[str, Any]:
    """Return what tells data apart: names, sizes, labels, and inputs that are there (some are computed on demand)."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {"modalities": list(splits.train.modalities)} | {
        name: {"examples": len(part), "labels": _checksum(part.label)}
        | {f"inputs.{m}": _checksum(x) for m, x in part.inputs.items() if isinstance(x, np.ndarray)}
        for name, part in parts.items()
    }


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _whole_numbers(name: str, values: Iterable[Any]) -> list[int]:
    """Return integers. Raises ValueError for anything else."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a sequence of integers, got {values!r}")
    found = list(values)
    wrong = [value for value in found if not isinstance(value, numbers.Integral)]
    if wrong:
        raise ValueError(f"{name} must hold integers, got {wrong[0]!r}")
    return [int(value) for value in found]
