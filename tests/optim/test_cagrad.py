"""CAGrad against SciPy's dual in float64, and its limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from mmjax.optim import cagrad
from optim.gram_cases import random_jacobian, run, update_of


def dual(jacobian, c):
    """min over the simplex of g_w·ḡ + c ‖ḡ‖ ‖g_w‖, float64: by strong duality max over the ball of min_k g_k·d."""
    jacobian = np.asarray(jacobian, np.float64)
    k = len(jacobian)
    mean = jacobian.mean(axis=0)
    radius = c * np.linalg.norm(mean)

    def value(w):
        return w @ jacobian @ mean + radius * np.linalg.norm(w @ jacobian)

    def run_from(start):
        return minimize(
            value,
            start,
            method="SLSQP",
            bounds=[(0, 1)] * k,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-12, "maxiter": 300},
        ).fun

    return min(run_from(np.full(k, 1 / k)), *(run_from(0.9 * e + 0.1 / k) for e in np.eye(k)))


@pytest.mark.parametrize(("k", "c"), [(2, 0.5), (3, 0.5), (3, 0.05), (6, 0.9), (9, 0.5)])
def test_best_worst_case_in_the_ball(k, c):
    for seed in range(6):
        jacobian = random_jacobian(seed, k, size=12, spread=0.5)
        update, weights = run(cagrad, jacobian, c=c)
        mean = jacobian.astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(np.linalg.norm(update - mean), c * np.linalg.norm(mean), rtol=1e-3)
        np.testing.assert_allclose(update, weights @ jacobian, atol=1e-5 * np.abs(jacobian).max())
        best = dual(jacobian, c)
        scale = np.linalg.norm(mean) * np.linalg.norm(jacobian)
        assert abs(np.min(jacobian @ update) - best) <= 2e-5 * scale, (seed, np.min(jacobian @ update), best)


def test_zero_radius_is_the_mean():
    jacobian = random_jacobian(0, 3)
    np.testing.assert_allclose(run(cagrad, jacobian, c=0.0)[0], jacobian.mean(axis=0), rtol=1e-5)


def test_opposing_gradients():
    """g_1 = (2, 0), g_2 = (-1, 0): ḡ = .5, d = ḡ - c ḡ whatever the ball; nothing improves both."""
    np.testing.assert_allclose(run(cagrad, np.array([[2.0, 0], [-1, 0]]), c=0.5)[0], [0.25, 0], atol=1e-5)


def test_a_vanishing_combination_stops_the_update():
    rows = random_jacobian(0, 2)
    for last in (-rows[0] - rows[1], 0 * rows[0]):
        update, weights = run(cagrad, np.stack([rows[0], rows[1], last]), c=0.5)
        assert np.linalg.norm(update) <= 1e-5 and np.all(np.isfinite(weights))


def test_radius_may_be_traced():
    jacobian = jnp.asarray(random_jacobian(1, 3))
    swept = jax.jit(jax.vmap(lambda c: update_of(cagrad(c), jacobian)[0]))(jnp.array([0.2, 0.7]))
    np.testing.assert_allclose(swept[1], run(cagrad, jacobian, c=0.7)[0], rtol=1e-4, atol=1e-5)
    injected = update_of_injected(jacobian)
    np.testing.assert_allclose(injected, swept[0], rtol=1e-4, atol=1e-5)


def update_of_injected(jacobian):
    tx = optax.inject_hyperparams(cagrad)(c=0.2)
    params = {"w": jnp.zeros(jacobian.shape[1])}
    updates, state = jax.jit(tx.update)({"w": jacobian}, tx.init(params), params)
    assert set(state.hyperparams) == {"c"}
    return updates["w"]


@pytest.mark.parametrize("c", [-0.1, 1.0, float("nan")])
def test_radius_out_of_range(c):
    with pytest.raises(ValueError, match=r"c must be a number in \[0, 1\)"):
        cagrad(c)
