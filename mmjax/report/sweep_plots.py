"""Pictures of a sweep over subsets of the modalities: a heat map, and curves over the sample size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mmjax.evaluation.subsets import Subset, subset_name
from mmjax.report.labels import PERCENTAGES, metric_title
from mmjax.report.plots import COLOURS, LOG_RANGE
from mmjax.theory.intervals import Interval, told
from mmjax.theory.subset_risk import Sweep

_MANY = 8  # curves in one panel, at most
_DARK = 0.5  # luminance below which a number on a colour is white
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))


def heat_map(sweep: Sweep, title: str = "") -> Figure:
    """Return two heat maps, subsets by sample sizes: the test risk, and gamma against the largest subset.

    Each cell holds mean and standard deviation over seeds. Bold: the lowest risk at that size. The second map is there
    when one of the subsets holds all the others; negative (blue): the largest subset is the better representation.

    >>> from mmjax.theory import LeastSquares, StrongWeak, subset_risk_sweep
    >>> splits = StrongWeak(train_examples=99, validation_examples=50, test_examples=50).load()
    >>> figure = heat_map(subset_risk_sweep(LeastSquares(), splits, sizes=[20], seeds=2))
    >>> [axes.get_title(loc="left").split(",")[0] for axes in figure.axes if axes.get_title(loc="left")]
    ['test risk', 'γ(strong+weak']
    """
    subsets, sizes, whole = sweep.subsets, sweep.sizes, largest(sweep)
    run = {(cell.subset, cell.n) for cell in sweep.cells}

    def grid(value: Callable[[Subset, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        values = [[value(s, n) if (s, n) in run else np.array([np.nan]) for n in sizes] for s in subsets]
        means = np.array([[np.mean(v) for v in row] for row in values])
        spreads = np.array([[np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in row] for row in values])
        return means, spreads

    panels = 1 if whole is None else 2
    name_width = 0.085 * max(len(subset_name(s)) for s in subsets)
    width = name_width + panels * (1.25 * len(sizes) + 1.2) + 0.5
    figure = Figure(figsize=(max(width, 7.0), max(0.34 * len(subsets) + 1.9, 3.4)), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", parse_math=False)
    means, spreads = grid(lambda s, n: np.asarray(sweep.cell(s, n).risk))
    axes = figure.add_subplot(1, panels, 1)
    best = means == np.nanmin(means, axis=0)
    _grid(axes, means, spreads, "viridis_r", _risk_norm(means), best)
    axes.set_title(f"test risk, {sweep.risk_unit}", loc="left", fontsize=11)
    axes.set_yticks(range(len(subsets)), [subset_name(s) for s in subsets], fontsize=9.5, parse_math=False)
    axes.set_xticks(range(len(sizes)), [f"{n:,}" for n in sizes])
    axes.set_xlabel("training examples", fontsize=9.5)
    if whole is not None:
        means, spreads = grid(lambda s, n: np.subtract(sweep.cell(whole, n).head_risk, sweep.cell(s, n).head_risk))
        axes = figure.add_subplot(1, panels, 2)
        reach = max(float(np.nanmax(np.abs(means))), 1e-12)
        _grid(axes, means, spreads, "RdBu_r", TwoSlopeNorm(0.0, -reach, reach), np.zeros_like(means, bool))
        name = subset_name(whole)
        name = name if len(name) <= 24 else "all"
        axes.set_title(f"γ({name}, subset), {sweep.risk_unit}", loc="left", fontsize=11, parse_math=False)
        axes.set_yticks(range(len(subsets)), [""] * len(subsets))
        axes.set_xticks(range(len(sizes)), [f"{n:,}" for n in sizes])
        axes.set_xlabel(f"training examples\nnegative (blue): {name} is the better representation", fontsize=9.5)
    return figure


def save_heat_map(sweep: Sweep, path: str | Path, title: str = "") -> None:
    """Write the picture of `heat_map`; the suffix of `path` says the format. Raises OSError.

    >>> import tempfile
    >>> from mmjax.theory import LeastSquares, StrongWeak, subset_risk_sweep
    >>> splits = StrongWeak(train_examples=99, validation_examples=50, test_examples=50).load()
    >>> sweep = subset_risk_sweep(LeastSquares(), splits, sizes=[20], seeds=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_heat_map(sweep, Path(folder) / "risk.svg")
    ...     [file.name for file in Path(folder).iterdir()]
    ['risk.svg']
    """
    heat_map(sweep, title).savefig(path, dpi=130)


def largest(sweep: Sweep) -> Subset | None:
    """Return the subset that holds all the others, or None."""
    last = sweep.subsets[-1]
    return last if all(set(s) <= set(last) for s in sweep.subsets) and len(sweep.subsets) > 1 else None


def _risk_norm(means: np.ndarray) -> Normalize:
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    if 0 < high < LOG_RANGE * low or low < 0 or high <= 0:
        return Normalize(low, high)
    return LogNorm(max(low, 1e-3 * high), high, clip=True)  # a risk of 0 would take the whole scale


def _grid(axes: Axes, means: np.ndarray, spreads: np.ndarray, colours: str, norm: Normalize, bold: np.ndarray) -> None:
    image = axes.imshow(means, cmap=colours, norm=norm, aspect="auto")
    axes.tick_params(length=0, labelsize=9.5)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(means.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(means.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    for (i, j), mean in np.ndenumerate(means):
        if not np.isfinite(mean):
            continue
        red, green, blue, _ = image.cmap(image.norm(mean))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < _DARK
        axes.text(
            j,
            i,
            told(Interval(float(mean), float(spreads[i, j]))),
            ha="center",
            va="center",
            fontsize=8.5,
            fontweight="bold" if bold[i, j] else "normal",
            color="white" if dark else "black",
        )


# -- curves ------------------------------------------------------------------------------------------------------------


def sweep_curves(sweep: Sweep, title: str = "") -> Figure:
    """Return four panels over the number of training examples, with bands: 95 % intervals.

    Above, of each subset: test risk and score (with many subsets only the largest, it without each modality, and each
    alone). Below, for each modality, what adding it to all the others does to the test risk, and the part of the
    representation in that (gamma); below the line at 0 it helps.

    Raises:
      ValueError: a single seed, which has no band.

    >>> from mmjax.theory import LeastSquares, StrongWeak, subset_risk_sweep
    >>> splits = StrongWeak(train_examples=99, validation_examples=50, test_examples=50).load()
    >>> figure = sweep_curves(subset_risk_sweep(LeastSquares(), splits, sizes=[20, 40], seeds=2))
    >>> [axes.get_title(loc="left") for axes in figure.axes][:2]
    ['test risk (squared error)', 'test R2']
    """
    if sweep.seeds < 2:
        raise ValueError(f"a band needs at least 2 seeds, got {sweep.seeds}")
    figure = Figure(figsize=(12, 7.6), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", parse_math=False)
    subsets = _shown(sweep)
    styles = {s: _style(k) for k, s in enumerate(subsets)}
    additions = {m: points for m in sweep.modalities if (points := sweep.additions(m))}
    rows = 2 if additions else 1
    for place, (name, heading) in enumerate(
        (
            ("risk_interval", f"test risk ({sweep.risk_unit})"),
            ("score_interval", f"test {metric_title(sweep.score)}"),
        ),
        start=1,
    ):
        axes = figure.add_subplot(rows, 2, place)
        for s in subsets:
            cells = [cell for cell in sorted(sweep.cells, key=lambda cell: cell.n) if cell.subset == s]
            _band(axes, [c.n for c in cells], [getattr(c, name) for c in cells], *styles[s], subset_name(s))
        _finish(axes, heading, sweep.sizes)
        if name == "risk_interval":
            _maybe_log(axes)
        elif sweep.score in PERCENTAGES:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))
        elif axes.get_ylim()[0] < -1:
            axes.set_ylim(-1, 1.02)  # below it a regression is hopeless, and how hopeless would hide the rest
        if place == 2:
            _legend(axes, {subset_name(s): styles[s] for s in subsets}, "subset")
    marks = {m: _style(k) for k, m in enumerate(additions)}
    for place, (name, heading) in enumerate(
        (
            ("gap", "change of test risk by adding one (below 0: it helps)"),
            ("gamma", "γ: the representation's part in that"),
        ),
        start=3,
    ):
        if not additions:
            break
        axes = figure.add_subplot(2, 2, place)
        for m, points in additions.items():
            _band(axes, [p.n for p in points], [getattr(p, name) for p in points], *marks[m], m)
        axes.axhline(0, color="#707070", linewidth=0.9, zorder=1)
        _finish(axes, heading, sweep.sizes)
        axes.set_xlabel("training examples", fontsize=9.5)
        if place == 4:
            legend = {f"{m} to {_short(points[0].smaller)}": marks[m] for m, points in additions.items()}
            _legend(axes, legend, "adding")
    return figure


def save_sweep_curves(sweep: Sweep, path: str | Path, title: str = "") -> None:
    """Write the picture of `sweep_curves`; the suffix of `path` says the format. Raises ValueError and OSError.

    >>> import tempfile
    >>> from mmjax.theory import LeastSquares, StrongWeak, subset_risk_sweep
    >>> splits = StrongWeak(train_examples=99, validation_examples=50, test_examples=50).load()
    >>> sweep = subset_risk_sweep(LeastSquares(), splits, sizes=[20, 40], seeds=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_sweep_curves(sweep, Path(folder) / "curves.svg")
    ...     [file.name for file in Path(folder).iterdir()]
    ['curves.svg']
    """
    sweep_curves(sweep, title).savefig(path, dpi=130)


def _shown(sweep: Sweep) -> list[Subset]:
    if len(sweep.subsets) <= _MANY:
        return list(sweep.subsets)
    sizes = {1, len(sweep.subsets[-1]) - 1, len(sweep.subsets[-1])}
    return [s for s in sweep.subsets if len(s) in sizes]


def _short(subset: Subset) -> str:
    name = subset_name(subset)
    return name if len(name) <= 22 else "the others"


def _style(k: int) -> tuple[str, Any]:
    return COLOURS[k % len(COLOURS)], _DASHES[k // len(COLOURS) % len(_DASHES)]


def _band(axes: Axes, sizes: Sequence[int], intervals: Sequence[Interval], colour: str, dash: Any, name: str) -> None:
    means = [interval.mean for interval in intervals]
    low, high = [i.low for i in intervals], [i.high for i in intervals]
    axes.fill_between(sizes, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(sizes, means, color=colour, linestyle=dash, linewidth=1.6, marker="o", markersize=4, label=name)


def _finish(axes: Axes, heading: str, sizes: Sequence[int]) -> None:
    axes.set_title(heading, loc="left", fontsize=11)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.tick_params(labelsize=9, color="#B0B0B0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#B0B0B0")
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def _maybe_log(axes: Axes) -> None:
    means = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    if means.min() > 0 and means.max() > LOG_RANGE * means.min():
        axes.set_yscale("log")
        axes.set_ylim(max(means.min() / 2, 1e-4 * means.max()), 2 * means.max())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _legend(axes: Axes, styles: dict[str, tuple[str, Any]], title: str) -> None:
    handles = [
        Line2D([], [], color=colour, linestyle=dash, linewidth=2.2, label=str(k))
        for k, (colour, dash) in enumerate(styles.values())
    ]
    legend = axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        fontsize=9.5,
        title=title,
        title_fontsize=9.5,
        alignment="left",
    )
    for text, name in zip(legend.get_texts(), styles, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
