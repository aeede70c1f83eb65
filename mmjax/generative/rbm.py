"""The restricted Boltzmann machine of one modality, with binary or gaussian visible units; pure functions of parameters.

Energy E(v, h) = -vᵀW h - cᵀh + visible_energy(v); free energy F(v) = visible_energy(v) - Σ softplus(c + Wᵀv).
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from mmjax.generative.visible import (
    VisibleKind,
    check_kind,
    reconstruction_loss,
    sample_bernoulli,
    sample_visible,
    visible_energy,
    visible_mean,
)


class RBMParams(flax.struct.PyTreeNode):
    """weights: [D, H]; visible_bias: [D]; hidden_bias: [H].

    >>> params = RBM(num_hidden=3).init(jax.random.key(0), num_visible=2)
    >>> params.weights.shape, params.visible_bias.shape, params.hidden_bias.shape
    ((2, 3), (2,), (3,))
    """

    weights: Array
    visible_bias: Array
    hidden_bias: Array


@dataclass(frozen=True)
class RBM:
    """`num_hidden` binary hidden units over visible units of one kind.

    Raises:
      ValueError: fewer than one hidden unit, an unknown kind.

    >>> rbm = RBM(num_hidden=3)
    >>> params = rbm.init(jax.random.key(0), num_visible=2)
    >>> rbm.free_energy(params, jnp.zeros((5, 2))).shape
    (5,)
    """

    num_hidden: int
    visible: VisibleKind = "binary"

    def __post_init__(self) -> None:
        if self.num_hidden < 1:
            raise ValueError(f"num_hidden must be at least 1, got {self.num_hidden}")
        check_kind("an RBM", self.visible)

    def init(self, key: Array, num_visible: int, std: float = 0.01) -> RBMParams:
        """Return weights drawn from N(0, std²) and biases of 0."""
        return RBMParams(
            weights=std * jax.random.normal(key, (num_visible, self.num_hidden)),
            visible_bias=jnp.zeros(num_visible),
            hidden_bias=jnp.zeros(self.num_hidden),
        )

    def hidden_logits(self, params: RBMParams, v: Array) -> Array:
        """Return the logits of p(h = 1 | v), [..., H]."""
        return v @ params.weights + params.hidden_bias

    def activation(self, params: RBMParams, h: Array) -> Array:
        """Return b + W h, [..., D]."""
        return h @ params.weights.T + params.visible_bias

    def encode(self, params: RBMParams, v: Array) -> Array:
        """Return E[h | v], [..., H]."""
        return jax.nn.sigmoid(self.hidden_logits(params, v))

    def decode(self, params: RBMParams, h: Array) -> Array:
        """Return E[v | h], [..., D]."""
        return visible_mean(self.visible, self.activation(params, h))

    def free_energy(self, params: RBMParams, v: Array) -> Array:
        """Return F(v), [...]; p(v) is proportional to exp(-F(v))."""
        hidden = jnp.sum(jax.nn.softplus(self.hidden_logits(params, v)), axis=-1)
        return visible_energy(self.visible, v, params.visible_bias) - hidden

    def gibbs(self, params: RBMParams, key: Array, v: Array, steps: int) -> Array:
        """Return v after `steps` rounds of h ~ p(h | v), v ~ p(v | h)."""

        def step(v: Array, key: Array) -> tuple[Array, None]:
            hidden_key, visible_key = jax.random.split(key)
            h = sample_bernoulli(hidden_key, self.hidden_logits(params, v))
            return sample_visible(self.visible, visible_key, self.activation(params, h)), None

        return jax.lax.scan(step, v, jax.random.split(key, steps))[0]

    def contrastive_divergence(self, params: RBMParams, key: Array, v: Array, steps: int = 1) -> Array:
        """Return mean F(v) - mean F(v'), v' from `steps` Gibbs rounds started at v and held constant.

        A scalar whose gradient is that of contrastive divergence (CD-k); its value is no likelihood.

        Raises:
          ValueError: steps < 1.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        fantasy = jax.lax.stop_gradient(self.gibbs(params, key, v, steps))
        return jnp.mean(self.free_energy(params, v) - self.free_energy(params, fantasy))

    def reconstruction_error(self, params: RBMParams, v: Array) -> Array:
        """Return the loss of v reconstructed through E[h | v], summed over units, mean over examples; in nats."""
        activation = self.activation(params, self.encode(params, v))
        return jnp.mean(jnp.sum(reconstruction_loss(self.visible, activation, v), axis=-1))
