"""Recurrent inference for networks of today: fill in the features of missing modalities, round by round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmjax.models.encoders import MLP


class RecurrentEncoder(nn.Module):
    """Replaces the features of missing modalities by what the present ones say of them, in `rounds` rounds.

    encoders: {modality: module (features [B, D_m], train) -> [B, H]}, H the same for all, joined to one state by their
    sum, layer norm and ReLU; decoders: {modality: module (state [B, H], train) -> [B, ...]}, each followed by a linear
    layer to D_m. Any encoder of the library serves as either; a modality without one gets an MLP of one layer and
    `width` units.

    The feed-forward pass takes the sum over the present modalities times M over their number, as if the missing ones
    would say the same, and decodes: with rounds = 0 that is the answer. A round encodes everything again, the missing
    modalities as decoded last, and decodes. Present features are returned as they are, bit for bit, and what stands in
    the place of missing ones has no influence, NaN included. A row without any modality is filled from a state of 0.

    It is trained with the rest of a model by the loss on examples that lack modalities, or by `filling_loss`.
    Our reading of the recurrent network of Sohn, Shang and Lee for features of any kind.

    Raises:
      ValueError: rounds < 0; features, encoders or decoders of other modalities; `present` of another shape.

    >>> module = RecurrentEncoder(width=8, rounds=3)
    >>> features = {"audio": jnp.ones((2, 5)), "image": jnp.ones((2, 4))}
    >>> present = jnp.array([[True, True], [True, False]])  # columns by the modalities' names, sorted
    >>> filled, _ = module.init_with_output(jax.random.key(0), features, present)
    >>> {m: x.shape for m, x in filled.items()}, bool((filled["image"][0] == 1).all())
    ({'audio': (2, 5), 'image': (2, 4)}, True)
    """

    encoders: Mapping[str, nn.Module] | None = None
    decoders: Mapping[str, nn.Module] | None = None
    width: int = 128
    rounds: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Mapping[str, Array], present: Array, train: bool = False) -> dict[str, Array]:
        """Return {modality: features [B, D_m]}, the missing ones filled in; present: bool [B, M], by sorted names."""
        names = self._check(features, present)
        encoders = {m: (self.encoders or {}).get(m) or MLP(self.width, 1, name=f"encoder_{m}") for m in names}
        decoders = {m: (self.decoders or {}).get(m) or MLP(self.width, 1, name=f"decoder_{m}") for m in names}
        to_features = {m: nn.Dense(features[m].shape[-1], dtype=self.dtype, name=f"to_{m}") for m in names}
        norm = nn.LayerNorm(dtype=self.dtype, name="norm")
        there = {m: present[:, i, None] for i, m in enumerate(names)}
        known = {m: jnp.where(there[m], features[m], 0) for m in names}

        def decode(drive: Array) -> dict[str, Array]:
            state = nn.relu(norm(drive))
            guess = {m: to_features[m](decoders[m](state, train)) for m in names}
            return {m: jnp.where(there[m], known[m], guess[m].astype(known[m].dtype)) for m in names}

        count = jnp.sum(present, axis=1, keepdims=True)
        seen = {m: encoders[m](known[m], train) for m in names}
        drive = sum((jnp.where(there[m], seen[m], 0) for m in names), jnp.zeros(()))
        filled = decode(drive * (len(names) / jnp.maximum(count, 1)))
        for _ in range(self.rounds):
            filled = decode(sum((encoders[m](filled[m], train) for m in names), jnp.zeros(())))
        return filled

    def _check(self, features: Mapping[str, Array], present: Array) -> tuple[str, ...]:
        if not isinstance(self.rounds, int) or self.rounds < 0:
            raise ValueError(f"rounds must be an integer of at least 0, got {self.rounds!r}")
        names = tuple(sorted(features))
        for what, modules in (("encoders", self.encoders), ("decoders", self.decoders)):
            unknown = sorted(set(modules or {}) - set(names))
            if unknown:
                raise ValueError(f"{what} name {unknown[0]!r}; the features are of {list(names)}")
        batch = features[names[0]].shape[0] if names else 0
        if present.shape != (batch, len(names)):
            raise ValueError(
                f"present must have shape ({batch}, {len(names)}), a column a modality; got {present.shape}"
            )
        if present.dtype != np.bool_:
            raise ValueError(f"present must be bool, got {present.dtype}")
        return names


def filling_loss(filled: Mapping[str, Array], features: Mapping[str, Array], present: Array, hidden: Array) -> Array:
    """Return the mean squared error of filled-in features where a modality was there but hidden on purpose.

    filled: by `RecurrentEncoder` from `present & ~hidden`; features: {modality: [B, D_m]}, the true ones, which are
    held constant; present, hidden: bool [B, M], by the modalities' sorted names. 0 where nothing was hidden.

    >>> features = {"a": jnp.zeros((1, 2)), "b": jnp.ones((1, 2))}
    >>> both, hide_b = jnp.array([[True, True]]), jnp.array([[False, True]])
    >>> filling_loss(features | {"b": jnp.full((1, 2), 3.0)}, features, both, hide_b).tolist()
    4.0
    """
    judged = present & hidden
    total, count = jnp.zeros(()), jnp.zeros(())
    for place, m in enumerate(sorted(features)):
        error = jnp.mean((filled[m] - jax.lax.stop_gradient(features[m])) ** 2, axis=-1)
        total += jnp.sum(jnp.where(judged[:, place], error, 0))
        count += jnp.sum(judged[:, place])
    return total / jnp.maximum(count, 1)
