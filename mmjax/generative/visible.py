"""Visible units: what a kind of input means for energies, means, samples and reconstruction losses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

VisibleKind = Literal["binary", "gaussian"]
"""binary: values in [0, 1], Bernoulli given the hidden units; gaussian: real, standardised, of unit variance given them."""

MEAN_TOLERANCE, STD_RANGE = 0.5, (0.5, 2.0)
"""Real features whose mean or standard deviation is outside are taken for unstandardised."""

TINY = 1e-12  # a feature that never varies: far off, and no division by 0


def check_kind(name: str, kind: str) -> None:
    """Raise ValueError unless `kind` is a kind of visible unit.

    >>> check_kind("tags", "count")
    Traceback (most recent call last):
    ...
    ValueError: visible units of tags must be one of binary, gaussian; got 'count'
    """
    if kind not in get_args(VisibleKind):
        raise ValueError(f"visible units of {name} must be one of {', '.join(get_args(VisibleKind))}; got {kind!r}")


def visible_energy(kind: VisibleKind, v: Array, bias: Array) -> Array:
    """Return the energy's term of the visible units alone, [...]: -bᵀv, or ½‖v - b‖² for gaussian.

    v: [..., D]; bias: [D].
    """
    if kind == "binary":
        return -jnp.sum(v * bias, axis=-1)
    return 0.5 * jnp.sum((v - bias) ** 2, axis=-1)


def visible_mean(kind: VisibleKind, activation: Array) -> Array:
    """Return E[v | h] of the activation b + W h, [..., D]: its sigmoid, or itself for gaussian."""
    return jax.nn.sigmoid(activation) if kind == "binary" else activation


def visible_start(kind: VisibleKind, v: Array) -> Array:
    """Return the bias [D] with which units without connections have the mean of v [N, D].

    Binary units that are always or never on count as if half an example were otherwise.

    >>> visible_start("binary", jnp.array([[1.0, 0.0], [0.0, 0.0]])).round().tolist()
    [0.0, -1.0]
    """
    mean = v.mean(axis=0)
    if kind == "gaussian":
        return mean
    least = 1 / (2 * len(v))
    mean = jnp.clip(mean, least, 1 - least)
    return jnp.log(mean) - jnp.log1p(-mean)


def sample_visible(kind: VisibleKind, key: Array, activation: Array) -> Array:
    """Draw v given h from the activation b + W h, [..., D]."""
    if kind == "binary":
        return sample_bernoulli(key, activation)
    return activation + jax.random.normal(key, activation.shape, activation.dtype)


def sample_bernoulli(key: Array, logits: Array) -> Array:
    """Draw 0 or 1 with probability sigmoid(logits), in the logits' number format."""
    return jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(logits.dtype)


def reconstruction_loss(kind: VisibleKind, activation: Array, v: Array) -> Array:
    """Return the loss of every entry, [..., D], in nats: cross-entropy from logits, or ½(v - activation)² for gaussian.

    The second is the negative log-density of a normal of unit variance without its constant, ½ log 2π.

    >>> reconstruction_loss("binary", jnp.zeros(2), jnp.array([0.0, 1.0])).round(4).tolist()
    [0.6930999755859375, 0.6930999755859375]
    """
    if kind == "binary":
        return optax.sigmoid_binary_cross_entropy(activation, v)
    return 0.5 * (v - activation) ** 2


def log_visible_sum(kind: VisibleKind, activation: Array, bias: Array) -> Array:
    """Return log Σ_v exp(vᵀW h - visible_energy(v)) (an integral for gaussian), [...], of activation b + W h [..., D]."""
    if kind == "binary":
        return jnp.sum(jax.nn.softplus(activation), axis=-1)
    return jnp.sum(0.5 * activation**2 - 0.5 * bias**2, axis=-1) + 0.5 * math.log(2 * math.pi) * bias.shape[-1]


class Moments(NamedTuple):
    """Of features [N, ...], each by itself: number of examples; lowest, highest, mean, standard deviation, [D]."""

    number: int
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def moments(values: np.ndarray) -> Moments:
    """Return the moments of each feature of [N, ...], in float64. Raises ValueError for no example.

    >>> found = moments(np.array([[1.0, 0.0], [3.0, 0.0]]))
    >>> found.number, found.mean.tolist(), found.std.tolist()
    (2, [2.0, 0.0], [1.0, 0.0])
    """
    values = np.asarray(values, np.float64)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"inputs must be [N, ...] with N >= 1, got shape {values.shape}")
    rows = values.reshape(len(values), -1)
    return Moments(len(rows), rows.min(axis=0), rows.max(axis=0), rows.mean(axis=0), rows.std(axis=0))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Return the moments of two arrays of the same features together.

    >>> merged = merge_moments(moments(np.array([[1.0]])), moments(np.array([[3.0]])))
    >>> merged.number, merged.mean.tolist(), merged.std.tolist()
    (2, [2.0], [1.0])
    """
    number = a.number + b.number
    share = b.number / number
    mean = (1 - share) * a.mean + share * b.mean
    variance = (1 - share) * a.std**2 + share * b.std**2 + share * (1 - share) * (b.mean - a.mean) ** 2
    return Moments(number, np.minimum(a.low, b.low), np.maximum(a.high, b.high), mean, np.sqrt(variance))


def check_moments(name: str, kind: VisibleKind, found: Moments) -> None:
    """Check what is known of a modality's inputs against what its visible units can stand for.

    Warns (UserWarning) of real features that are not standardised, with mean and standard deviation of the worst.

    Raises:
      ValueError: inputs that are not finite; a binary input outside [0, 1].

    >>> check_moments("tags", "binary", moments(np.array([[0.0], [1.5]])))
    Traceback (most recent call last):
    ...
    ValueError: tags has binary visible units, which stand for values in [0, 1]; it holds values from 0.0 to 1.5
    """
    low, high = float(found.low.min()), float(found.high.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} holds NaN or infinite values")
    if kind == "binary":
        if low < 0 or high > 1:
            raise ValueError(
                f"{name} has binary visible units, which stand for values in [0, 1]; it holds values from {low} to {high}"
            )
        return
    if found.number == 1:
        return  # one example has no standard deviation
    # how often a feature misses what is tolerated: 1 at its ends
    least, most = STD_RANGE
    off = np.maximum(np.abs(found.mean) / MEAN_TOLERANCE, np.maximum(found.std / most, least / (found.std + TINY)))
    wrong, worst = int((off > 1).sum()), int(np.argmax(off))
    if wrong:
        warnings.warn(
            f"{name} has gaussian visible units, which stand for standardised values; {wrong} of its {len(off)} features "
            f"are not, the worst (number {worst}) with mean {found.mean[worst]:.4g} and standard deviation "
            f"{found.std[worst]:.4g}",
            UserWarning,
            stacklevel=2,
        )


def check_inputs(kinds: Mapping[str, VisibleKind], inputs: Mapping[str, Any]) -> None:
    """Check inputs {modality: [N, ...]} against visible units {modality: kind}; see `check_moments`.

    Raises:
      ValueError: a modality without a kind, no example, inputs that are not finite, a binary input outside [0, 1].

    >>> check_inputs({"tags": "binary"}, {"tags": np.array([[0.0, 1.0]])})
    """
    for name, values in inputs.items():
        if name not in kinds:
            raise ValueError(f"inputs hold {name!r}, but the model has visible units for {sorted(kinds)}")
        check_moments(name, kinds[name], moments(np.asarray(values)))
