"""A generative run with modalities missing, for people: scores by rounds as table and plot, what it fills in as images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from mmjax.data import Dataset, Task, gather
from mmjax.evaluation.metrics import score_name
from mmjax.objectives import FUSION
from mmjax.report.labels import PERCENTAGES, metric_title, written
from mmjax.train.missing import ROUNDS, fill_in, scores_by_rounds
from mmjax.train.run import Run
from mmjax.train.step import prepare

ROUNDS_PICTURE, FILLED_PICTURE = "rounds.png", "filled_in.png"

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def _title(name: str) -> str:
    return "all modalities" if name == FUSION else f"{name} alone"


def rounds_table(scores: Mapping[int, Mapping[str, float]], names: Sequence[str], task: Task) -> Table:
    """Return a table of the score by rounds of inference, a column a pattern.

    scores: of `scores_by_rounds`; names: "fusion" and the modalities.

    >>> scores = {0: {"fusion/accuracy": 0.9, "left/accuracy": 0.5}, 10: {"fusion/accuracy": 0.9, "left/accuracy": 0.7}}
    >>> table = rounds_table(scores, ("fusion", "left"), Task("classification", 2))
    >>> [column.header for column in table.columns], table.row_count
    (['rounds', 'all modalities', 'left alone'], 2)
    """
    score = score_name(task)
    table = Table(title=f"{metric_title(score)} by rounds of inference of what is missing")
    table.add_column("rounds", justify="right")
    for name in names:
        table.add_column(_title(name), justify="right")
    for rounds, metrics in scores.items():
        table.add_row(str(rounds), *(written(score, metrics[f"{name}/{score}"]) for name in names))
    return table


def rounds_plot(scores: Mapping[int, Mapping[str, float]], names: Sequence[str], task: Task) -> Figure:
    """Return the plot of the score by rounds, a line a pattern.

    >>> scores = {0: {"fusion/accuracy": 0.9, "left/accuracy": 0.5}, 10: {"fusion/accuracy": 0.9, "left/accuracy": 0.7}}
    >>> axes = rounds_plot(scores, ("fusion", "left"), Task("classification", 2)).axes[0]
    >>> [line.get_label() for line in axes.lines], axes.get_ylabel()
    (['all modalities', 'left alone'], 'accuracy, %')
    """
    score = score_name(task)
    scale = 100.0 if score in PERCENTAGES else 1.0
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(scores))
    modalities = [name for name in names if name != FUSION]
    for name in names:
        values = [scale * metrics[f"{name}/{score}"] for metrics in scores.values()]
        if name == FUSION:
            axes.plot(places, values, color="black", linestyle="--", label=_title(name))
        else:
            colour = _COLOURS[modalities.index(name) % len(_COLOURS)]
            axes.plot(places, values, color=colour, marker="o", label=_title(name))
    axes.set_xticks(places, [str(rounds) for rounds in scores])
    axes.set_xlabel("rounds of inference of what is missing")
    axes.set_ylabel(metric_title(score) + (", %" if scale == 100.0 else ""))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def filled_grid(run: Run, dataset: Dataset, count: int = 12) -> Figure:
    """Return images of examples: as they are, then completed from each modality alone; modalities side by side.

    For modalities whose examples are images [H, W] or [H, W, 1] of one height, in the order of their names. The given
    part stands as it is; a line divides it from what was filled in.

    Raises:
      ValueError: a run whose model is not generative, modalities that are no such images.
    """
    names = dataset.modalities
    indices = np.arange(min(count, len(dataset)))
    raw = gather(dataset, indices).inputs
    shown = {m: np.asarray(x) for m, x in prepare(run.inference, raw).items()}
    shapes = {m: x.shape[1:] for m, x in shown.items()}
    if any(len(s) not in (2, 3) or (len(s) == 3 and s[2] != 1) for s in shapes.values()):
        raise ValueError(f"only images [H, W] or [H, W, 1] can be shown side by side; shapes are {shapes}")
    if len({s[0] for s in shapes.values()}) > 1:
        raise ValueError(f"images must be of one height to be shown side by side; shapes are {shapes}")
    rows = {"as it is": shown} | {f"{m} given": fill_in(run, dataset, indices, m) for m in names}
    figure = Figure(figsize=(1.0 * len(indices) + 1.2, 1.1 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(indices), squeeze=False)
    edges = np.cumsum([shapes[m][1] for m in names])[:-1] - 0.5
    for axes_row, (title, parts) in zip(grid, rows.items(), strict=True):
        for place, axes in enumerate(axes_row):
            whole = np.concatenate([parts[m][place].reshape(shapes[m][:2]) for m in names], axis=1)
            axes.imshow(whole, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for edge in edges if parts is not shown else ():
                axes.axvline(edge, color="#D55E00", linewidth=0.8)
        axes_row[0].set_ylabel(title, fontsize=9)
    return figure


def save_missing(run: Run, dataset: Dataset, folder: Path) -> tuple[Table, list[Path]]:
    """Write rounds.png, and filled_in.png where the modalities are images, into a folder; return table and files."""
    names = (FUSION, *dataset.modalities)
    scores = scores_by_rounds(run, dataset, ROUNDS)
    files = [folder / ROUNDS_PICTURE]
    rounds_plot(scores, names, dataset.task).savefig(files[0], dpi=120)
    if all(len(dataset.inputs[m].shape) >= 3 for m in dataset.modalities):
        files.append(folder / FILLED_PICTURE)
        filled_grid(run, dataset).savefig(files[-1], dpi=120)
    return rounds_table(scores, names, dataset.task), files
