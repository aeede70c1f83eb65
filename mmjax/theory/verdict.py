"""What a sweep says of each modality, in one sentence that claims no more than its intervals allow."""

from __future__ import annotations

from typing import Literal

from mmjax.evaluation.subsets import subset_name
from mmjax.theory.intervals import Interval, told
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
    Adding weak to strong does not help yet: it raises the test risk by ... at n = 20 ...; no other size was run.
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
                f"{what} does not help yet: it raises the test risk by {told(last.gap)}{unit} at n = {last.n} "
                f"(γ = {told(last.gamma)}); {_nowhere(points)}."
            )
        case _:
            return (
                f"Whether {what[0].lower()}{what[1:]} helps cannot be told at n = {last.n}: the test risk changes by "
                f"{told(last.gap)}{unit}, an interval that holds 0 (γ = {told(last.gamma)}); {_nowhere(points)}."
            )


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


def _nowhere(points: list[Comparison]) -> str:
    helped = [str(point.n) for point in points if effect(point.gap) == "lowers"]
    if helped:
        return f"it lowered it at n = {', '.join(helped)} only"
    return "the sweep shows no size from which it does" if len(points) > 1 else "no other size was run"
