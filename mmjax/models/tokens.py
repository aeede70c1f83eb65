"""Features as vectors or as tokens: [B, D] is one token, [B, T, D] are T of them; an all-zero token is padding."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def as_tokens(features: Array) -> tuple[Array, Array]:
    """Return tokens [B, T, D] and bool [B, T], True where a token is real.

    A vector [B, D] is one token and always real. In a sequence [B, T, D] a token that is zero throughout is padding:
    this is how encoders hand their padding mask on.

    >>> tokens, real = as_tokens(jnp.array([[[1.0, 0.0], [0.0, 0.0]]]))
    >>> real.tolist()
    [[True, False]]
    """
    if features.ndim == 2:
        return features[:, None], jnp.ones((features.shape[0], 1), bool)
    return features, jnp.any(features != 0, axis=-1)


def as_vector(features: Array) -> Array:
    """Return [B, D]: a vector itself, of tokens [B, T, D] the mean over the real ones (zero where there is none).

    >>> as_vector(jnp.array([[[2.0, 4.0], [0.0, 0.0]]])).tolist()
    [[2.0, 4.0]]
    """
    if features.ndim == 2:
        return features
    return mean_of_tokens(*as_tokens(features))


def mean_of_tokens(tokens: Array, real: Array) -> Array:
    """Return the mean of tokens [B, T, D] over those that are real, bool [B, T]; zero where none is.

    >>> mean_of_tokens(jnp.array([[[2.0], [4.0]]]), jnp.array([[False, True]])).tolist()
    [[4.0]]
    """
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1).astype(tokens.dtype)
    return jnp.sum(jnp.where(real[..., None], tokens, 0), axis=1) / count
