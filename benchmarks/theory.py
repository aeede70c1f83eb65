"""What the study of subsets costs, and how its figures stand beside the published ones.

python benchmarks/theory.py sweep      # 15 subsets x 4 sizes x 10 seeds, linear: wall time
python benchmarks/theory.py seeds      # seeds side by side against a Python loop over the same jitted run
python benchmarks/theory.py published  # the synthetic study beside the paper's table
python benchmarks/theory.py reversal   # more modalities are worse while samples are few
python benchmarks/theory.py bound      # the terms of Theorem 1 on the synthetic study
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from mmjax import Config, ModelConfig, TrainConfig
from mmjax.data import AvDigits, Splits, select
from mmjax.evaluation.subsets import Subset
from mmjax.models import ConcatConfig, MLPConfig
from mmjax.optim import JointConfig
from mmjax.theory import (
    LeastSquares,
    Overlap,
    Trained,
    overlap_risk,
    rademacher_linear,
    strong_weak_gammas,
    subset_risk_sweep,
    theorem1_bound,
)
from mmjax.theory import least_squares_learner as least_squares
from mmjax.theory import trained_learner as trained
from mmjax.theory.intervals import mean_interval
from mmjax.theory.learner import Predictions, samples
from mmjax.theory.overlap import PUBLISHED
from mmjax.train.optimizer import AdamConfig

SEEDS = 10


def table(title: str, *headings: str) -> Table:
    made = Table(title=title)
    for k, heading in enumerate(headings):
        made.add_column(heading, justify="left" if k == 0 else "right")
    return made


def sweep(console: Console) -> None:
    """The linear sweep on four overlapping modalities of 100 dimensions."""
    splits = Overlap(w=0.5, train_examples=16_000).load()
    wall, busy = time.perf_counter(), time.process_time()
    found = subset_risk_sweep(LeastSquares(), splits, sizes=[50, 200, 1000, 5000], seeds=SEEDS)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    console.print(
        f"{len(found.subsets)} subsets x {len(found.sizes)} sizes x {SEEDS} seeds: {wall:.1f} s wall, {busy:.1f} s of "
        f"processor, compilation included, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


def seeds(console: Console) -> None:
    """Rates of whole cells (training, refitting, evaluation), compiled beforehand."""
    digits = AvDigits().load()
    overlap = Overlap(w=0.5, train_examples=8_000, validation_examples=1_000, test_examples=1_000).load()

    def mlp(width: int, data: Splits, batch_size: int) -> Trained:
        config = Config(
            data=AvDigits(),
            model=ModelConfig(
                encoders={m: MLPConfig(width=width, depth=1) for m in data.train.modalities},
                fusion=ConcatConfig(hidden=()),
            ),
            method=JointConfig(),
            optimizer=AdamConfig(),
            train=TrainConfig(epochs=20, batch_size=batch_size),
        )
        return Trained(config)

    small = Overlap(w=0.5, dim=10, train_examples=8_000, validation_examples=1_000, test_examples=1_000).load()
    cases: dict[str, tuple[LeastSquares | Trained, Splits, Subset, int]] = {
        "MLPs, width 8, batch 16, 40 inputs": (mlp(8, small, 16), small, small.train.modalities, 400),
        "MLPs, width 16, batch 32, avdigits": (mlp(16, digits, 32), digits, digits.train.modalities, 400),
        "MLPs, width 64, batch 64, avdigits": (mlp(64, digits, 64), digits, digits.train.modalities, 400),
        "least squares, 400 inputs, n = 1000": (LeastSquares(), overlap, overlap.train.modalities, 1000),
    }
    made = table(f"{SEEDS} seeds, seconds a cell (best of 3)", "learner", "Python loop", "vmap", "ratio")
    for name, (learner, data, subset, n) in cases.items():
        loop, together = timed(learner, select(data, subset), subset, n)
        made.add_row(name, f"{loop:.3f}", f"{together:.3f}", f"{loop / together:.1f}")
    console.print(made)
    console.print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


def timed(learner: LeastSquares | Trained, splits: Splits, subset: Subset, n: int) -> tuple[float, float]:
    """Return the seconds of a Python loop over a jitted run of one seed, and of one run of all seeds."""
    if isinstance(learner, LeastSquares):
        order = samples(range(SEEDS), len(splits.train), n)
        with jax.enable_x64(True):
            data = [least_squares._flat(part, subset) for part in (splits.train, splits.validation, splits.test)]
            given = (data[0], data[1], data[2][0])
            together = best(lambda: jax.block_until_ready(least_squares._cells(order, *given)))
            loop = best(
                lambda: [jax.block_until_ready(least_squares._cells(order[k : k + 1], *given)) for k in range(SEEDS)]
            )
        return loop, together
    run, varying, parts = learner._prepared(splits, subset, n, range(SEEDS), learner.steps(n))
    one, every = jax.jit(run), trained._over_seeds(run, "vmap")
    each = [jax.tree.map(lambda x, k=k: x[k], varying) for k in range(SEEDS)]
    return (
        best(lambda: [jax.block_until_ready(one(v, *parts)) for v in each]),
        best(lambda: jax.block_until_ready(every(varying, *parts))),
    )


def best(run: Callable[[], object]) -> float:
    """Return the least wall time of three runs, after one to compile."""
    run()
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return min(spent)


def published(console: Console) -> None:
    """The synthetic study: 16,000 examples to train, 4,000 to refit, 4,000 to evaluate; 5 seeds of data, 95 % intervals."""
    made = table(
        "Squared error with the modalities 1, 1-2, 1-3, 1-4", "w", *(f"{k} of 4, {x}" for k in (1, 2, 3, 4)
        for x in ("ours", "formula", "published")),
    )  # fmt: skip
    subsets = ["x1", "x1+x2", "x1+x2+x3", "x1+x2+x3+x4"]
    for w, theirs in PUBLISHED.items():
        risks = []
        for seed in range(5):  # of the data: a sample is all of the training split
            splits = Overlap(w=w, seed=seed).load()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                one = subset_risk_sweep(LeastSquares(), splits, sizes=[16_000], seeds=1, band=False, subsets=subsets)
            risks.append([np.mean(cell.risk) for cell in one.cells])
        row = []
        for k in range(4):
            ours = mean_interval(np.array(risks)[:, k])
            row += [f"{ours.mean:.2f} ± {ours.half:.2f}", f"{overlap_risk(3 - k, w):.2f}", f"{theirs[k]:.2f}"]
        made.add_row(f"{w:g}", *row)
    console.print(made)


def reversal(console: Console) -> None:
    """P(gamma > 0) over 2,000 samples."""
    made = table("Five strong inputs, forty weak ones", "n", "P(γ > 0)", "mean γ", "stated")
    for n, stated in ((20, "1.0"), (60, ".96"), (100, ".09"), (300, "0")):
        gammas = strong_weak_gammas(jax.random.key(0), n, 2000)
        made.add_row(f"{n}", f"{np.mean(gammas > 0):.3f}", f"{gammas.mean():.3f}", stated)
    console.print(made)


@dataclass(frozen=True)
class Clipped(LeastSquares):
    """Least squares whose predictions are clipped to the range of the labels, so that the loss is bounded."""

    limit: float

    def predict(self, splits: Splits, subset: Subset, n: int, seeds: Sequence[int]) -> Predictions:
        """See `Learner.predict`."""
        return Predictions(*(x.clip(-self.limit, self.limit) for x in super().predict(splits, subset, n, seeds)))

    def identity(self) -> dict[str, Any]:
        """See `Learner.identity`."""
        return {"type": "least squares, clipped", "limit": self.limit}


def bound(console: Console) -> None:
    """Theorem 1 for linear predictors of one output of the synthetic study, clipped to the range of the data."""
    data = Overlap(w=0.5, dim=1, train_examples=400_000, validation_examples=4_000, test_examples=4_000).load()
    x = np.concatenate([data.train.inputs[m] for m in data.train.modalities], axis=1)
    x = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)  # the offset is a weight too
    largest = float(max(np.abs(part.label).max() for part in (data.train, data.validation, data.test)))
    # norm 2 for all four modalities (y is their sum), 2.5 for the first alone; samples of 100 go a little beyond
    norm_bound = 3.0
    lipschitz, loss_bound = 4 * largest, 4 * largest**2  # of (f - y)^2 in f with |f|, |y| <= largest
    made = table(
        f"M: all four modalities, N: the first; w = 0.5, one output; B = {norm_bound:g}, L = {lipschitz:.1f}, "
        f"C = {loss_bound:.0f}", "n", "γ", "8L R(H o G)", "4C/√n", "2C√(2 ln(2/δ)/n)", "bound", "measured gap",
    )  # fmt: skip
    for n in (100, 1_000, 10_000, 100_000):
        learner = Clipped(largest)
        found = subset_risk_sweep(learner, data, sizes=[n], seeds=5, subsets=["x1", "x1+x2+x3+x4"])
        versus = found.compare(("x1", "x2", "x3", "x4"), ("x1",), n)
        rademacher = rademacher_linear(x[:n], norm_bound)
        terms = theorem1_bound(versus.gamma.mean, rademacher, n, lipschitz=lipschitz, loss_bound=loss_bound)
        values = (terms.gamma, terms.complexity, terms.sampling, terms.confidence, terms.total, versus.gap.mean)
        made.add_row(f"{n:,}", *(f"{value:.3f}" for value in values))
    console.print(made)


def main() -> None:
    parts = {f.__name__: f for f in (sweep, seeds, published, reversal, bound)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", choices=[*parts, []], default=[], help="default: all of them")
    for name in parser.parse_args().part or parts:
        parts[name](Console(width=130))


if __name__ == "__main__":
    main()
