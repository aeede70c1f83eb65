"""Tables of a sweep over subsets of the modalities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from mmjax.evaluation.subsets import subset_name
from mmjax.report.labels import PERCENTAGES, metric_title
from mmjax.report.sweep_plots import largest
from mmjax.theory.intervals import Interval, told
from mmjax.theory.subset_risk import Sweep


def sweep_table(sweep: Sweep, n: int, oracle_risk: float | None = None) -> Table:
    """Return what every subset reaches with n training examples: mean ± standard deviation over seeds.

    risk, score: of the trained model; refitted: the risk with the head refitted on the frozen encoders; gamma: of the
    largest subset against this one; eta: with `oracle_risk`, from the refitted heads. In bold the lowest risk.

    >>> from mmjax.theory import LeastSquares, StrongWeak, subset_risk_sweep
    >>> splits = StrongWeak(train_examples=99, validation_examples=50, test_examples=50).load()
    >>> table = sweep_table(subset_risk_sweep(LeastSquares(), splits, sizes=[20], seeds=2), 20)
    >>> [str(column.header) for column in table.columns]
    ['subset', 'risk', 'R2', 'refitted', 'γ']
    """
    whole = largest(sweep)
    cells = [cell for cell in sweep.cells if cell.n == n]
    caption = "" if whole is None else f"γ = γ({subset_name(whole)}, subset): negative, the larger set is better"
    table = Table(
        title=f"{n:,} training examples, mean ± std over {sweep.seeds} seeds, test split; risk: {sweep.risk_unit}",
        caption=caption or None,
        caption_justify="left",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    longest = max(len(subset_name(cell.subset)) for cell in cells)
    table.add_column("subset", overflow="fold", min_width=min(longest, 24))
    headings = ["risk", metric_title(sweep.score), "refitted"]
    headings += ["γ"] if whole is not None else []
    headings += ["η"] if oracle_risk is not None else []
    for heading in headings:
        table.add_column(heading, justify="right")
    lowest = min(np.mean(cell.risk) for cell in cells)
    scale = 100.0 if sweep.score in PERCENTAGES else 1.0
    unit = " %" if sweep.score in PERCENTAGES else ""
    for cell in sorted(cells, key=lambda cell: (len(cell.subset), cell.subset)):
        row = [_spread(cell.risk), _spread(cell.score, scale) + unit, _spread(cell.head_risk)]
        if whole is not None:
            gamma = np.subtract(sweep.cell(whole, n).head_risk, cell.head_risk)
            row.append("–" if cell.subset == whole else _spread(gamma))
        if oracle_risk is not None:
            row.append(_spread(sweep.quality(cell.subset, n, oracle_risk)))
        bold = "bold" if np.mean(cell.risk) == lowest else None
        table.add_row(Text(subset_name(cell.subset)), *row, style=bold)
    return table


def _spread(values: Sequence[float] | np.ndarray, scale: float = 1.0) -> str:
    """Return "mean ± standard deviation", to two digits of the latter.

    >>> _spread([1.0, 3.0]), _spread([0.91, 0.93], 100), _spread([0.25])
    ('2.0 ± 1.4', '92.0 ± 1.4', '0.250 ± 0.000')
    """
    array = scale * np.asarray(values, float)
    return told(Interval(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0))
