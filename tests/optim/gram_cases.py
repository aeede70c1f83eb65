"""The Gram-based methods, and small problems on which all of them are held to the same things."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.optim import aligned_mtl, cagrad, imtl_g, mgda, mmpareto, nash_mtl, pcgrad, upgrad

METHODS = {
    "mgda": mgda,
    "upgrad": upgrad,
    "cagrad": cagrad,
    "pcgrad": pcgrad,
    "imtl_g": imtl_g,
    "nash_mtl": nash_mtl,
    "aligned_mtl": aligned_mtl,
    "mmpareto": mmpareto,
}
"""{name: constructor}"""

MEAN = ("mgda", "upgrad", "cagrad", "imtl_g", "aligned_mtl")
"""Those whose weights average, and that have `scale`."""

KEY = jax.random.key(7)


def update_of(tx, jacobian, active=None, key=KEY):
    """The update [n] and the weights [K] on one dense parameter; jacobian: [K, n]."""
    params = {"w": jnp.zeros(jacobian.shape[1:], jacobian.dtype)}
    updates, state = tx.update({"w": jacobian}, tx.init(params), params, active=active, key=key)
    return updates["w"], state.weights[: len(jacobian)]


@cache
def _compiled(method, options):
    return jax.jit(lambda jacobian, active, key: update_of(method(**dict(options)), jacobian, active, key))


def run(method, jacobian, active=None, key=KEY, **options):
    """As `update_of`, compiled once a method, options and K: columns of zeros change no inner product."""
    k, size = jacobian.shape
    padded = np.zeros((k, max(size, 20)), np.float32)
    padded[:, :size] = jacobian
    active = np.ones(k, bool) if active is None else active
    u, w = _compiled(method, tuple(options.items()))(padded, active, key)
    return np.asarray(u, np.float64)[:size], np.asarray(w, np.float64)


def gramian64(jacobian):
    """G / trace in float64."""
    jacobian = np.asarray(jacobian, np.float64)
    gram = jacobian @ jacobian.T
    return gram / np.trace(gram)


def random_jacobian(seed, objectives, size=7, spread=0.0):
    """[K, size] float32; the rows' norms differ by up to 10^(2 spread)."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(objectives, size)) * 10 ** rng.uniform(-spread, spread, (objectives, 1))
    return rows.astype(np.float32)
