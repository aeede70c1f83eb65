"""A run with modalities missing, for people: scores by pattern, and of a generative one by rounds and what it fills in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from mmjax.data import Dataset, Task, gather
from mmjax.evaluation.metrics import score_name
from mmjax.objectives import FUSION
from mmjax.report.labels import COLUMNS, PERCENTAGES, metric_title, written
from mmjax.train.missing import ROUNDS, PatternScore, contributions, fill_in, scores_by_pattern, scores_by_rounds
from mmjax.train.predictor import LATE_FUSION
from mmjax.train.run import Run
from mmjax.train.step import prepare

PATTERNS_PICTURE, ROUNDS_PICTURE, FILLED_PICTURE = "missing.png", "rounds.png", "filled_in.png"

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def _title(name: str) -> str:
    return "all modalities" if name == FUSION else f"{name} alone"


def patterns_table(scores: Sequence[PatternScore], task: Task) -> Table:
    """Return a table of the fusion's metrics, a row a pattern of what is given, and the late fusion's score beside them.

    scores: of `scores_by_pattern`.

    >>> one = PatternScore(("a",), 9, {"fusion/r2": 0.5, "fusion/mse": 2.0, "fusion/mae": 1.0})
    >>> table = patterns_table([one], Task("regression", 1))
    >>> [column.header for column in table.columns], table.row_count
    (['given', 'examples', 'R2', 'MSE', 'MAE'], 1)
    """
    columns, score = COLUMNS[task.kind], score_name(task)
    late = any(f"{LATE_FUSION}/{score}" in s.metrics for s in scores)
    table = Table(title="With only some of the modalities given")
    table.add_column("given")
    table.add_column("examples", justify="right")
    for metric in columns:
        table.add_column(metric_title(metric), justify="right", no_wrap=True)
    if late:
        table.add_column(f"{metric_title(score)} of late fusion", justify="right")
    most = max(len(s.pattern) for s in scores)
    for s in scores:
        cells = [written(metric, s.metrics[f"{FUSION}/{metric}"]) for metric in columns]
        if late:
            value = s.metrics.get(f"{LATE_FUSION}/{score}")
            cells.append("-" if value is None else written(score, value))
        table.add_row(Text(s.name), f"{s.examples:,}", *cells, style="bold" if len(s.pattern) == most else None)
    return table


def patterns_plot(scores: Sequence[PatternScore], task: Task) -> Figure:
    """Return a bar plot of the fusion's score, a bar a pattern, coloured by how much is given; a ring is late fusion.

    >>> scores = [PatternScore(p, 9, {"fusion/accuracy": 0.5}) for p in (("a",), ("a", "b"))]
    >>> len(patterns_plot(scores, Task("classification", 2)).axes[0].patches)
    2
    """
    score = score_name(task)
    scale = 100.0 if score in PERCENTAGES else 1.0
    values = [scale * s.metrics[f"{FUSION}/{score}"] for s in scores]
    late = {
        place: scale * s.metrics[key]
        for place, s in enumerate(scores)
        if (key := f"{LATE_FUSION}/{score}") in s.metrics
    }
    figure = Figure(figsize=(7.5, 1.3 + 0.34 * len(scores)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sizes = sorted({len(s.pattern) for s in scores})
    shades = dict(zip(sizes, np.linspace(0.35, 0.85, len(sizes)), strict=True))
    colours = [colormaps["Blues"](shades[len(s.pattern)]) for s in scores]
    bars = axes.barh(range(len(scores)), values, color=colours, height=0.72)
    axes.bar_label(bars, [written(score, v / scale) for v in values], padding=7, fontsize=8.5)
    if late:
        axes.plot(
            list(late.values()), list(late), "o", color="#D55E00", markerfacecolor="none", label="late fusion", zorder=3
        )
        figure.legend(loc="outside lower right", frameon=False, fontsize=8.5)
    axes.set_yticks(range(len(scores)), [s.name for s in scores], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(metric_title(score) + (", %" if scale == 100.0 else ""))
    axes.set_title("with only these modalities given", loc="left", fontsize=11)
    axes.axvline(0, color="#707070", linewidth=0.8)
    axes.margins(x=0.12)
    if scale == 100.0:
        axes.set_xlim(0, 112)  # room for a number beside a full bar
        axes.set_xticks(range(0, 101, 20))
        axes.spines["bottom"].set_bounds(0, 100)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def save_patterns(run: Run, dataset: Dataset, folder: Path, wanted: Sequence[str] = ()) -> tuple[Table, Path]:
    """Write missing.png into a folder; return the table and the file. wanted: patterns, as `scores_by_pattern` takes them.

    With every pattern, of data that lack nothing, the table's caption says what each modality contributes.

    Raises:
      ValueError: as `scores_by_pattern`.

    >>> import tempfile, mmjax
    >>> from mmjax.data import Planted
    >>> from mmjax.train.optimizer import AdamConfig
    >>> train = mmjax.TrainConfig(epochs=1, batch_size=32, monitor_every=0, devices=1)
    >>> data, method = Planted(train_examples=100), mmjax.optim.UniformConfig()
    >>> run = mmjax.fit(mmjax.Config(data=data, method=method, optimizer=AdamConfig(), train=train))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table, file = save_patterns(run, data.load().test, Path(folder), ["a"])
    >>> table.row_count, file.name
    (1, 'missing.png')
    """
    scores = scores_by_pattern(run, dataset, wanted)
    file = folder / PATTERNS_PICTURE
    patterns_plot(scores, dataset.task).savefig(file, dpi=120)
    table = patterns_table(scores, dataset.task)
    if len(scores) == 2 ** len(dataset.modalities) - 1 > 1 and dataset.present is None:
        score = score_name(dataset.task)
        parts = (f"{m} {written(score, v)}" for m, v in contributions(scores, dataset).items())
        table.caption = Text(f"contribution to {metric_title(score)} (Shapley): {', '.join(parts)}")
    return table, file


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

    >>> import mmjax
    >>> from mmjax.data import from_arrays
    >>> from mmjax.generative import MRBMConfig, PCDConfig
    >>> from mmjax.train.optimizer import AdamConfig
    >>> bits = np.random.default_rng(0).integers(0, 2, size=(60, 4, 2)).astype(np.float32)
    >>> splits = from_arrays({"left": bits, "right": bits}, np.arange(60) % 2, standardize=False)
    >>> config = mmjax.Config(
    ...     data=mmjax.data.Planted(), model=MRBMConfig(hidden=2), method=PCDConfig(), optimizer=AdamConfig(),
    ...     train=mmjax.TrainConfig(epochs=1, batch_size=8, monitor_every=0, devices=1),
    ... )
    >>> run = mmjax.fit(config, splits=splits)
    >>> len(filled_grid(run, splits.test, count=3).axes)  # three rows of three
    9
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
    """Write rounds.png, and filled_in.png where the modalities are images, into a folder; return table and files.

    >>> import tempfile, mmjax
    >>> from mmjax.data import from_arrays
    >>> from mmjax.generative import MRBMConfig, PCDConfig
    >>> from mmjax.train.optimizer import AdamConfig
    >>> bits = np.random.default_rng(0).integers(0, 2, size=(60, 4, 2)).astype(np.float32)
    >>> splits = from_arrays({"left": bits, "right": bits}, np.arange(60) % 2, standardize=False)
    >>> config = mmjax.Config(
    ...     data=mmjax.data.Planted(), model=MRBMConfig(hidden=2), method=PCDConfig(), optimizer=AdamConfig(),
    ...     train=mmjax.TrainConfig(epochs=1, batch_size=8, monitor_every=0, devices=1),
    ... )
    >>> run = mmjax.fit(config, splits=splits)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table, files = save_missing(run, splits.test, Path(folder))
    >>> [file.name for file in files]
    ['rounds.png', 'filled_in.png']
    """
    names = (FUSION, *dataset.modalities)
    scores = scores_by_rounds(run, dataset, ROUNDS)
    files = [folder / ROUNDS_PICTURE]
    rounds_plot(scores, names, dataset.task).savefig(files[0], dpi=120)
    if all(len(dataset.inputs[m].shape) >= 3 for m in dataset.modalities):
        files.append(folder / FILLED_PICTURE)
        filled_grid(run, dataset).savefig(files[-1], dpi=120)
    return rounds_table(scores, names, dataset.task), files
