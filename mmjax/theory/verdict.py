"""What a sweep says of each modality, in one sentence that claims no more than its intervals allow."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mmjax.evaluation.subsets import subset_name
from mmjax.theory.intervals import Interval, mean_interval, told
from mmjax.theory.subset_risk import Comparison, Sweep

Effect = Literal["lowers", "raises", "unclear"]

MOST = 0.5
"""Share of the gap from which the representation explains most of it."""


def effect(gap: Interval) -> Effect:
    """Return what an interval of a difference of risks says: unclear while it holds 0.

    >>> effect(Interval(-0.2, 0.1)), effect(Interval(-0.2, 0.3)), effect(Interval(0.2, 0.1))
    ('lowers', 'unclear', 'raises')
    """
    if gap.high < 0:
        return "lowers"
    return "raises" if gap.low > 0 else "unclear"


def helps_from(points: list[Comparison]) -> int | None:
    """Return the smallest size from which on the modality lowers the risk at every size of the sweep, or None."""
    found = None
    for point in reversed(points):
        if effect(point.gap) != "lowers":
            break
        found = point.n
    return found


def verdict(sweep: Sweep, modality: str) -> str:
    """Return the sentence on one modality: whether adding it lowers the test risk, why, and from how many samples on.

    It speaks of the largest set that was run with and without the modality, at the largest size, and of the 95 %
    intervals (one comparison at a time: among many, one in twenty is wrong). An interval that holds 0 is told as what it
    is: not known.

    Raises:
      ValueError: a modality that the sweep does not have; a single seed.

    >>> from mmjax.theory import LeastSquares, StrongWeak, subset_risk_sweep
    >>> splits = StrongWeak(train_examples=200, validation_examples=100, test_examples=100).load()
    >>> sweep = subset_risk_sweep(LeastSquares(), splits, sizes=[20], seeds=3)
    >>> print(verdict(sweep, "strong"))  # doctest: +ELLIPSIS
    Adding strong to weak lowers the test risk by ... at n = 20; γ = ...
    >>> print(verdict(sweep, "weak"))  # doctest: +ELLIPSIS
    Adding weak to strong does not help yet: it raises the test risk by ... at n = 20; γ = ...; no other size was run.
    """
    if modality not in sweep.modalities:
        raise ValueError(f"modality {modality!r} is not of this sweep ({', '.join(sweep.modalities)})")
    points = sweep.additions(modality)
    if not points:
        return (
            f"Whether adding {modality} helps cannot be told: no two subsets were run that differ by {modality} alone."
        )
    last, unit = points[-1], f" {sweep.risk_unit}" if sweep.risk_unit == "nats" else ""
    what = f"Adding {modality} to {subset_name(last.smaller)}"
    match effect(last.gap):
        case "lowers":
            lower = f"{what} lowers the test risk by {told(last.gap, -1)}{unit} at n = {last.n}"
            return f"{lower}; {_why(last)}{_since(points)}."
        case "raises":
            return (
                f"{what} does not help yet: it raises the test risk by {told(last.gap)}{unit} at n = {last.n}; "
                f"{_why_not(last)}; {_nowhere(sweep, points)}."
            )
        case _:
            return (
                f"Whether {what[0].lower()}{what[1:]} helps cannot be told at n = {last.n}: the test risk changes by "
                f"{told(last.gap)}{unit}, an interval that holds 0 (γ = {told(last.gamma)}); {_nowhere(sweep, points)}."
            )


def expected_from(sweep: Sweep, points: list[Comparison]) -> float | None:
    """Return the size from which on the modality should lower the risk, beyond those that were run; None: no telling.

    The risk of a fitted model exceeds its limit by about a constant over n, and so does a difference of two: a + b/n is
    fitted to each seed's gaps by least squares, and changes its sign at -b/a. Only with three sizes or more, an a
    whose 95 % interval lies below 0, and a curve that goes through the interval of the gap at every size.
    """
    if len(points) < 3:
        return None
    gaps = np.array([np.subtract(sweep.cell(p.larger, p.n).risk, sweep.cell(p.smaller, p.n).risk) for p in points])
    inverse = 1 / np.array([p.n for p in points], np.float64)
    (limits, slopes), *_ = np.linalg.lstsq(np.stack([np.ones_like(inverse), inverse], axis=1), gaps)
    limit, slope = mean_interval(limits), slopes.mean()
    curve = limit.mean + slope * inverse
    through = all(p.gap.low <= value <= p.gap.high for p, value in zip(points, curve, strict=True))
    if limit.high >= 0 or not through:
        return None
    size = -slope / limit.mean
    return float(size) if size > points[-1].n else None


def _why_not(point: Comparison) -> str:
    gamma = f"γ = {told(point.gamma)}"
    match effect(point.gamma):
        case "raises":
            return f"{gamma}: the representation is worse"
        case "lowers":
            return f"{gamma}: the representation is better, it is the head trained along with it that loses"
        case _:
            return f"{gamma} cannot be told from 0"


def _why(point: Comparison) -> str:
    gamma, share = f"γ = {told(point.gamma)}", point.gamma.mean / point.gap.mean
    match effect(point.gamma):
        case "lowers" if share >= MOST:
            return f"{gamma}, so most of it is a better representation"
        case "lowers":
            return f"{gamma}, so about {share:.0%} of it is a better representation, the rest a head that fits better"
        case "raises":
            return f"{gamma}: the representation is worse, the gain is the head's alone"
        case _:
            return f"{gamma} cannot be told from 0, so a better representation is not shown"


def _since(points: list[Comparison]) -> str:
    if len(points) == 1:
        return ""
    start = helps_from(points)
    if start == points[0].n:
        return f"; it helps at every size run, from n = {start} on"
    before = [point for point in points if start is not None and point.n < start][-1]
    at = f"at n = {before.n}"
    was = (
        f"{at} it raised the risk by {told(before.gap)}"
        if effect(before.gap) == "raises"
        else f"{at} that could not be told ({told(before.gap)})"
    )
    return f"; it helps from n = {start} on, {was}"


def _nowhere(sweep: Sweep, points: list[Comparison]) -> str:
    helped = [str(point.n) for point in points if effect(point.gap) == "lowers"]
    if helped:
        return f"it lowered it at n = {', '.join(helped)} only"
    if len(points) == 1:
        return "no other size was run"
    size = expected_from(sweep, points)
    if size is None:
        return "the sweep shows no size from which it does, and allows no estimate of one"
    return f"extrapolated by a + b/n, it would from about n = {float(f'{size:.1g}'):.0f} on"
