"""Nash-MTL: its equation, its norm, and what happens where there is no solution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.optim import nash_mtl
from optim.gram_cases import random_jacobian, run


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_solves_the_bargaining_equation(k, scale):
    for seed in range(5):
        jacobian = scale * random_jacobian(seed, k, size=20, spread=1.5).astype(np.float64)
        update, alpha = run(nash_mtl, jacobian)
        assert np.all(alpha > 0)
        np.testing.assert_allclose(alpha * (jacobian @ jacobian.T @ alpha), np.ones(k), rtol=1e-3)
        np.testing.assert_allclose(update @ update, k, rtol=1e-3)
        assert np.all(jacobian @ update > 0)


def test_orthogonal_gradients():
    jacobian = np.diag([0.01, 2.0, 300.0])
    update, alpha = run(nash_mtl, jacobian)
    np.testing.assert_allclose(alpha, 1 / np.diag(jacobian), rtol=1e-5)
    np.testing.assert_allclose(update, np.ones(3), rtol=1e-5)


def test_nearly_opposing_gradients():
    for cosine in (-0.9, -0.999):
        jacobian = np.array([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]])
        _, alpha = run(nash_mtl, jacobian)
        np.testing.assert_allclose(alpha, np.full(2, (1 + cosine) ** -0.5), rtol=1e-3)  # C β = 1/β by symmetry


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.2, 1.0, 3.0)])
def test_stationary_points_stay_finite(weights):
    rows = random_jacobian(0, 2)
    last = -(weights[0] * rows[0] + weights[1] * rows[1]) / weights[2]
    for jacobian in (np.stack([*rows, last]), np.stack([rows[0], -rows[0]])):
        update, alpha = run(nash_mtl, jacobian)
        assert np.all(np.isfinite(alpha)) and np.all(alpha > 0)
        assert np.linalg.norm(update) <= 1.01 * np.sqrt(len(jacobian))


def test_zero_gradients_weigh_nothing():
    rows = random_jacobian(0, 2)
    update, alpha = run(nash_mtl, np.stack([rows[0], 0 * rows[0], rows[1]]))
    expected, others = run(nash_mtl, rows)
    np.testing.assert_allclose(alpha, [others[0], 0, others[1]], rtol=1e-4)
    np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run(nash_mtl, np.zeros((3, 4)))[0], np.zeros(4))


def test_largest_norm():
    jacobian = random_jacobian(0, 3)
    free, _ = run(nash_mtl, jacobian)
    for max_norm in (0.5, 10.0):
        update, _ = run(nash_mtl, jacobian, max_norm=max_norm)
        np.testing.assert_allclose(update, free * min(1, max_norm / np.sqrt(3)), rtol=1e-3, atol=1e-5)
    tx = optax.inject_hyperparams(nash_mtl)(max_norm=0.5)
    params = {"w": jnp.zeros(7)}
    updates, _ = jax.jit(tx.update)({"w": jnp.asarray(jacobian)}, tx.init(params), params)
    np.testing.assert_allclose(jnp.linalg.norm(updates["w"]), 0.5, rtol=1e-4)
    with pytest.raises(ValueError, match="max_norm must be a finite number > 0"):
        nash_mtl(0.0)
