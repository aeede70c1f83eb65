"""Aligned-MTL: condition number 1, float64 reference, degenerate gradients."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.optim import aligned_mtl
from optim.gram_cases import random_jacobian, run


def aligned(jacobian, rank=None):
    """The aligned rows by a float64 singular value decomposition: σ_min U Vᵀ over the first `rank` pairs."""
    u, s, v = np.linalg.svd(np.asarray(jacobian, np.float64), full_matrices=False)
    rank = len(s) if rank is None else rank
    return s[rank - 1] * u[:, :rank] @ v[:rank]


@pytest.mark.parametrize("k", [2, 3])
def test_mean_of_an_orthogonal_system(k):
    for seed in range(6):
        jacobian = random_jacobian(seed, k, size=20, spread=0.3)
        rows = aligned(jacobian)
        np.testing.assert_allclose(np.linalg.cond(rows), 1, rtol=1e-6)
        update, weights = run(aligned_mtl, jacobian)
        np.testing.assert_allclose(update, rows.mean(axis=0), rtol=2e-3, atol=1e-4 * np.abs(rows).max())
        np.testing.assert_allclose(weights @ jacobian, update, rtol=1e-3, atol=1e-5)
        least = np.linalg.svd(jacobian, compute_uv=False)[-1]
        np.testing.assert_allclose(update @ update, least**2 / k, rtol=1e-3)


def test_dependent_gradients_lose_the_missing_direction():
    rows = random_jacobian(0, 2)
    for jacobian in (
        np.stack([rows[0], rows[0], rows[1]]),
        np.stack([rows[0], rows[1], rows[0] - 0.5 * rows[1]]),
        np.stack([rows[0], 0 * rows[0], rows[1]]),
    ):
        update, _ = run(aligned_mtl, jacobian)
        np.testing.assert_allclose(update, aligned(jacobian, rank=2).mean(axis=0), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("k", [2, 3])
def test_equal_gradients_keep_their_mean(k):
    for seed in range(8):
        row = random_jacobian(seed, 1, size=100 * (seed + 1))
        update, _ = run(aligned_mtl, np.repeat(row[:, :100], k, axis=0))
        np.testing.assert_allclose(update, row[0, :100], rtol=1e-4, atol=1e-5)


def test_no_gradient_at_all_is_the_identity():
    np.testing.assert_allclose(run(aligned_mtl, np.zeros((4, 3)))[1], np.full(4, 0.25), rtol=1e-6)


def test_balanced_gradients_give_the_sum():
    np.testing.assert_allclose(run(aligned_mtl, 3 * np.eye(4), scale="sum")[0], np.full(4, 3.0), rtol=1e-5)
