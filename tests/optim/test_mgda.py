"""MGDA against its optimality conditions, the closed form for two, and SciPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from mmjax.optim import mgda, qp
from mmjax.optim.qp import min_norm
from optim.gram_cases import gramian64, random_jacobian, run


def least_norm(gram):
    """SciPy's min wᵀ G w over the simplex, float64."""
    k = len(gram)
    result = minimize(
        lambda w: w @ gram @ w,
        np.full(k, 1 / k),
        jac=lambda w: 2 * gram @ w,
        method="SLSQP",
        bounds=[(0, 1)] * k,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return result.fun


def two(a, b):
    """The weight on a."""
    gap = np.sum((a - b) ** 2)
    return np.clip((b @ b - a @ b) / gap, 0, 1) if gap else 0.5


@pytest.mark.parametrize("seed", range(6))
def test_closed_form_for_two(seed):
    a, b = random_jacobian(seed, 2, size=2, spread=0.5).astype(np.float64)
    update, weights = run(mgda, np.stack([a, b]))
    np.testing.assert_allclose(weights, [two(a, b), 1 - two(a, b)], atol=1e-5)
    np.testing.assert_allclose(update, two(a, b) * a + (1 - two(a, b)) * b, rtol=1e-4, atol=1e-5)


def test_equal_and_zero_gradients_share_evenly():
    row = random_jacobian(0, 1)
    for k in (2, 3):
        np.testing.assert_allclose(run(mgda, np.repeat(row, k, 0))[1], np.full(k, 1 / k), rtol=1e-5)
        np.testing.assert_allclose(run(mgda, np.zeros((k, 7)))[1], np.full(k, 1 / k), rtol=1e-5)


@pytest.mark.parametrize("k", [3, 8, 17])
def test_optimality_and_scipy(k):
    solve = jax.jit(min_norm)
    for seed in range(12):
        jacobian = random_jacobian(seed, k, size=2 + 2 * seed, spread=1.0)
        jacobian += (seed % 3) * random_jacobian(99, 1, size=2 + 2 * seed)
        gram = gramian64(jacobian)
        w = np.asarray(solve(jnp.asarray(gram, jnp.float32), jnp.ones(k, bool)), np.float64)
        assert np.all(w >= 0) and abs(w.sum() - 1) < 1e-5
        slope = gram @ w
        assert slope.min() >= w @ slope - 3e-6
        assert w @ slope <= least_norm(gram) + 3e-6


def test_walking_finds_what_trying_all_faces_finds(monkeypatch):
    monkeypatch.setattr(qp, "ENUMERATED", 0)
    walk = jax.jit(lambda g, active: min_norm(g, active))
    active = jnp.array([True, True, True, False, True])
    for seed in range(20):
        gram = gramian64(random_jacobian(seed, 5, size=1 + seed, spread=1.0))
        w = np.asarray(walk(jnp.asarray(gram, jnp.float32), active), np.float64)
        assert w[3] == 0 and abs(w.sum() - 1) < 1e-5
        assert (gram @ w)[np.asarray(active)].min() >= w @ gram @ w - 3e-6


def test_promises_stationary_and_non_conflicting():
    for seed in range(5):
        jacobian = random_jacobian(seed, 3, spread=0.5)
        update, _ = run(mgda, jacobian)
        assert np.min(jacobian @ update) >= -1e-5 * np.sum(jacobian**2)
        weights = np.random.default_rng(seed).uniform(0.2, 1, 3)
        jacobian[2] = -(weights[0] * jacobian[0] + weights[1] * jacobian[1]) / weights[2]
        update, _ = run(mgda, jacobian)
        assert np.linalg.norm(update) <= 1e-3 * np.sqrt(np.sum(jacobian**2))


def test_balanced_gradients_give_the_sum():
    update, weights = run(mgda, 3 * np.eye(4), scale="sum")
    np.testing.assert_allclose(weights, np.ones(4), rtol=1e-5)
    np.testing.assert_allclose(update, np.full(4, 3.0), rtol=1e-5)
