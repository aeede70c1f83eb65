"""Variation of information, VI(X, Y) = H(X|Y) + H(Y|X), and the objective that estimates it from conditionals.

Source: Sohn, Shang and Lee, "Improved Multimodal Deep Learning with Variation of Information": instead of the joint
likelihood, minimise L_VI(θ) = -E_D[log p_θ(x|y) + log p_θ(y|x)]. With the data equal to the model it is the model's VI,
and 2 NLL(x, y) = NLL(x) + NLL(y) + L_VI always. Everything is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def vi_objective(
    log_conditionals: Mapping[str, Array],
    *,
    probability: Array | None = None,
    weights: Mapping[str, float] | None = None,
) -> Array:
    """Return -E[Σ_m w_m log p(the other | m)], a scalar.

    log_conditionals: {given modality: [B]}, for two modalities. probability: of each example, [B], summing to 1; None:
    a plain mean. weights: {given modality: w_m >= 0}, 1 by default; a weight of 0 leaves one direction out, and with
    {"x": 1, "y": 0} the rest is the conditional likelihood -E[log p(y|x)].

    Raises:
      ValueError: not two modalities, weights of other modalities, a negative weight, or all of them 0.

    >>> vi_objective({"x": jnp.log(jnp.array([0.5, 0.5])), "y": jnp.zeros(2)}).round(4).tolist()
    0.6930999755859375
    """
    if len(log_conditionals) != 2:
        raise ValueError(f"variation of information is between two modalities, got {sorted(log_conditionals)}")
    weights = dict.fromkeys(log_conditionals, 1.0) if weights is None else weights
    if set(weights) != set(log_conditionals):
        raise ValueError(f"weights are of {sorted(weights)}; the modalities are {sorted(log_conditionals)}")
    if any(w < 0 for w in weights.values()) or not any(weights.values()):
        raise ValueError(f"weights must be at least 0 and not all 0, got {dict(weights)}")
    # what has no weight or no probability has no say, though its logarithm may be -inf
    total = sum((weights[m] * log_conditionals[m] for m in sorted(weights) if weights[m]), jnp.zeros(()))
    if probability is None:
        return -jnp.mean(total)
    return -jnp.sum(jnp.where(probability > 0, probability * jnp.where(probability > 0, total, 0), 0))


def conditional_entropy(joint: Any, given: int) -> Array:
    """Return the entropy of one axis given the other, of a table p(x, y) [X, Y]; given: 0 for H(Y|X), 1 for H(X|Y).

    Raises:
      ValueError: a concrete table that is not two-dimensional, has a negative entry or does not sum to 1.

    >>> conditional_entropy(np.array([[0.5, 0.0], [0.25, 0.25]]), given=1).round(4).tolist()
    0.4773999750614166
    """
    joint = check_table("joint", joint)
    return _cross_entropy(joint, joint, given)


def _cross_entropy(data: Array, model: Array, given: int) -> Array:
    """Return -Σ p log q(one axis | the other): infinite where the data have mass and the model has none, else smooth."""
    marginal = jnp.sum(model, axis=1 - given, keepdims=True)
    seen = data > 0
    possible = seen & (model > 0)
    log_conditional = jnp.log(jnp.where(possible, model, 1)) - jnp.log(jnp.where(marginal > 0, marginal, 1))
    found = jnp.sum(jnp.where(possible, -data * log_conditional, 0)) + 0.0  # never -0
    return jnp.where(jnp.any(seen & ~possible), jnp.inf, found)


def table_variation_of_information(joint: Any) -> Array:
    """Return VI = H(X|Y) + H(Y|X) of a table p(x, y) [X, Y]: 0 where each determines the other.

    Raises:
      ValueError: as `conditional_entropy`.

    >>> table_variation_of_information(np.eye(3) / 3).tolist()
    0.0
    """
    return conditional_entropy(joint, given=0) + conditional_entropy(joint, given=1)


def table_objective(data: Any, model: Any, weights: tuple[float, float] = (1.0, 1.0)) -> Array:
    """Return L_VI of a model's table q(x, y) under the data's p(x, y): -Σ p [w_0 log q(y|x) + w_1 log q(x|y)].

    Only the conditionals of q matter: where the support falls into blocks that share no row and no column, moving mass
    between blocks leaves the value as it is. weights: of the direction from rows (x given) and from columns.
    Infinite where the data have mass and the model has none.

    Raises:
      ValueError: tables of different shapes, a negative weight or all of them 0, or as `conditional_entropy`.

    >>> p = np.array([[0.1, 0.2], [0.3, 0.4]])
    >>> bool(abs(table_objective(p, p) - table_variation_of_information(p)) < 1e-6)
    True
    """
    data, model = check_table("data", data), check_table("model", model)
    if data.shape != model.shape:
        raise ValueError(f"data and model must be tables of one shape, got {data.shape} and {model.shape}")

    if any(not w >= 0 for w in weights) or not any(weights):
        raise ValueError(f"weights must be at least 0 and not all 0, got {weights}")
    return sum((w * _cross_entropy(data, model, axis) for axis, w in enumerate(weights) if w), jnp.zeros(()))


def gaussian_variation_of_information(covariance: Any, num_x: int) -> float:
    """Return VI of jointly normal X (the first `num_x` dimensions) and Y; a differential entropy, so it may be negative.

    H(Y|X) = ½ log((2πe)^n |Σ| / |Σ_xx|), n the dimensions of Y, and likewise the other way.

    Raises:
      ValueError: a covariance that is not symmetric and positive definite, num_x outside 1..D-1.

    >>> round(gaussian_variation_of_information(np.eye(2), num_x=1), 4)  # log 2πe
    2.8379
    """
    covariance = np.asarray(covariance, np.float64)
    size = len(covariance) if covariance.ndim else 0
    if covariance.shape != (size, size) or not np.allclose(covariance, covariance.T):
        raise ValueError(f"covariance must be a symmetric matrix, got shape {covariance.shape}")
    if not 1 <= num_x < size:
        raise ValueError(f"num_x must be in 1..{size - 1}, got {num_x}")
    if np.linalg.eigvalsh(covariance)[0] <= 0:
        raise ValueError("covariance must be positive definite")
    whole, x, y = (
        np.linalg.slogdet(part)[1] for part in (covariance, covariance[:num_x, :num_x], covariance[num_x:, num_x:])
    )
    return float(0.5 * (size * math.log(2 * math.pi * math.e) + 2 * whole - x - y))


def check_table(name: str, table: Any) -> Array:
    """Return `table` as an array. Raises ValueError if it is concrete and no table of joint probabilities [X, Y]."""
    array = table if isinstance(table, jax.core.Tracer) else np.asarray(table)
    if array.ndim != 2:
        raise ValueError(f"{name} must be a table [X, Y], got shape {array.shape}")
    if not isinstance(array, jax.core.Tracer) and not (array.min() >= 0 and abs(array.sum() - 1) < 1e-4):
        raise ValueError(f"{name} must hold probabilities that sum to 1; it sums to {array.sum():.6g}")
    return jnp.asarray(array)
