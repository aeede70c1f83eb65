"""The bound of Theorem 1, and the complexity of linear classes that goes into it.

Source: Huang et al., "What Makes Multi-Modal Learning Better than Single (Provably)", Theorem 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


def rademacher_linear(x: ArrayLike, norm_bound: float) -> float:
    """Return B sqrt(sum_i |x_i|^2) / n, which bounds the empirical Rademacher complexity of {x -> a.x : |a| <= B}.

    x: [n, d], the sample (flattened inputs, those of all modalities side by side). norm_bound: B, above 0.

    Raises:
      ValueError: an x of another shape or not finite, a norm bound that is not above 0.

    >>> rademacher_linear([[3.0, 4.0], [0.0, 0.0]], norm_bound=2.0)
    5.0
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x must be a sample [n, d] with n >= 1, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("x must be finite; it holds NaN or infinity")
    _require("norm_bound", norm_bound, "finite and above 0", norm_bound > 0)
    return float(norm_bound * math.sqrt(np.sum(x**2)) / len(x))


@dataclass(frozen=True)
class BoundTerms:
    """The terms of Theorem 1's right-hand side; `total` is the bound, `dominant` the name of its largest term.

    >>> terms = BoundTerms(gamma=-0.5, complexity=0.08, sampling=0.04, confidence=0.05)
    >>> round(terms.total, 2), terms.dominant
    (-0.33, 'gamma')
    """

    gamma: float
    complexity: float
    sampling: float
    confidence: float

    @property
    def total(self) -> float:
        """The bound on r(h_M o g_M) - r(h_N o g_N)."""
        return self.gamma + self.complexity + self.sampling + self.confidence

    @property
    def dominant(self) -> str:
        """Name of the term of largest magnitude."""
        return max(vars(self), key=lambda name: abs(getattr(self, name)))


def theorem1_bound(
    gamma: float, rademacher: float, n: int, *, lipschitz: float, loss_bound: float, delta: float = 0.05
) -> BoundTerms:
    """Return the terms of gamma(M, N) + 8 L R_n(H o G_M) + 4 C / sqrt(n) + 2 C sqrt(2 ln(2/delta) / n).

    With probability at least 1 - delta this bounds r(h_M o g_M) - r(h_N o g_N) for empirical risk minimisers on n
    examples, of a loss that is L-Lipschitz in the prediction and lies in [0, C]. For a loss that is not bounded (squared
    error, cross-entropy) C holds only where predictions and labels are clipped to a range; so the bound speaks of the
    clipped loss. Every term but gamma is positive: a bound above 0 does not say that M is worse.

    gamma: `quality_gap`. rademacher: R_n(H o G_M), for linear classes from `rademacher_linear`. lipschitz: L.
    loss_bound: C. delta: the probability that the bound fails.

    Raises:
      ValueError: an argument out of range.

    >>> terms = theorem1_bound(-0.5, rademacher=0.01, n=10_000, lipschitz=1.0, loss_bound=1.0, delta=0.05)
    >>> round(terms.complexity, 4), round(terms.sampling, 4), round(terms.confidence, 4), round(terms.total, 4)
    (0.08, 0.04, 0.0543, -0.3257)
    >>> terms.dominant
    'gamma'
    """
    _require("gamma", gamma, "finite", math.isfinite(gamma))
    _require("rademacher", rademacher, "finite and at least 0", rademacher >= 0)
    _require("n", n, "at least 1", n >= 1)
    _require("lipschitz", lipschitz, "finite and above 0", lipschitz > 0)
    _require("loss_bound", loss_bound, "finite and above 0", loss_bound > 0)
    _require("delta", delta, "in (0, 1)", 0 < delta < 1)
    return BoundTerms(
        gamma=float(gamma),
        complexity=8 * lipschitz * rademacher,
        sampling=4 * loss_bound / math.sqrt(n),
        confidence=2 * loss_bound * math.sqrt(2 * math.log(2 / delta) / n),
    )


def _require(name: str, value: float, right: str, ok: bool) -> None:
    if not (ok and math.isfinite(value)):
        raise ValueError(f"{name} must be {right}, got {value!r}")
