"""Encoders written elsewhere as linen modules: pure functions, nnx modules, modules that are pytrees (equinox)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

PyTree = Any


class PureEncoder(nn.Module):
    """A pure function `function(params, x, train, rngs) -> features` with its `initialise(key, x) -> params`.

    rngs: {"dropout": key} while training with dropout keys, else empty. The parameters are any pytree of arrays.

    >>> encoder = PureEncoder(
    ...     initialise=lambda key, x: {"w": jax.random.normal(key, (x.shape[-1], 3))},
    ...     function=lambda params, x, train, rngs: jnp.tanh(x @ params["w"]),
    ... )
    >>> variables = encoder.init(jax.random.key(0), jnp.ones((2, 4)), train=False)
    >>> encoder.apply(variables, jnp.ones((2, 4)), train=False).shape
    (2, 3)
    """

    initialise: Callable[[Array, Array], PyTree]
    function: Callable[[PyTree, Array, bool, dict[str, Array]], Array]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Encode x [B, ...]."""
        params = self.param("function", self.initialise, x)
        rngs = {"dropout": self.make_rng("dropout")} if train and self.has_rng("dropout") else {}
        return self.function(params, x, train, rngs)


class NnxEncoder(nn.Module):
    """An nnx module: `make(rngs: nnx.Rngs)` builds it, and it is called as `module(x, train)` -> features.

    nnx.Param are its parameters; nnx.BatchStat go to the collection `batch_stats`. Dropout draws from the stream
    "dropout" of `rngs`, new at every step. Other kinds of variables stay what `make` made them.

    >>> class Net(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.linear = nnx.Linear(4, 3, rngs=rngs)
    ...
    ...     def __call__(self, x, train):
    ...         return nnx.relu(self.linear(x))
    >>> encoder = NnxEncoder(Net)
    >>> variables = encoder.init(jax.random.key(0), jnp.ones((2, 4)), train=False)
    >>> encoder.apply(variables, jnp.ones((2, 4)), train=False).shape
    (2, 3)
    """

    make: Callable[[nnx.Rngs], Any]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Encode x [B, ...]."""
        dropout = self.make_rng("dropout") if train and self.has_rng("dropout") else jax.random.key(0)
        # made anew in every trace for its structure; its own initial values are dead code, and compiled away
        module = self.make(nnx.Rngs(params=jax.random.key(0), dropout=dropout))
        params = self.param("nnx", lambda key: _values(self.make(nnx.Rngs(params=key, dropout=key)), nnx.Param))
        nnx.update(module, params)
        stats = _values(module, nnx.BatchStat)
        if not stats:
            return module(x, train)
        kept = self.variable("batch_stats", "nnx", lambda: stats)
        nnx.update(module, kept.value)
        out = module(x, train)
        if train and not self.is_initializing():
            kept.value = _values(module, nnx.BatchStat)
        return out


def _values(module: Any, kind: type[nnx.Variable[Any]]) -> PyTree:
    return nnx.to_pure_dict(nnx.state(module, kind))


class PytreeEncoder(nn.Module):
    """A callable that is itself a pytree, as equinox modules are: `make(key)` builds it, it maps *one* example.

    Its floating-point leaves are the parameters, everything else in it is static. With equinox:
    `PytreeEncoder(lambda key: eqx.nn.MLP(4, 3, 8, 2, key=key))`. The protocol is no more than
    `jax.tree.flatten(make(key))` and `module(x)`; a module with a key or state of its own is a matter for `PureEncoder`.

    >>> encoder = PytreeEncoder(lambda key: jax.tree_util.Partial(jnp.dot, jax.random.normal(key, (3, 4))))
    >>> variables = encoder.init(jax.random.key(0), jnp.ones((2, 4)), train=False)
    >>> encoder.apply(variables, jnp.ones((2, 4)), train=False).shape
    (2, 3)
    """

    make: Callable[[Array], Any]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Encode x [B, ...], an example at a time (vectorised)."""
        del train
        leaves, structure = jax.tree.flatten(self.make(jax.random.key(0)))
        places = [i for i, leaf in enumerate(leaves) if _is_parameter(leaf)]

        def initial(key: Array) -> dict[str, Array]:
            fresh = jax.tree.leaves(self.make(key))
            return {f"leaf_{i}": fresh[i] for i in places}

        params = self.param("pytree", initial)
        for i in places:
            leaves[i] = params[f"leaf_{i}"]
        return jax.vmap(jax.tree.unflatten(structure, leaves))(x)


def _is_parameter(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
