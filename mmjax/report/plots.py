"""Curves of a run: what each objective's loss, score, weight and gradient did, one picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mmjax.objectives import FUSION
from mmjax.report.labels import (
    PERCENTAGES,
    expert_order,
    expert_title,
    loss_of,
    metric_title,
    score_of,
    task_kind,
    written,
)
from mmjax.train.predictor import LATE_FUSION

Rows = Sequence[Mapping[str, Any]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#332288", "#7A6A00")
"""Okabe and Ito's colours for all kinds of colour vision, without the yellow that white swallows, and two more."""
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))  # once all colours are taken
_FADED = "#8A8A8A"
LOG_RANGE = 20.0  # largest over smallest value from which an axis is logarithmic
_CROWDED = 100  # points from which single ones are noise, and their running mean is drawn on top
_R2_FLOOR = -1.0  # below it a regression is hopeless, and how hopeless would hide the rest


@dataclass(frozen=True)
class _Style:
    colour: str
    dash: Any = "-"
    width: float = 1.5
    order: float = 3.0


@dataclass(frozen=True)
class _Series:
    """One line: what a key of the rows of one kind said, step by step."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    style: _Style
    gap: str | None = None


@dataclass(frozen=True)
class _Panel:
    title: str
    series: list[_Series]
    finish: Callable[[Axes, list[_Series]], None]


def curves(rows: Rows, title: str = "") -> Figure:
    """Return the picture of a run, 12 x 7 inches, with a panel for whatever the rows hold.

    rows: as in metrics.jsonl (`mmjax.train.journal.read_rows`), in any order. Panels: training loss, validation loss
    and score of each expert, the method's weights, the norms of the objectives' gradients, the cosines between them. A
    thin vertical line is the step of the chosen model; the figures at the right of the score are the test split's. An
    objective has one colour throughout. Values that are not finite are gaps. Above 100 measurements the single ones are
    faint, and their running mean over 5 % of them is drawn in full.

    The figure is bound to no window and to none of pyplot's state: `figure.savefig(path)`, or its value in a notebook.

    >>> rows = [{"step": 1, "kind": "train", "loss/fusion": 2.0}, {"step": 2, "kind": "train", "loss/fusion": 1.0}]
    >>> figure = curves(rows, "a short run")
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['training loss']
    """
    names = _objectives(rows)
    styles = _styles(names)
    panels = [panel for panel in _panels(rows, names, styles) if panel.series]
    figure = Figure(figsize=(12, 7), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", parse_math=False)
    if not panels:
        figure.text(0.5, 0.5, "no measurements yet", ha="center", va="center", fontsize=13, color=_FADED)
        return figure
    last = max(float(series.steps[-1]) for panel in panels for series in panel.series)
    row_count = 1 if len(panels) <= 3 else 2
    column_count = math.ceil(len(panels) / row_count)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(row_count, column_count, place)
        _draw(axes, panel, last)
        if place > len(panels) - column_count:  # nothing below it
            axes.set_xlabel("step", fontsize=9.5)
    shown = {series.name for panel in panels for series in panel.series}
    crowded = any(len(series.steps) > _CROWDED for panel in panels for series in panel.series)
    _legend(figure, {name: style for name, style in styles.items() if name in shown}, crowded)
    return figure


def save_curves(rows: Rows, path: str | Path, title: str = "") -> None:
    """Write the picture of `curves`; the suffix of `path` says the format (.png, .svg, .pdf).

    Raises:
      OSError: the file cannot be written.

    >>> import tempfile
    >>> rows = [{"step": step, "kind": "train", "loss/fusion": 2.0 / step} for step in (1, 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_curves(rows, Path(folder) / "curves.svg")
    ...     [file.name for file in Path(folder).iterdir()]
    ['curves.svg']
    """
    curves(rows, title).savefig(path, dpi=130)


# -- what is drawn -----------------------------------------------------------------------------------------------------


def _panels(rows: Rows, names: Sequence[str], styles: Mapping[str, _Style]) -> Iterable[_Panel]:
    def of(kind: str, keys: Mapping[str, str]) -> list[_Series]:
        found = ((name, *_values(rows, kind, key)) for name, key in keys.items())
        return [_Series(n, steps, values, styles[n]) for n, steps, values in found if np.isfinite(values).any()]

    def of_objectives(kind: str, prefix: str) -> list[_Series]:
        return of(kind, {name: f"{prefix}/{name}" for name in names if name in styles})

    test: Mapping[str, Any] = next((row for row in reversed(rows) if row["kind"] == "test"), {})
    best = int(test.get("best_step", -1))
    yield _Panel("training loss", of_objectives("train", "loss"), _finish_positive)

    task = next((kind for row in rows if (kind := task_kind(row)) is not None), None)
    if task is not None:
        loss, score = loss_of(task), score_of(task)

        def finish_loss(axes: Axes, series: list[_Series]) -> None:
            _finish_positive(axes, series)
            _mark_best(axes, best)

        def finish_score(axes: Axes, series: list[_Series]) -> None:
            _finish_score(axes, series, score)
            _mark_best(axes, best)
            _mark_test(axes, {n: test[f"{n}/{score}"] for n in styles if f"{n}/{score}" in test}, styles, score)

        yield _Panel(
            f"validation {metric_title(loss)}", of("validation", {n: f"{n}/{loss}" for n in styles}), finish_loss
        )
        yield _Panel(
            f"validation {_pretty(score)}", of("validation", {n: f"{n}/{score}" for n in styles}), finish_score
        )

    yield _Panel("weights of the objectives", of_objectives("train", "weight"), _finish_weights)
    yield _Panel("gradient norms", of_objectives("gradients", "norm"), _finish_positive)
    cosines = _cosines(rows, names, styles)
    between = any(series.gap is not None for series in cosines)
    about = "(two colours: two modalities)" if between else "with fusion"
    yield _Panel(f"gradient cosines {about}", cosines, _finish_cosines)


def _objectives(rows: Rows) -> tuple[str, ...]:
    """Return the objectives, as the first kind of row that is there tells them."""
    for kind, prefix in (("train", "loss/"), ("validation", "score/"), ("gradients", "norm/")):
        found = {
            key.removeprefix(prefix) for row in rows if row["kind"] == kind for key in row if key.startswith(prefix)
        }
        if found:
            return expert_order(found, sorted(found - {FUSION}))
    return ()


def _styles(names: Sequence[str]) -> dict[str, _Style]:
    modalities = [name for name in names if name != FUSION]
    # fusion is thick and lies below the others, so that a line on top of it leaves both to be seen
    styles = {FUSION: _Style("black", width=2.8, order=2.5)}
    for k, name in enumerate(modalities):
        styles[name] = _Style(COLOURS[k % len(COLOURS)], _DASHES[k // len(COLOURS) % len(_DASHES)])
    if len(modalities) > 1:
        styles.setdefault(LATE_FUSION, _Style(_FADED, (0, (3, 1.5)), width=2.0, order=2.6))
    return styles


def _values(rows: Rows, kind: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = sorted(((row["step"], row[key]) for row in rows if row["kind"] == kind and key in row), key=lambda p: p[0])
    steps, values = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], np.float64)
    return steps, np.where(np.isfinite(values), values, np.nan)


def _cosines(rows: Rows, names: Sequence[str], styles: Mapping[str, _Style]) -> list[_Series]:
    """Return one line a pair: with fusion in the modality's own look, otherwise in both modalities' colours."""
    series = []
    for k, a in enumerate(names):
        for b in names[k + 1 :]:
            steps, values = _values(rows, "gradients", f"cosine/{a}/{b}")
            if not np.isfinite(values).any():
                continue
            if a == FUSION:
                series.append(_Series(b, steps, values, styles[b]))
            else:
                style = _Style(styles[a].colour, (0, (4, 4)), width=1.3, order=2.8)
                series.append(_Series(f"{a} / {b}", steps, values, style, gap=styles[b].colour))
    return series


# -- how it is drawn ---------------------------------------------------------------------------------------------------


def _draw(axes: Axes, panel: _Panel, last: float) -> None:
    axes.set_title(panel.title, loc="left", fontsize=11)
    axes.tick_params(labelsize=9, color="#B0B0B0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#B0B0B0")
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    for series in panel.series:
        _plot(axes, series)
    axes.set_xlim(0, last * 1.02 or 1)
    panel.finish(axes, panel.series)


def _plot(axes: Axes, series: _Series) -> None:
    style, count = series.style, len(series.steps)
    crowded = count > _CROWDED
    axes.plot(
        series.steps,
        series.values,
        color=style.colour,
        gapcolor=series.gap,
        linestyle=style.dash,
        linewidth=0.5 if crowded else style.width,
        alpha=max(0.25 * min(1.0, 600 / count), 0.04) if crowded else 1.0,
        marker="o" if count <= 25 else None,
        markersize=2.2 + style.width if count <= 25 else None,
        zorder=style.order - crowded,
        label=series.name,
    )
    if crowded:
        axes.plot(
            series.steps,
            _running_mean(series.values, count // 40),
            color=style.colour,
            gapcolor=series.gap,
            linestyle=style.dash,
            linewidth=style.width,
            zorder=style.order,
            label="_running mean",
        )


def _running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Return at each place the mean of the finite values at most `reach` places away; nan where there is none."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def _finish_positive(axes: Axes, series: list[_Series]) -> None:
    """Take a logarithmic axis where it is wanted and possible."""
    values = np.concatenate([s.values for s in series])
    values = values[np.isfinite(values)]
    if values.min() <= 0 or values.max() < LOG_RANGE * values.min():
        if values.min() >= 0 and values.min() < values.max() / 3:
            axes.set_ylim(bottom=0)
        return
    decades = math.log10(values.max() / values.min())
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)


def _finish_weights(axes: Axes, series: list[_Series]) -> None:
    values = np.concatenate([s.values for s in series])
    if np.nanmin(values) >= 0:
        axes.set_ylim(0, max(1.08 * float(np.nanmax(values)), 0.1))


def _finish_cosines(axes: Axes, series: list[_Series]) -> None:
    axes.set_ylim(-1, 1)
    axes.axhline(0, color="#707070", linewidth=0.9, zorder=1)


def _finish_score(axes: Axes, series: list[_Series], score: str) -> None:
    if score in PERCENTAGES:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))
        return
    highest = max(float(np.nanmax(s.values)) for s in series)
    if axes.get_ylim()[0] < _R2_FLOOR < highest:
        axes.set_ylim(_R2_FLOOR, highest + 0.05 * (highest - _R2_FLOOR))


def _mark_best(axes: Axes, step: int) -> None:
    if step < 0:
        return
    axes.axvline(step, color="#707070", linewidth=0.9, linestyle=(0, (2, 2)), zorder=1.5, label="_best step")
    early = step < 0.2 * axes.get_xlim()[1]  # too near to the left edge for a word
    axes.annotate(
        "best",
        (step, 0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(3 if early else -3, 4),
        textcoords="offset points",
        ha="left" if early else "right",
        fontsize=8.5,
        color="#606060",
    )


def _mark_test(axes: Axes, scores: Mapping[str, float], styles: Mapping[str, _Style], metric: str) -> None:
    """Draw a tick at the right edge at each test score and write its value beside, the texts pushed apart."""
    scores = {name: float(value) for name, value in scores.items() if math.isfinite(value)}
    if not scores:
        return
    low, high = axes.get_ylim()
    seen = [value for value in scores.values() if metric in PERCENTAGES or value > _R2_FLOOR]
    margin = 0.04 * (high - low)
    axes.set_ylim(min([low, *(v - margin for v in seen)]), max([high, *(v + margin for v in seen)]))
    low, high = axes.get_ylim()
    heights = {name: (value - low) / (high - low) for name, value in scores.items()}
    for (name, height), at in zip(heights.items(), _spread(list(heights.values()), gap=0.062), strict=True):
        colour = styles[name].colour
        axes.plot(
            [1.0, 1.02, 1.05],
            [height, height, at],
            transform=axes.transAxes,
            color=colour,
            linewidth=1.6,
            clip_on=False,
            label="_test",
        )
        axes.text(
            1.065,
            at,
            written(metric, scores[name]),
            transform=axes.transAxes,
            color=colour,
            fontsize=9,
            fontweight="bold" if name == FUSION else "normal",
            va="center",
        )
    axes.text(1.065, 1.055, "test", transform=axes.transAxes, fontsize=9, color="#606060", va="bottom")


def _spread(heights: list[float], gap: float) -> list[float]:
    """Return places in [0, 1] in the same order, at least `gap` apart, none further from its height than that needs.

    >>> [round(place, 2) for place in _spread([0.5, 0.52, 0.9], gap=0.1)]
    [0.46, 0.56, 0.9]
    """
    order = sorted(range(len(heights)), key=lambda k: heights[k])
    gap = min(gap, 1 / max(len(heights) - 1, 1))
    groups: list[list[float]] = []  # [mean of its members' wishes for its first place, how many]
    for rank, k in enumerate(order):
        groups.append([heights[k] - rank * gap, 1.0])
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            later, earlier = groups.pop(), groups.pop()
            count = earlier[1] + later[1]
            groups.append([(earlier[0] * earlier[1] + later[0] * later[1]) / count, count])
    top = 1 - (len(heights) - 1) * gap
    starts = [min(max(start, 0.0), top) for start, count in groups for _ in range(int(count))]
    places = [0.0] * len(heights)
    for rank, k in enumerate(order):
        places[k] = starts[rank] + rank * gap
    return places


def _legend(figure: Figure, styles: Mapping[str, _Style], crowded: bool) -> None:
    names = list(styles)
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.dash, linewidth=1.3 * s.width, label=str(k))
        for k, s in enumerate(styles.values())
    ]
    legend = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 6),
        frameon=False,
        fontsize=10.5,
        handlelength=2.2,
        columnspacing=2.2,
        title="faint: single measurements, full: their running mean" if crowded else None,
        title_fontproperties={"size": 9},
    )
    for text, name in zip(legend.get_texts(), names, strict=True):  # names may begin with "_" or hold "$"
        text.set_parse_math(False)
        text.set_text(expert_title(name))


def _pretty(score: str) -> str:
    return "R²" if score == "r2" else metric_title(score)
