"""Norms and cosines against plain NumPy on flattened gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.problems import losses_fn, make_batch, make_params

import mmjax
from mmjax.optim.geometry import geometry_of, named_geometry


def by_name(losses, *args):
    _, grads = mmjax.objective_grads(losses)(*args)
    return named_geometry(geometry_of(grads), grads.names)


def test_against_flattened_gradients():
    params, batch = make_params(), make_batch()
    _, grads = mmjax.objective_grads(losses_fn)(params, batch)
    geometry = jax.jit(lambda p: by_name(losses_fn, p, batch))(params)
    rows = {n: jax.tree.map(lambda g, k=k: np.asarray(g[k]), grads.stacked()) for k, n in enumerate(grads.names)}
    for name, row in rows.items():
        flat = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(row)])
        np.testing.assert_allclose(geometry[f"norm/{name}"], np.linalg.norm(flat), rtol=1e-5)
    for m in ("audio", "image"):
        a, b = rows["fusion"]["encoder"][m]["kernel"].ravel(), rows[m]["encoder"][m]["kernel"].ravel()
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        np.testing.assert_allclose(geometry[f"cosine/fusion/{m}"], cosine, rtol=1e-4)
    assert set(geometry) == {
        "norm/fusion",
        "norm/audio",
        "norm/image",
        "cosine/fusion/audio",
        "cosine/fusion/image",
        "cosine/audio/image",
    }
    assert np.isnan(geometry["cosine/audio/image"])  # they meet in no parameter


@pytest.mark.parametrize("scale", [0.0, 1e-37, 1e-30, 1e-15, 1e15, 1e30, 1e38])
def test_cosine_at_any_scale(scale):
    def losses(p):
        return {"fusion": scale * jnp.sum(p * jnp.array([1.0, 0.0])), "m": scale * jnp.sum(p)}

    geometry = by_name(losses, jnp.ones(2))
    np.testing.assert_allclose(geometry["cosine/fusion/m"], np.sqrt(0.5) if scale else 0.0, rtol=1e-5)
    np.testing.assert_allclose(geometry["norm/m"], np.sqrt(2) * scale, rtol=1e-5)


def test_what_is_not_shared_does_not_drown_the_cosine():
    rows = {"shared": jnp.array([[1e-8, 1e-8], [1e-8, 0.0]]), "own": jnp.array([[1e20], [0.0]])}
    touching = {"shared": np.array([True, True]), "own": np.array([True, False])}
    norms, cosines = geometry_of(rows, touching)
    np.testing.assert_allclose(cosines[0, 1], np.sqrt(0.5), rtol=1e-6)
    np.testing.assert_allclose(norms, [1e20, 1e-8], rtol=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_has_neither_norm_nor_cosine(wrong):
    norms, cosines = geometry_of({"w": jnp.array([[1.0, wrong], [1.0, 0.0]])})
    assert not np.isfinite(norms[0]) and norms[1] == 1 and np.isnan(cosines[0, 1])
