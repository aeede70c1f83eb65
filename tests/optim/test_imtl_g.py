"""IMTL-G: equal projections, the case where they are negative, dependent gradients."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.optim import imtl_g
from optim.gram_cases import random_jacobian, run

NEGATIVE = np.array([[-6.6, -0.8, 1.9], [4.6, -6.5, 0.4], [-0.3, -1.0, 1.4]])
"""Σ_k α_k < 0 before it is normalised to 1: the signs of all weights turn."""


def published(jacobian):
    jacobian = np.asarray(jacobian, np.float64)
    gram = jacobian @ jacobian.T
    raw = np.linalg.pinv(gram, rcond=1e-6) @ np.sqrt(np.diag(gram))
    return raw / raw.sum()


@pytest.mark.parametrize("k", [2, 3, 5])
def test_equal_projections(k):
    for seed in range(6):
        jacobian = random_jacobian(seed, k, size=20, spread=1.0)
        update, weights = run(imtl_g, jacobian)
        projections = jacobian @ update / np.linalg.norm(jacobian, axis=1)
        np.testing.assert_allclose(projections, projections.mean(), rtol=1e-3)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-4)
        np.testing.assert_allclose(weights, published(jacobian), rtol=1e-2, atol=1e-4)


def test_lengths_that_differ_by_a_hundred_million():
    jacobian = np.array([[1e-4], [1.0], [1e4]]) * random_jacobian(0, 3, size=20)
    update, _ = run(imtl_g, jacobian)
    projections = jacobian @ update / np.linalg.norm(jacobian, axis=1)
    np.testing.assert_allclose(projections, projections.mean(), rtol=1e-2)


def test_the_common_projection_may_be_negative():
    update, weights = run(imtl_g, NEGATIVE)
    np.testing.assert_allclose(weights, published(NEGATIVE), rtol=1e-3)
    assert np.all(NEGATIVE @ update < 0)  # every objective gets worse
    update, weights = run(imtl_g, NEGATIVE, negative="mean")
    np.testing.assert_allclose(weights, np.full(3, 1 / 3), rtol=1e-6)
    np.testing.assert_allclose(update, NEGATIVE.mean(axis=0), rtol=1e-5)


def test_dependent_gradients_take_the_pseudo_inverse():
    rows = random_jacobian(0, 2)
    for jacobian in (
        np.stack([rows[0], rows[0], rows[1]]),
        np.stack([rows[0], rows[1], rows[0] + rows[1]]),
        np.stack([rows[0], -2 * rows[0]]),
        np.stack([rows[0], 0 * rows[0], rows[1]]),
    ):
        np.testing.assert_allclose(run(imtl_g, jacobian)[1], published(jacobian), rtol=2e-3, atol=1e-4)


def test_nothing_to_weigh_by_is_the_mean():
    np.testing.assert_allclose(run(imtl_g, np.zeros((3, 4)))[1], np.full(3, 1 / 3), rtol=1e-6)
    row = random_jacobian(0, 1)  # G⁺d = (1, -1)/..: the sum cancels
    np.testing.assert_allclose(run(imtl_g, np.concatenate([row, -row]))[1], [0.5, 0.5], rtol=1e-5)


def test_balanced_gradients_give_the_sum():
    np.testing.assert_allclose(run(imtl_g, 3 * np.eye(4), scale="sum")[0], np.full(4, 3.0), rtol=1e-5)


def test_unknown_choice():
    with pytest.raises(ValueError, match="negative must be one of keep, mean"):
        imtl_g(negative="zero")
