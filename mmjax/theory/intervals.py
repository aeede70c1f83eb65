"""Intervals for means over seeds and evaluation examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_NODES = 20_001  # of the quadrature: errors below 1e-6
_SMALL = 1e-3  # below it numbers are written with an exponent
_NOTHING = 1e-9  # float32 cannot tell it from 0 beside risks of the size of 1


@dataclass(frozen=True)
class Interval:
    """mean ± half.

    >>> gap = Interval(mean=-0.5, half=0.2)
    >>> gap.low, gap.high
    (-0.7, -0.3)
    """

    mean: float
    half: float

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half


def told(interval: Interval, sign: int = 1) -> str:
    """Return "mean ± half" with two digits of the half, or three of the mean where there is no half.

    >>> told(Interval(-0.12345, 0.0312)), told(Interval(-12.3, 2.0), sign=-1), told(Interval(2.0, 0.0))
    ('−0.123 ± 0.031', '12.3 ± 2.0', '2.00 ± 0.00')
    >>> told(Interval(3.25e-5, 2e-6)), told(Interval(1e-12, 1e-13))
    ('3.25e−05 ± 2.0e−06', '0')
    """
    mean, half = sign * interval.mean, interval.half
    size = max(abs(mean), half)
    if size < _NOTHING:
        return "0"
    if size < _SMALL:
        text = f"{mean:.2e} ± {half:.1e}"
    else:
        digits = int(np.clip(1 - math.floor(math.log10(half or size / 10)), 0, 4))
        text = f"{mean:.{digits}f} ± {half:.{digits}f}"
    return text.replace("-", "−")


def student_quantile(level: float, degrees: float) -> float:
    """Return t with P(|T| <= t) = level for Student's T.

    degrees: of freedom, at least 1, whole or not. T = sqrt(degrees) tan(angle), and the angle's density is
    proportional to cos(angle)^(degrees - 1).

    >>> round(student_quantile(0.95, 9), 3), round(student_quantile(0.95, 1), 3), round(student_quantile(0.95, 1e6), 3)
    (2.262, 12.706, 1.96)
    """
    angle = np.linspace(0, min(math.pi / 2, 12 / math.sqrt(degrees)), _NODES)
    density = np.cos(angle) ** (degrees - 1)
    area = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(degrees) * math.tan(float(np.interp(level, area / area[-1], angle)))


def mean_interval(seeds: ArrayLike, groups: ArrayLike | None = None, level: float = 0.95) -> Interval:
    """Return the mean over seeds and its interval, from the spread over seeds and over evaluation examples.

    seeds: [S], one value a seed. groups: [G], the mean over seeds in each of G groups of evaluation examples, or None
    where the evaluation is not a sample. The variance of the mean is the sum of the two means' own variances (it counts
    what depends on seed and example together twice, and so is rather too large), its degrees of freedom are Welch and
    Satterthwaite's.

    Raises:
      ValueError: fewer than 2 seeds, or fewer than 2 groups.

    >>> mean_interval([1.0, 3.0]).mean
    2.0
    """
    parts = [("seeds", np.asarray(seeds, np.float64))]
    if groups is not None:
        parts.append(("groups", np.asarray(groups, np.float64)))
    variances, degrees = [], []
    for name, values in parts:
        if len(values) < 2:
            raise ValueError(f"an interval needs at least 2 {name}, got {len(values)}")
        variances.append(float(values.var(ddof=1)) / len(values))
        degrees.append(len(values) - 1)
    mean, total = float(parts[0][1].mean()), sum(variances)
    if total == 0:
        return Interval(mean, 0.0)
    effective = total**2 / sum(v**2 / d for v, d in zip(variances, degrees, strict=True))
    return Interval(mean, student_quantile(level, effective) * math.sqrt(total))
