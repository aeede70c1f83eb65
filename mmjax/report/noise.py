"""A run with noise in one modality at a time, for people: a table and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from mmjax.data import Dataset, Task
from mmjax.evaluation.metrics import score_name
from mmjax.report.labels import PERCENTAGES, metric_title, written
from mmjax.report.plots import COLOURS
from mmjax.train.noise import scores_by_noise
from mmjax.train.run import Run

NOISE_PICTURE = "noise.png"


def noise_table(curves: Mapping[str, np.ndarray], levels: Sequence[float], task: Task) -> Table:
    """Return a table of the fusion's score, a row a modality with noise in it, a column a level.

    curves: of `scores_by_noise`.

    >>> table = noise_table({"a": np.array([0.9, 0.5])}, [0.0, 1.0], Task("classification", 2))
    >>> [column.header for column in table.columns], table.row_count
    (['noise in', '0', '1'], 1)
    """
    score = score_name(task)
    table = Table(title=f"{metric_title(score)} by level of noise in one modality")
    table.add_column("noise in")
    for level in levels:
        table.add_column(f"{level:g}", justify="right", no_wrap=True)
    for m, values in curves.items():
        table.add_row(Text(m), *(written(score, float(v)) for v in values))
    return table


def noise_plot(curves: Mapping[str, np.ndarray], levels: Sequence[float], task: Task) -> Figure:
    """Return the curves of the fusion's score against the level, a line a modality.

    >>> figure = noise_plot({"a": np.array([0.9, 0.5])}, [0.0, 1.0], Task("classification", 2))
    >>> figure.axes[0].lines[0].get_ydata().tolist()
    [90.0, 50.0]
    """
    score = score_name(task)
    scale = 100.0 if score in PERCENTAGES else 1.0
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    order = np.argsort(levels)
    for place, (m, values) in enumerate(curves.items()):
        axes.plot(
            np.asarray(levels)[order], scale * values[order], marker="o", color=COLOURS[place % len(COLOURS)], label=m
        )
    axes.set_xlabel("level of noise, in units of each feature's own spread")
    axes.set_ylabel(metric_title(score) + (", %" if scale == 100.0 else ""))
    axes.set_title("with noise in this modality, the others clean", loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    for text in axes.legend(frameon=False).get_texts():
        text.set_parse_math(False)
    return figure


def save_noise(run: Run, dataset: Dataset, folder: Path, levels: Sequence[float]) -> tuple[Table, Path]:
    """Write noise.png into a folder; return the table and the file. levels: as `scores_by_noise` takes them.

    Raises:
      ValueError: as `scores_by_noise`.

    >>> import tempfile, mmjax
    >>> from mmjax.data import Planted
    >>> from mmjax.train.optimizer import AdamConfig
    >>> train = mmjax.TrainConfig(epochs=1, batch_size=32, monitor_every=0, devices=1)
    >>> data, method = Planted(train_examples=100), mmjax.optim.UniformConfig()
    >>> run = mmjax.fit(mmjax.Config(data=data, method=method, optimizer=AdamConfig(), train=train))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table, file = save_noise(run, data.load().test, Path(folder), [0.0, 1.0])
    >>> table.row_count, file.name
    (2, 'noise.png')
    """
    curves = scores_by_noise(run, dataset, levels)
    file = folder / NOISE_PICTURE
    noise_plot(curves, levels, dataset.task).savefig(file, dpi=120)
    return noise_table(curves, levels, dataset.task), file
