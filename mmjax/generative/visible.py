"""Visible units: what a kind of input means for energies, means, samples and reconstruction losses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, get_args

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


def check_inputs(kinds: Mapping[str, VisibleKind], inputs: Mapping[str, Any]) -> None:
    """Check concrete inputs against what their visible units can stand for; traced arrays pass.

    kinds: {modality: kind}; inputs: {modality: [N, ...]}.

    Warns (UserWarning) of real inputs that are not standardised, with the mean and standard deviation seen.

    Raises:
      ValueError: a modality without a kind, a binary input outside [0, 1] or one that is not a number.

    >>> check_inputs({"tags": "binary"}, {"tags": np.array([[0.0, 1.5]])})
    Traceback (most recent call last):
    ...
    ValueError: tags has binary visible units, which stand for values in [0, 1]; it holds values from 0.0 to 1.5
    """
    for name, values in inputs.items():
        if name not in kinds:
            raise ValueError(f"inputs hold {name!r}, but the model has visible units for {sorted(kinds)}")
        if isinstance(values, jax.core.Tracer):
            continue
        array = np.asarray(values)
        if kinds[name] == "binary":
            low, high = float(array.min()), float(array.max())
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"{name} has binary visible units, which stand for values in [0, 1]; it holds values from {low} "
                    f"to {high}"
                )
            continue
        mean, std = float(array.mean(dtype=np.float64)), float(array.std(dtype=np.float64))
        if not (abs(mean) <= MEAN_TOLERANCE and STD_RANGE[0] <= std <= STD_RANGE[1]):
            warnings.warn(
                f"{name} has gaussian visible units, which stand for standardised values; it has mean {mean:.4g} and "
                f"standard deviation {std:.4g}",
                UserWarning,
                stacklevel=2,
            )
