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
"""Real inputs whose overall mean or standard deviation is outside are taken for unstandardised."""


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
    """Of an array or several: number of values, lowest, highest, mean, standard deviation."""

    number: int
    low: float
    high: float
    mean: float
    std: float


def moments(values: np.ndarray) -> Moments:
    """Return the moments of an array, in float64.

    >>> moments(np.array([1.0, 3.0]))
    Moments(number=2, low=1.0, high=3.0, mean=2.0, std=1.0)
    """
    values = np.asarray(values)
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return Moments(values.size, float(values.min()), float(values.max()), mean, std)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Return the moments of two arrays together.

    >>> merge_moments(moments(np.array([1.0])), moments(np.array([3.0])))
    Moments(number=2, low=1.0, high=3.0, mean=2.0, std=1.0)
    """
    number = a.number + b.number
    share = b.number / number
    mean = (1 - share) * a.mean + share * b.mean
    variance = (1 - share) * a.std**2 + share * b.std**2 + share * (1 - share) * (b.mean - a.mean) ** 2
    return Moments(number, min(a.low, b.low), max(a.high, b.high), mean, math.sqrt(variance))


def check_moments(name: str, kind: VisibleKind, found: Moments) -> None:
    """Check what is known of a modality's inputs against what its visible units can stand for.

    Warns (UserWarning) of real inputs that are not standardised, with the mean and standard deviation seen.

    Raises:
      ValueError: a binary input outside [0, 1] or one that is not a number.

    >>> check_moments("tags", "binary", moments(np.array([0.0, 1.5])))
    Traceback (most recent call last):
    ...
    ValueError: tags has binary visible units, which stand for values in [0, 1]; it holds values from 0.0 to 1.5
    """
    if kind == "binary":
        if not (found.low >= 0 and found.high <= 1):
            raise ValueError(
                f"{name} has binary visible units, which stand for values in [0, 1]; it holds values from {found.low} "
                f"to {found.high}"
            )
    elif not (abs(found.mean) <= MEAN_TOLERANCE and STD_RANGE[0] <= found.std <= STD_RANGE[1]):
        warnings.warn(
            f"{name} has gaussian visible units, which stand for standardised values; it has mean {found.mean:.4g} and "
            f"standard deviation {found.std:.4g}",
            UserWarning,
            stacklevel=2,
        )


def check_inputs(kinds: Mapping[str, VisibleKind], inputs: Mapping[str, Any]) -> None:
    """Check inputs {modality: [N, ...]} against visible units {modality: kind}; see `check_moments`.

    Raises:
      ValueError: a modality without a kind, a binary input outside [0, 1] or one that is not a number.

    >>> check_inputs({"tags": "binary"}, {"tags": np.array([[0.0, 1.0]])})
    """
    for name, values in inputs.items():
        if name not in kinds:
            raise ValueError(f"inputs hold {name!r}, but the model has visible units for {sorted(kinds)}")
        check_moments(name, kinds[name], moments(np.asarray(values)))
