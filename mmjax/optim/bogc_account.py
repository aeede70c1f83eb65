"""What BOGC tells of a step: evidence, weights and the share held back, by layer and objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mmjax.reductions import any_row, means_where

PyTree = Any

HELD_BACK = 0.5
"""An entry whose boldness is below this counts as held back."""


class Account(NamedTuple):
    """Of one leaf: its objectives, their mean evidence and weight [T], the share held back, the number of entries.

    has_opinion: bool [T], of whom any entry is live, in any example.
    """

    objectives: tuple[int, ...]
    evidence: Array
    weights: Array
    held_back: Array
    size: int
    has_opinion: Array


def account_of(
    ids: tuple[int, ...],
    evidence: Array,
    live: Array,
    weights: Array,
    boldness: Array,
    size: int,
    axis: str | None,
) -> Account:
    """Return the account of one leaf of `size` entries, reached by the objectives `ids` (T of them).

    evidence, live, weights: [T, ...], with the examples' axis next at the features; boldness: [...]. axis: the devices'.
    """
    evidence, live, weights, boldness = jnp.broadcast_arrays(evidence, live, weights, boldness)
    count = len(ids)
    held_back, everything = (boldness[0] < HELD_BACK).astype(evidence.dtype), jnp.ones_like(live[0])
    told = [(evidence[t], live[t]) for t in range(count)]
    told += [(weights[t], everything) for t in range(count)]
    told += [(jnp.ones_like(evidence[t]), live[t]) for t in range(count)]
    means = means_where([*told, (held_back, any_row(live))], axis)
    return Account(
        ids, means[:count], means[count : 2 * count], means[-1], size, has_opinion=means[2 * count : 3 * count] > 0
    )


def overall_weights(accounts: Sequence[Account], num_objectives: int) -> Array:
    """Return each objective's mean weight over the leaves on which it has an opinion, [K]; 1 if it has none."""
    total, size = [jnp.zeros(())] * num_objectives, [jnp.zeros(())] * num_objectives
    for account in accounts:
        for row, k in enumerate(account.objectives):
            entries = account.size * account.has_opinion[row]
            total[k] = total[k] + entries * account.weights[row]
            size[k] = size[k] + entries
    means = [jnp.where(n > 0, t / jnp.maximum(n, 1), 1) for t, n in zip(total, size, strict=True)]
    return jnp.stack(means).astype(jnp.float32)


def named_accounts(
    squares: PyTree, names: Sequence[str], of_moments: Mapping[str, Array], accounts: Sequence[Account] | None = None
) -> dict[str, Array]:
    """Return the diagnostics, {name: scalar}; without accounts only their names count.

    squares: a tree with a leaf for each account. of_moments: the estimator's own, {what: [K]}.
    """
    told = {f"bogc/{what}/{name}": values[k] for what, values in of_moments.items() for k, name in enumerate(names)}
    layers: dict[str, list[int]] = {}
    for i, (path, _) in enumerate(jax.tree.leaves_with_path(squares)):
        layers.setdefault(_layer(path), []).append(i)
    for layer, leaves in layers.items():
        chosen = [] if accounts is None else [accounts[i] for i in leaves]
        for k, name in enumerate(names):
            touched = [(a, a.objectives.index(k)) for a in chosen if k in a.objectives]
            told[f"bogc/evidence/{layer}/{name}"] = _mean([(a.evidence[row], a.size) for a, row in touched])
            told[f"bogc/weight/{layer}/{name}"] = _mean([(a.weights[row], a.size) for a, row in touched])
        told[f"bogc/held_back/{layer}"] = _mean([(a.held_back, a.size) for a in chosen])
    return {name: jnp.asarray(value, jnp.float32) for name, value in told.items()}


def _layer(path: tuple[Any, ...]) -> str:
    """Name a leaf's layer: the path to its module (kernel and bias are one layer), or its own name at the top."""
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    return ".".join(parts[:-1] or parts)


def _mean(values: Sequence[tuple[Array, int]]) -> Array:
    total = sum(size for _, size in values)
    return sum((x * (size / total) for x, size in values), jnp.zeros(()))
