"""Recurrent mean-field inference in an MRBM: fill in what is missing, round by round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mmjax.generative.mrbm import MRBM, MRBMParams
from mmjax.generative.recurrence import check_rounds, iterate, until_converged
from mmjax.generative.visible import visible_mean


class Inferred(NamedTuple):
    """hidden: [B, H], the features; inputs: {modality: [B, D_m]}, those given and the filled ones; rounds: int32 taken."""

    hidden: Array
    inputs: dict[str, Array]
    rounds: Array


class Visibility(NamedTuple):
    """Which entries of the missing modalities are visible all the same: {modality: bool [B, D_m]}, and their values."""

    mask: dict[str, Array]
    values: dict[str, Array]


class Rounds:
    """The recurrence from the given modalities to the others; its state is the hidden units' mean, [B, H].

    First h⁰ = σ(c + (n / n_seen) Σ W_mᵀ x_m) over what is seen, n all visible units and n_seen the seen ones, so that a
    missing modality does not lower the drive; then each round decodes the missing modalities, puts the entries that
    are visible back, and encodes everything again, without the factor.
    """

    def __init__(
        self, model: MRBM, params: MRBMParams, given: Mapping[str, Array], visibility: Visibility | None = None
    ):
        self.model, self.params, self.visibility = model, params, visibility
        self.missing = model.missing(given)
        self.given = model.drive(params, given)
        total = sum(bias.shape[0] for bias in params.visible_bias.values())
        seen: int | Array = total - sum(params.visible_bias[m].shape[0] for m in self.missing)
        drive = self.given
        if visibility is not None:
            drive = drive + model.drive(params, {m: visibility.mask[m] * visibility.values[m] for m in self.missing})
            seen = seen + sum(jnp.sum(visibility.mask[m], axis=-1, keepdims=True) for m in self.missing)
        self.start = jax.nn.sigmoid(params.hidden_bias + (total / seen) * drive)

    def activation(self, hidden: Array) -> dict[str, Array]:
        """Return b_m + W_m h of every missing modality."""
        return {m: self.model.activation(self.params, hidden, m) for m in self.missing}

    def decode(self, hidden: Array) -> dict[str, Array]:
        """Return the mean of every missing modality, visible entries as they are."""
        means = {m: visible_mean(self.model.visible[m], a) for m, a in self.activation(hidden).items()}
        if self.visibility is None:
            return means
        mask, values = self.visibility
        return {m: jnp.where(mask[m], values[m], mean) for m, mean in means.items()}

    def step(self, hidden: Array) -> Array:
        """Take one round."""
        return jax.nn.sigmoid(self.model.drive(self.params, self.decode(hidden)) + self.given + self.params.hidden_bias)


def infer(
    model: MRBM,
    params: MRBMParams,
    given: Mapping[str, Array],
    n_steps: int,
    *,
    tolerance: float | None = None,
) -> Inferred:
    """Return features and filled-in inputs of examples whose other modalities are missing.

    given: {modality: [B, D_m]}, at least one; with all of them there is nothing to fill in, and the features are
    E[h | everything]. n_steps: rounds; 0 gives the feed-forward pass. tolerance: stop before that many rounds once no
    hidden unit changes by more (not differentiable).

    Raises:
      ValueError: nothing given, an unknown modality, n_steps < 0, tolerance < 0.

    >>> mrbm = MRBM({"x": "binary", "y": "binary"}, num_hidden=4)
    >>> params = mrbm.init(jax.random.key(0), {"x": 3, "y": 2})
    >>> infer(mrbm, params, {"x": jnp.ones((5, 3))}, n_steps=10).inputs["y"].shape
    (5, 2)
    """
    check_rounds(n_steps)
    if not model.missing(given):
        return Inferred(jax.nn.sigmoid(model.hidden_logits(params, given)), dict(given), jnp.zeros((), jnp.int32))
    rounds = Rounds(model, params, given)
    if tolerance is None:
        hidden, count = iterate(rounds.step, rounds.start, n_steps), jnp.asarray(n_steps, jnp.int32)
    else:
        hidden, count = until_converged(rounds.step, rounds.start, tolerance, n_steps)
    return Inferred(hidden, dict(given) | rounds.decode(hidden), count)
