"""`mmjax theory`: the study of which modalities help, why, and from how many samples on.

CONFIG is a configuration, or an npz file as `mmjax data check` accepts it. The splits are the data's own: samples are
drawn from training, heads are refitted on validation, everything is evaluated on the test split. The folder gets
sweep.jsonl (a line a cell; a study that was cut off goes on from it), heat_map.png, curves.png and verdict.txt.
"""

from __future__ import annotations

import argparse
import datetime
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmjax.config import Config
from mmjax.config_file import load_config
from mmjax.data import Npz, Splits
from mmjax.evaluation.subsets import choose_subsets, subset_name
from mmjax.optim import JointConfig
from mmjax.overrides import override
from mmjax.theory.learner import Learner
from mmjax.theory.least_squares_learner import LeastSquares
from mmjax.theory.subset_risk import Cell, Sweep, subset_risk_sweep
from mmjax.theory.trained_learner import Trained
from mmjax.theory.verdict import verdict
from mmjax.train.optimizer import AdamConfig

SWEEP, HEAT_MAP, CURVES, VERDICT = "sweep.jsonl", "heat_map.png", "curves.png", "verdict.txt"

Add = Callable[..., argparse.ArgumentParser]


def add_theory(add: Add) -> None:
    """Add the command's words to the command line."""
    parser = add("theory", run, "study which modalities help, why, and from how many samples on")
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a configuration, or an npz file")
    parser.add_argument(
        "--subsets", nargs="+", default=["all"], metavar="SUBSET", help="all, leave-one-out, or names such as a+b"
    )
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help="training examples; default: four sizes")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds, at least 2")
    parser.add_argument(
        "--learner",
        choices=("model", "linear"),
        default="model",
        help="model: CONFIG's encoders, fusion, method and optimizer; linear: least squares in closed form",
    )
    parser.add_argument("--oracle-risk", type=float, help="the least possible risk, where it is known: adds η")
    parser.add_argument("--min-steps", type=int, default=200, help="least training steps of a small sample (model)")
    parser.add_argument("--refit-steps", type=int, default=300, help="steps of refitting a head (model)")
    parser.add_argument(
        "--seed-axis",
        choices=("auto", "vmap", "map"),
        default="auto",
        help="seeds side by side, or one after another in one program; auto: a timed trial (model)",
    )
    parser.add_argument("--out", type=Path, help="folder; default: runs/theory-, CONFIG's name and the time")


def run(options: argparse.Namespace, console: Console) -> int:
    """Run the study, or go on with it, and show what it found."""
    from mmjax.report import save_heat_map, save_sweep_curves, sweep_table

    if options.oracle_risk is not None and not math.isfinite(options.oracle_risk):
        raise ValueError(f"--oracle-risk must be finite, got {options.oracle_risk}")
    config = override(_config(options.config), options.rest, prog=f"mmjax theory {options.config}")
    splits = config.data.load()
    sizes = options.sizes or default_sizes(len(splits.train))
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    out = options.out or Path("runs") / f"theory-{options.config.stem}-{now}"
    try:
        with _Progress() as progress:
            learner = _learner(options, config, splits, sizes, progress.note)
            sweep = subset_risk_sweep(
                learner,
                splits,
                sizes=sizes,
                seeds=options.seeds,
                subsets=options.subsets,
                first_seed=config.train.seed,
                path=out / SWEEP,
                on_cell=progress.cell,
            )
    except KeyboardInterrupt:
        again = ["mmjax", "theory", *_arguments(options, sizes), "--out", str(out)]
        print(f"\nmmjax: interrupted; go on with\n  {shlex.join(again)}", file=sys.stderr)
        return 130
    title = f"{config.data.name}, {'least squares' if options.learner == 'linear' else config.method.name}"
    save_heat_map(sweep, out / HEAT_MAP, title)
    save_sweep_curves(sweep, out / CURVES, title)
    for n in sweep.sizes:
        console.print(sweep_table(sweep, n, options.oracle_risk))
    sentences = [verdict(sweep, m) for m in sweep.modalities]
    (out / VERDICT).write_text("\n".join(sentences) + "\n")
    for sentence in sentences:
        console.print(sentence, markup=False)
    console.print(_caption(sweep), markup=False, style="dim")
    console.print(f"folder: {out}", markup=False, soft_wrap=True)
    return 0


def default_sizes(total: int) -> list[int]:
    """Return four sample sizes, evenly spaced on a logarithmic scale, up to half of the training examples.

    >>> default_sizes(4000)
    [50, 171, 585, 2000]
    """
    largest = max(total // 2, 1)
    return sorted({int(n) for n in np.geomspace(min(50, largest), largest, 4).round()})


def _config(path: Path) -> Config:
    if path.suffix != ".npz":
        return load_config(path)
    # plain empirical risk minimisation of the fusion loss, as in the paper; every field is an option
    return Config(data=Npz(path=str(path)), method=JointConfig(), optimizer=AdamConfig())


def _learner(
    options: argparse.Namespace,
    config: Config,
    splits: Splits,
    sizes: Sequence[int],
    note: Callable[[str], None],
) -> Learner:
    if options.learner == "linear":
        return LeastSquares()
    learner = Trained(config, options.min_steps, options.refit_steps)
    if options.seed_axis != "auto":
        return Trained(config, options.min_steps, options.refit_steps, options.seed_axis)
    largest = choose_subsets(options.subsets, splits.train.modalities)[-1]
    n = min(min(sizes), len(splits.train))
    if n < 1 or options.seeds < 2:
        return learner  # the sweep has the words for it
    learner = learner.with_faster_seed_axis(splits, largest, n, list(range(options.seeds)))
    how = "side by side" if learner.seed_axis == "vmap" else "one after another"
    note(f"seeds run {how} in one program (timed on {subset_name(largest)})")
    return learner


def _arguments(options: argparse.Namespace, sizes: Sequence[int]) -> list[str]:
    """Return the command's arguments, without --out, as they can be given again."""
    given = ["--subsets", *options.subsets, "--sizes", *map(str, sizes), "--seeds", str(options.seeds)]
    given += ["--learner", options.learner, "--min-steps", str(options.min_steps)]
    given += ["--refit-steps", str(options.refit_steps), "--seed-axis", options.seed_axis]
    if options.oracle_risk is not None:
        given += ["--oracle-risk", str(options.oracle_risk)]
    return [str(options.config), *given, *options.rest]


def _caption(sweep: Sweep) -> str:
    return (
        "Sentences: ± is half a 95 % interval over seeds and evaluation examples, a comparison at a time; "
        f"risk: {sweep.risk_unit} of the test split; γ: the part of it that stays when heads are refitted."
    )


class _Progress:
    """A bar on a terminal, plain lines elsewhere; on standard error, so that results on standard output stay clean."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> _Progress:
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} cells"))
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self._task = self._bar.add_task("preparing", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False)

    def cell(self, cell: Cell, done: int, total: int) -> None:
        """Tell of a cell that is done."""
        what = f"{subset_name(cell.subset)}, n = {cell.n:,}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=what)
        else:
            self.console.print(
                f"{done}/{total} {what}: risk {np.mean(cell.risk):.4g}, {cell.seconds:.1f} s",
                markup=False,
                soft_wrap=True,
            )
