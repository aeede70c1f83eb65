"""Modality dropout: in training, examples lose modalities at random, as if they had come without them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def drop_modalities(
    present: Array | None, shape: tuple[int, int], rate: float, key: Array, axis_name: str | None = None
) -> Array:
    """Return bool [B, M]: `present` with each modality of each example dropped with probability `rate`; never the last.

    present: bool [B, M], or None: everything is there; shape: (B, M). Where all that an example has would be dropped, one
    of them, any with the same probability, stays. The draw depends on the key and the example's place in the global
    batch, not on the devices (under `axis_name` these are one device's examples, in order).

    >>> kept = drop_modalities(None, (1000, 2), 0.5, jax.random.key(0))
    >>> kept.any(axis=1).all().item(), kept.mean(axis=0).round(1).tolist()
    (True, [0.6000000238418579, 0.6000000238418579])
    """
    batch, modalities = shape
    places = jnp.arange(batch)
    if axis_name is not None:
        places = places + jax.lax.axis_index(axis_name) * batch
    chance = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (modalities,)))(places)
    if present is not None:
        chance = jnp.where(present, chance, -1.0)  # below every draw: what is absent never stays
    kept = chance >= rate
    # all below the rate, the largest is any of them with the same probability
    last = jnp.arange(modalities) == jnp.argmax(chance, axis=1, keepdims=True)
    return jnp.where(jnp.any(kept, axis=1, keepdims=True), kept, last)
