"""Rounds of an MRBM with the gradient of each weight matrix as one product over all rounds.

Differentiating a scan adds one product and one sum of the size of the weights per round and use of them. Here the
backward pass keeps the small cotangents of the activations, and multiplies them with the stored states once at the end:
the same number of multiplications, in fewer and larger products and without the sums.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmjax.generative.visible import VisibleKind, visible_mean

UNROLL = 8  # rounds in one piece of compiled program: independent directions can then share the cores


class Network(NamedTuple):
    """weights, bias: {missing modality: [D_m, H], [D_m]}; known: [B, H], what does not change over the rounds."""

    weights: dict[str, Array]
    bias: dict[str, Array]
    known: Array


class Clamped(NamedTuple):
    """Visible entries of the missing modalities, {modality: bool [B, D_m]}, and their values; empty: none is."""

    mask: dict[str, Array]
    values: dict[str, Array]


Kinds = tuple[tuple[str, VisibleKind], ...]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def unrolled(kinds: Kinds, count: int, network: Network, clamped: Clamped, hidden: Array) -> Array:
    """Return the hidden units' mean, [B, H], after `count` rounds from `hidden`; differentiable in reverse.

    kinds: the missing modalities and their units. A round: x_m = mean of b_m + W_m h, visible entries as they are;
    h = σ(known + Σ W_mᵀ x_m). Gradients go to everything but the masks; not in forward mode.
    """
    return _forward(kinds, count, network, clamped, hidden)[0]


def _forward(
    kinds: Kinds, count: int, network: Network, clamped: Clamped, hidden: Array
) -> tuple[Array, tuple[Network, Clamped, dict[str, Array], Array]]:
    def step(h: Array, _: None) -> tuple[Array, tuple[dict[str, Array], Array]]:
        x = {}
        drive = network.known
        for m, kind in kinds:
            x[m] = visible_mean(kind, h @ network.weights[m].T + network.bias[m])
            if m in clamped.mask:
                x[m] = jnp.where(clamped.mask[m], clamped.values[m], x[m])
            drive = drive + x[m] @ network.weights[m]
        new = jax.nn.sigmoid(drive)
        return new, (x, h)

    last, (inputs, states) = jax.lax.scan(step, hidden, length=count, unroll=min(count, UNROLL) or 1)
    return last, (network, clamped, inputs, jnp.concatenate([states, last[None]]))


def _backward(
    kinds: Kinds, count: int, kept: tuple[Network, Clamped, dict[str, Array], Array], cotangent: Array
) -> tuple[Network, Clamped, Array]:
    network, clamped, inputs, states = kept

    def step(g: Array, at: tuple[dict[str, Array], Array]) -> tuple[Array, tuple[dict[str, Array], Array]]:
        x, h = at
        drive = g * h * (1 - h)
        below, activation = jnp.zeros_like(g), {}
        for m, kind in kinds:
            d = drive @ network.weights[m].T
            if kind == "binary":
                d = d * x[m] * (1 - x[m])
            if m in clamped.mask:
                d = jnp.where(clamped.mask[m], 0, d)
            activation[m] = d
            below = below + d @ network.weights[m]
        return below, (activation, drive)

    first, (activations, drives) = jax.lax.scan(
        step, cotangent, (inputs, states[1:]), reverse=True, unroll=min(count, UNROLL) or 1
    )

    def rows(x: Array) -> Array:
        return x.reshape(-1, x.shape[-1])

    right = jnp.concatenate([rows(drives), rows(states[:-1])])
    weights = {m: jnp.concatenate([rows(inputs[m]), rows(activations[m])]).T @ right for m, _ in kinds}
    bias = {m: jnp.sum(rows(activations[m]), axis=0) for m, _ in kinds}
    total = jnp.sum(drives, axis=0)
    values = {m: jnp.where(mask, total @ network.weights[m].T, 0) for m, mask in clamped.mask.items()}
    no_gradient: Any = {m: np.zeros(mask.shape, jax.dtypes.float0) for m, mask in clamped.mask.items()}
    return Network(weights, bias, total), Clamped(no_gradient, values), first


unrolled.defvjp(_forward, _backward)
