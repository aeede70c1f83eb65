"""Calibration at work: what `bogc` made of the objectives' gradients in each layer, one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from mmjax.report.plots import (
    Rows,
    _draw,
    _finish_positive,
    _legend,
    _objectives,
    _Panel,
    _Series,
    _Style,
    _styles,
    _values,
)

_PREFIX = "bogc/"
_SHOWN = 5  # layers side by side; of more, these are taken evenly, the first and the last among them
_LONG = 14  # letters of a layer's name from which on the title takes two lines
_HELD = _Style("#303030", width=1.6)


def has_calibration(rows: Rows) -> bool:
    """Return whether the rows hold diagnostics of `bogc`.

    >>> has_calibration([{"step": 1, "kind": "train", "loss/fusion": 2.0}])
    False
    >>> has_calibration([{"step": 1, "kind": "train", "bogc/held_back/audio": 0.25}])
    True
    """
    return any(key.startswith(_PREFIX) for row in rows for key in row)


def calibration(rows: Rows, title: str = "") -> Figure:
    """Return the picture of a run with `bogc`: a column a layer, and one for the posteriors.

    rows: as in metrics.jsonl. A layer is a modality's features or a module's parameters; only those where two objectives or
    more meet are shown, five at most. From above: the mean weight of each objective (1 is the plain sum), its mean
    evidence, the share of entries that are held back to less than half of the plain step. At the right the trace of each
    last layer's posterior covariance, where there is one.

    Raises:
      ValueError: the rows hold no diagnostics of `bogc`.

    >>> rows = [
    ...     {"step": step, "kind": "train", "loss/fusion": 2.0, "loss/audio": 2.0, "bogc/held_back/audio": 0.25}
    ...     | {f"bogc/weight/audio/{name}": 1.0 + step / 10 for name in ("fusion", "audio")}
    ...     | {f"bogc/evidence/audio/{name}": float(step) for name in ("fusion", "audio")}
    ...     for step in (1, 2)
    ... ]
    >>> [axes.get_title(loc="left") for axes in calibration(rows, "a short run").axes]
    ['audio: mean weight', 'mean evidence', 'held back']
    """
    if not has_calibration(rows):
        raise ValueError("these rows hold no diagnostics of bogc")
    names = _objectives(rows)
    styles = _styles(names)
    layers = _layers(rows, names)
    shown = [
        layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, min(len(layers), _SHOWN)).round().astype(int))
    ]
    columns = [_of_layer(rows, layer, names, styles) for layer in shown]
    traces = _series(rows, {n: f"{_PREFIX}posterior_trace/{n}" for n in names}, styles)
    figure = Figure(figsize=(12, 7), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    left_out = f"  ({len(shown)} of {len(layers)} layers)" if len(shown) < len(layers) else ""
    if len(layers) < len(_held_back(rows)):
        left_out += "\nlayers of one objective alone are not shown"
    figure.suptitle(f"{title}{left_out}", fontsize=13, fontweight="bold", parse_math=False)
    steps = [s.steps[-1] for column in columns for panel in column for s in panel.series] + [
        s.steps[-1] for s in traces
    ]
    last = float(max(steps, default=1))
    grid = figure.add_gridspec(3, len(columns) + bool(traces))
    for place, column in enumerate(columns):
        for row, panel in enumerate(column):
            _draw(figure.add_subplot(grid[row, place]), panel, last)
    if traces:
        _draw(figure.add_subplot(grid[:, -1]), _Panel("trace of the posterior", traces, _finish_positive), last)
    for axes in figure.axes:
        axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=10)
    for axes in figure.axes[2 : 3 * len(columns) : 3] + figure.axes[3 * len(columns) :]:
        axes.set_xlabel("step", fontsize=9.5)
    _legend(figure, {n: styles[n] for n in names}, crowded=False)
    return figure


def save_calibration(rows: Rows, path: str | Path, title: str = "") -> None:
    """Write the picture of `calibration`; the suffix of `path` says the format (.png, .svg, .pdf).

    Raises:
      ValueError: the rows hold no diagnostics of `bogc`.
      OSError: the file cannot be written.

    >>> import tempfile
    >>> rows = [
    ...     {"step": 1, "kind": "train", "loss/fusion": 2.0, "loss/audio": 2.0, "bogc/held_back/audio": 0.25}
    ...     | {f"bogc/{what}/audio/{name}": 1.0 for what in ("weight", "evidence") for name in ("fusion", "audio")}
    ... ]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_calibration(rows, Path(folder) / "calibration.svg")
    ...     [file.name for file in Path(folder).iterdir()]
    ['calibration.svg']
    """
    calibration(rows, title).savefig(path, dpi=130)


def _layers(rows: Rows, names: Sequence[str]) -> list[str]:
    """Return the layers where two objectives or more have weight, in the order of the rows."""
    return [layer for layer in _held_back(rows) if len(_touching(rows, layer, names)) > 1]


def _held_back(rows: Rows) -> list[str]:
    """Return all layers, in the order of the rows."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(f"{_PREFIX}held_back/"))
    return [key.removeprefix(f"{_PREFIX}held_back/") for key in keys]


def _touching(rows: Rows, layer: str, names: Sequence[str]) -> list[str]:
    keys = {name: f"{_PREFIX}weight/{layer}/{name}" for name in names}
    return [name for name, key in keys.items() if any(row.get(key, 0) != 0 for row in rows)]


def _of_layer(rows: Rows, layer: str, names: Sequence[str], styles: Mapping[str, _Style]) -> list[_Panel]:
    there = _touching(rows, layer, names)
    of = lambda what: _series(rows, {n: f"{_PREFIX}{what}/{layer}/{n}" for n in there}, styles)  # noqa: E731
    steps, held = _values(rows, "train", f"{_PREFIX}held_back/{layer}")
    gap = " " if len(layer) < _LONG else "\n"
    return [
        _Panel(f"{layer}:{gap}mean weight", of("weight"), _finish_weight),
        _Panel("mean evidence", of("evidence"), _finish_positive),
        _Panel("held back", [_Series("held back", steps, held, _HELD)], _finish_share),
    ]


def _series(rows: Rows, keys: Mapping[str, str], styles: Mapping[str, _Style]) -> list[_Series]:
    found = ((name, *_values(rows, "train", key)) for name, key in keys.items())
    return [_Series(name, steps, values, styles[name]) for name, steps, values in found if np.isfinite(values).any()]


def _finish_weight(axes: Axes, series: list[_Series]) -> None:
    axes.axhline(1, color="#707070", linewidth=0.9, zorder=1)
    highest = max((float(np.nanmax(s.values)) for s in series), default=1.0)
    axes.set_ylim(0, max(2.0, 1.05 * highest))


def _finish_share(axes: Axes, series: list[_Series]) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g} %"))
    axes.set_ylim(0, max(0.1, 1.1 * max((float(np.nanmax(s.values)) for s in series), default=0.0)))
