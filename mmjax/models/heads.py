"""Heads: features to logits, with the last layer's input and weights laid open for Bayesian methods."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mmjax.models.tokens import as_vector


class LastLayer(NamedTuple):
    """A head's last, linear layer: logits = inputs @ kernel + bias.

    inputs: [B, D']; kernel: [D', C]; bias: [C].

    >>> import jax
    >>> out, _ = Head(num_outputs=4).init_with_output(jax.random.key(0), jnp.ones((2, 3)), train=False)
    >>> last = out.last_layer
    >>> bool(jnp.allclose(out.logits, last.inputs @ last.kernel + last.bias)), last.kernel.shape
    (True, (3, 4))
    """

    inputs: Array
    kernel: Array
    bias: Array


class HeadOutput(NamedTuple):
    """What a head or fusion module returns: logits float32 [B, C] and its last layer; None where none is linear.

    >>> last = LastLayer(inputs=jnp.ones((2, 3)), kernel=jnp.ones((3, 4)), bias=jnp.zeros(4))
    >>> out = HeadOutput(logits=last.inputs @ last.kernel + last.bias, last_layer=last)
    >>> out.logits.shape, HeadOutput(out.logits, None).last_layer
    ((2, 4), None)
    """

    logits: Array
    last_layer: LastLayer | None


class Head(nn.Module):
    """Hidden layers with ReLU, then one linear layer named `last`: features [B, D] to `HeadOutput`.

    Of tokens [B, T, D] it takes the mean over those that are no padding.

    >>> import jax
    >>> module = Head(num_outputs=10, hidden=(100,))
    >>> variables = module.init(jax.random.key(0), jnp.ones((2, 24)), train=False)
    >>> sum(p.size for p in jax.tree.leaves(variables))
    3510
    """

    num_outputs: int
    hidden: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> HeadOutput:
        """Map features x [B, D] or [B, T, D] to logits."""
        x = as_vector(x)
        for i, width in enumerate(self.hidden):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"dense_{i}")(x))
        last = nn.Dense(self.num_outputs, dtype=self.dtype, name="last")
        logits = last(x)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))  # bfloat16 ends here
        weights = last.variables["params"]
        return HeadOutput(logits, LastLayer(x, weights["kernel"], weights["bias"]))
