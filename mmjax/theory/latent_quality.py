"""How good a latent representation is, apart from the head that came with it.

Source: Huang et al., "What Makes Multi-Modal Learning Better than Single (Provably)". With r the risk, g an encoder
and h a head,

    eta(g) = inf_h r(h o g) - r(h* o g*)          0 for a representation as good as the best pair's
    gamma(M, N) = eta(g_M) - eta(g_N)             N a subset of M; negative: the larger set is the better representation
    r(h_M o g_M) - r(h_N o g_N) = gamma(M, N) + headgap_M - headgap_N,     headgap = r(h o g) - inf_h r(h o g)

The infimum is measured (`head_risk`): the encoder is frozen, a head of one class, the same for every representation
that is compared, is fitted again on examples that neither the encoder nor the evaluation sees. That estimate lies above
the infimum by what the head loses on finitely many examples, so a headgap of estimates may fall below 0.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

IDENTITY_TOLERANCE = 1e-10
"""Relative to the largest risk: rounding of float64 stays far below, a wrong number far above."""


class HeadClass(Protocol):
    """A class of heads, H: how one is fitted, and what it loses.

    >>> class Constants:  # heads that do not look at the features
    ...     def fit(self, features, label):
    ...         return label.mean()
    ...     def losses(self, parameters, features, label):
    ...         return (label - parameters) ** 2
    >>> x, y = np.zeros((4, 1)), np.array([0.0, 2.0, 0.0, 2.0])
    >>> head_risk(Constants(), x, y, fit=np.arange(2), evaluation=np.arange(2, 4))
    1.0
    """

    def fit(self, features: Array, label: Array) -> Any:
        """Return the head's parameters, fitted to features [N, D] and label [N] or [N, L]."""

    def losses(self, parameters: Any, features: Array, label: Array) -> Array:
        """Return the loss of each example, [N]."""


def head_risk(
    head: HeadClass, features: ArrayLike, label: ArrayLike, *, fit: ArrayLike, evaluation: ArrayLike
) -> float:
    """Return inf_h r(h o g), estimated: the risk of a head refitted on a frozen encoder's features.

    head: the class of heads; give the same one for all representations that are to be compared.
    features: [N, D], what the frozen encoder makes of N examples that it was not trained on. label: [N] or [N, L].
    fit, evaluation: which of the N examples the head is fitted to, and on which its mean loss is taken; integers.

    Raises:
      ValueError: `fit` and `evaluation` overlap, are empty or point outside the N examples; lengths that differ; features
        that are not finite.

    >>> from mmjax.data import Task
    >>> from mmjax.theory import LinearHead
    >>> x = np.linspace(-1, 1, 40)[:, None]
    >>> risk = head_risk(LinearHead(Task("regression", 1)), x, 3 * x, fit=np.arange(20), evaluation=np.arange(20, 40))
    >>> abs(risk) < 1e-10
    True
    """
    if not np.isfinite(np.asarray(features)).all():
        raise ValueError("features must be finite; they hold NaN or infinity")
    features, label = jnp.asarray(features), jnp.asarray(label)
    if len(features) != len(label):
        raise ValueError(f"features has {len(features)} examples, but label has {len(label)}; they must be equal")
    chosen = {"fit": np.asarray(fit), "evaluation": np.asarray(evaluation)}
    for name, index in chosen.items():
        if index.ndim != 1 or index.dtype.kind not in "iu" or len(index) == 0:
            raise ValueError(f"{name} must be indices, integers [n] with n >= 1; got {index.dtype} {index.shape}")
        if index.min() < 0 or index.max() >= len(label):
            raise ValueError(
                f"{name} points at example {index[(index < 0) | (index >= len(label))][0]} of {len(label)}"
            )
    shared = np.intersect1d(chosen["fit"], chosen["evaluation"])
    if len(shared):
        raise ValueError(
            f"fit and evaluation share {len(shared)} examples, the first is {shared[0]}; a head must be evaluated on "
            "examples that it was not fitted to"
        )
    parameters = head.fit(features[chosen["fit"]], label[chosen["fit"]])
    losses = head.losses(parameters, features[chosen["evaluation"]], label[chosen["evaluation"]])
    return float(np.mean(np.asarray(jax.device_get(losses), np.float64)))


