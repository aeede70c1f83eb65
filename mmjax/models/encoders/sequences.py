"""What the encoders of sequences share: which steps are real, and vector or tokens at the end."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax import Array

from mmjax.models.tokens import mean_of_tokens

FeatureKind = Literal["vector", "tokens"]
FEATURES: tuple[FeatureKind, ...] = ("vector", "tokens")


def check_sequence(x: Array, what: str) -> None:
    """Raise ValueError unless x is [B, T, F] with at least one step; `what`: the encoder's name."""
    if x.ndim != 3 or x.shape[1] < 1:
        raise ValueError(f"{what} needs sequences [B, T, F] with T >= 1, got shape {x.shape}")


def real_steps(x: Array, mask: Array | None, mask_channel: bool) -> tuple[Array, Array]:
    """Return the sequence's features [B, T, F] and bool [B, T], False at padding.

    mask: bool [B, T], given by the caller. mask_channel: the last feature of x is the mask, at least 0 (write +1) in a
    real step and negative (write -1) in padding; it is taken off. This sign survives a standardisation of the
    features, which zeros would not. Neither: every step is real.

    Raises:
      ValueError: a mask of another shape than [B, T]; both kinds of mask; no feature besides the mask channel.

    >>> x, real = real_steps(jnp.array([[[5.0, 1.0], [9.0, -1.0]]]), None, mask_channel=True)
    >>> x.tolist(), real.tolist()
    ([[[5.0], [9.0]]], [[True, False]])
    """
    if mask is not None:
        if mask_channel:
            raise ValueError("give a mask or a sequence with a mask channel, not both")
        return x, check_mask(mask, x)
    if not mask_channel:
        return x, jnp.ones(x.shape[:2], bool)
    if x.shape[-1] < 2:
        raise ValueError(f"a sequence with a mask channel needs a feature besides it, got shape {x.shape}")
    return x[..., :-1], x[..., -1] >= 0


def check_mask(mask: Array, x: Array) -> Array:
    """Return the mask as bool [B, T]. Raises ValueError unless it has the first two axes of x."""
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask must be [B, T] = {x.shape[:2]}, one flag a step of x {x.shape}; got {mask.shape}")
    return mask.astype(bool)


def finish(steps: Array, real: Array, features: FeatureKind) -> Array:
    """Return tokens [B, T, D], zero at padding, or their mean over the real ones, [B, D].

    >>> finish(jnp.array([[[2.0], [4.0]]]), jnp.array([[True, False]]), "tokens").tolist()
    [[[2.0], [0.0]]]
    """
    if features == "tokens":
        return jnp.where(real[..., None], steps, 0)
    return mean_of_tokens(steps, real)
