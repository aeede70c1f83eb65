"""UPGrad: its golden value, SciPy's projections, its promises."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from mmjax.optim import qp, upgrad
from optim.gram_cases import random_jacobian, run, update_of


def projections(jacobian):
    """Each row's projection onto {d : J d >= 0}, float64."""
    jacobian = np.asarray(jacobian, np.float64)
    return np.stack([row + jacobian.T @ nnls(jacobian.T, -row)[0] for row in jacobian])


def test_golden_value():
    update, _ = run(upgrad, np.array([[-4.0, 1, 1], [6, 1, 1]]))
    np.testing.assert_allclose(update, np.array([50, 325, 325]) / 171, rtol=1e-5)


@pytest.mark.parametrize("k", [3, 8, 9])
def test_mean_of_the_projections(k):
    for seed in range(10):
        jacobian = random_jacobian(seed, k, size=20, spread=0.5) + (seed % 3 - 1) * random_jacobian(9, 1, 20)
        expected = projections(jacobian).mean(axis=0)
        update, _ = run(upgrad, jacobian)
        np.testing.assert_allclose(update, expected, atol=2e-4 * np.abs(jacobian).max())


def test_dependent_gradients():
    for seed in range(8):
        jacobian = random_jacobian(seed, 8, size=3)
        update, _ = run(upgrad, jacobian)
        expected = projections(jacobian).mean(axis=0)
        np.testing.assert_allclose(update, expected, atol=2e-3 * np.abs(jacobian).max())


def test_walking_finds_what_trying_all_faces_finds(monkeypatch):
    monkeypatch.setattr(qp, "ENUMERATED", 0)
    walk = jax.jit(lambda jacobian: update_of(upgrad(), jacobian))
    for seed in range(10):
        jacobian = random_jacobian(seed, 3, size=6)
        update, _ = walk(jnp.asarray(jacobian))
        np.testing.assert_allclose(update, projections(jacobian).mean(axis=0), atol=1e-4)


def test_lengths_that_differ_by_a_hundred_million():
    lengths = np.array([[1e-4], [1.0], [1e4]])
    jacobian = random_jacobian(5, 3, size=6)
    jacobian[1] -= 2 * jacobian[0]
    jacobian[2] -= jacobian[1]
    assert np.min(jacobian @ jacobian.T) < 0
    update, _ = run(upgrad, lengths * jacobian)
    expected = (lengths * projections(jacobian)).mean(axis=0)  # what conflicts does not depend on lengths
    np.testing.assert_allclose(update, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_promises():
    rng = np.random.default_rng(0)
    for seed in range(5):
        jacobian = random_jacobian(seed, 3, size=5)
        update, _ = run(upgrad, jacobian)
        assert np.min(jacobian @ update) >= -1e-5 * np.sum(jacobian**2)
        a, b = rng.uniform(0.3, 3, (2, 3, 1))
        linear = 2 * run(upgrad, a * jacobian)[0] + run(upgrad, b * jacobian)[0]
        np.testing.assert_allclose(run(upgrad, (2 * a + b) * jacobian)[0], linear, atol=1e-4)
        weights = rng.uniform(0.2, 1, 3)
        jacobian[2] = -(weights[0] * jacobian[0] + weights[1] * jacobian[1]) / weights[2]
        assert np.linalg.norm(run(upgrad, jacobian)[0]) <= 3e-3 * np.linalg.norm(jacobian)
    np.testing.assert_allclose(run(upgrad, 3 * np.eye(4), scale="sum")[0], np.full(4, 3.0), rtol=1e-5)