def latent_representation_quality(head_risk: ArrayLike, oracle_risk: float | None) -> NDArray[np.float64]:
    """Return eta(g) = inf_h r(h o g) - r(h* o g*), elementwise; 0 is best.

    head_risk: what `head_risk` measured, any shape. oracle_risk: r(h* o g*), the risk of the best head on the best
    representation. It is known for made-up data, hardly ever for others: there take `quality_gap`, in which it cancels.

    Warns (UserWarning) of an oracle risk above a measured one: either it is not the oracle's, or the evaluation is small.

    Raises:
      ValueError: no oracle risk, or values that are not finite.

    >>> latent_representation_quality([1.5, 1.25], oracle_risk=1.0).tolist()
    [0.5, 0.25]
    """
    if oracle_risk is None:
        raise ValueError(
            "oracle_risk is None: eta is measured from the risk of the best head on the best representation; where that "
            "is not known, use quality_gap, in which it cancels"
        )
    measured = _finite("head_risk", head_risk)
    oracle = float(_finite("oracle_risk", oracle_risk))
    if measured.size and measured.min() < oracle:
        warnings.warn(
            f"oracle_risk = {oracle:.6g} lies above a measured risk of {measured.min():.6g}: it is not the risk of the "
            "best predictor, or the evaluation has too few examples",
            UserWarning,
            stacklevel=2,
        )
    return measured - oracle


def quality_gap(head_risk_m: ArrayLike, head_risk_n: ArrayLike) -> NDArray[np.float64]:
    """Return gamma(M, N) = eta(g_M) - eta(g_N), elementwise; negative: M is the better representation.

    head_risk_m, head_risk_n: what `head_risk` measured with the larger set M and the smaller set N, of the same shape
    (say one entry a seed). The oracle risk cancels, so none is needed. With few samples gamma may well be positive.

    Raises:
      ValueError: shapes that differ, values that are not finite.

    >>> quality_gap([0.5, 0.75], [1.0, 0.5]).tolist()
    [-0.5, 0.25]
    """
    m, n = _finite("head_risk_m", head_risk_m), _finite("head_risk_n", head_risk_n)
    if m.shape != n.shape:
        raise ValueError(f"head_risk_m has shape {m.shape}, head_risk_n {n.shape}; they must be equal")
    return m - n


@dataclass(frozen=True)
class RiskDecomposition:
    """gap = gamma + head_gap_m - head_gap_n.

    gap: r(h_M o g_M) - r(h_N o g_N), negative: M predicts better; gamma: the part of the representations; head_gap_m,
    head_gap_n: what the head that was trained along loses against the refitted one.

    >>> parts = RiskDecomposition(gap=-0.5, gamma=-0.75, head_gap_m=0.25, head_gap_n=0.0)
    >>> parts.gap == parts.gamma + parts.head_gap_m - parts.head_gap_n
    True
    """

    gap: float
    gamma: float
    head_gap_m: float
    head_gap_n: float


def risk_decomposition(
    *, risk_m: float, head_risk_m: float, risk_n: float, head_risk_n: float, gamma: float | None = None
) -> RiskDecomposition:
    """Split the difference of two risks into representation and heads; an exact identity.

    risk: r(h o g) of the trained pair; head_risk: inf_h r(h o g) of the same encoder; m: the larger set, n: the smaller.
    gamma: the quality gap where it is known by another way (as from `eta_linear`); it must fit the risks then.

    Raises:
      ValueError: a value that is not finite; a `gamma` with which the identity misses by more than 1e-10 of the largest
        of the numbers.

    >>> risk_decomposition(risk_m=1.0, head_risk_m=0.75, risk_n=1.5, head_risk_n=1.5)
    RiskDecomposition(gap=-0.5, gamma=-0.75, head_gap_m=0.25, head_gap_n=0.0)
    """
    given = {"risk_m": risk_m, "head_risk_m": head_risk_m, "risk_n": risk_n, "head_risk_n": head_risk_n}
    values = {name: float(_finite(name, value)) for name, value in given.items()}
    gap = values["risk_m"] - values["risk_n"]
    between = values["head_risk_m"] - values["head_risk_n"] if gamma is None else float(_finite("gamma", gamma))
    head_gap_m = values["risk_m"] - values["head_risk_m"]
    head_gap_n = values["risk_n"] - values["head_risk_n"]
    miss = gap - (between + head_gap_m - head_gap_n)
    if abs(miss) > IDENTITY_TOLERANCE * max(1.0, *(abs(v) for v in values.values())):
        raise ValueError(
            f"gamma = {between!r} does not fit the risks: gap = {gap!r}, gamma + head_gap_m - head_gap_n = "
            f"{gap - miss!r}; the head risks say gamma = {values['head_risk_m'] - values['head_risk_n']!r}"
        )
    return RiskDecomposition(gap, between, head_gap_m, head_gap_n)


def _finite(name: str, value: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(value, np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array.tolist()}")
    return array
