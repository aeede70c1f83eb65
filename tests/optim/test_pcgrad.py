"""PCGrad: closed form for two, a plain loop for more, independent orders, original gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.optim import pcgrad
from mmjax.optim.pcgrad import random_orders
from optim.gram_cases import random_jacobian, run, update_of


def by_loop(jacobian, orders):
    """The published loop on vectors, float64."""
    jacobian = np.asarray(jacobian, np.float64)
    total = np.zeros(jacobian.shape[1])
    for k, row in enumerate(jacobian):
        row = row.copy()
        for j in orders[k]:
            square = jacobian[j] @ jacobian[j]
            if j != k and square > 0 and row @ jacobian[j] < 0:
                row -= row @ jacobian[j] / square * jacobian[j]
        total += row
    return total


@pytest.mark.parametrize("seed", range(4))
def test_closed_form_for_two(seed):
    a, b = random_jacobian(seed, 2, size=2).astype(np.float64)
    product = min(a @ b, 0)
    expected = a + b - product / (b @ b) * b - product / (a @ a) * a
    np.testing.assert_allclose(run(pcgrad, np.stack([a, b]))[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [3, 5])
def test_against_the_loop(k):
    for seed in range(6):
        key = jax.random.key(seed)
        jacobian = random_jacobian(seed, k, size=4, spread=0.5)
        jacobian[1] = 0 if seed == 2 else jacobian[1]
        expected = by_loop(jacobian, np.asarray(random_orders(key, k)))
        np.testing.assert_allclose(run(pcgrad, jacobian, key=key)[0], expected, atol=1e-4)


def test_orders_are_permutations_drawn_independently():
    orders = np.asarray(jax.vmap(lambda k: random_orders(k, 3))(jax.random.split(jax.random.key(0), 1800)))
    assert np.all(np.sort(orders, axis=-1) == np.arange(3))
    codes = orders @ np.array([9, 3, 1])  # [1800, 3], one of 6 values each
    for a, b in ((0, 1), (1, 2), (0, 2)):
        pairs, counts = np.unique(codes[:, [a, b]], axis=0, return_counts=True)
        assert len(pairs) == 36  # all pairs of orders, each about 50 times
        assert np.sum((counts - 50.0) ** 2 / 50) < 75  # χ² of 35 degrees of freedom, beyond 1 - 1e-4


def test_the_order_matters_and_comes_from_the_key():
    jacobian = np.array([[1.0, 0, 0], [-1, 1, 0], [-1, -1, 1]])
    results = {tuple(run(pcgrad, jacobian, key=jax.random.key(s))[0].round(4)) for s in range(12)}
    assert len(results) > 1
    np.testing.assert_array_equal(
        run(pcgrad, jacobian, key=jax.random.key(1))[0], run(pcgrad, jacobian, key=jax.random.key(1))[0]
    )


def test_no_conflict_is_the_sum_and_zero_rows_project_nothing():
    np.testing.assert_allclose(run(pcgrad, np.eye(4) + 0.1)[0], np.sum(np.eye(4) + 0.1, axis=0), rtol=1e-6)
    np.testing.assert_allclose(run(pcgrad, 3 * np.eye(3))[0], np.full(3, 3.0), rtol=1e-6)
    np.testing.assert_allclose(run(pcgrad, np.array([[1.0, 2.0], [0.0, 0.0]]))[0], [1.0, 2.0], rtol=1e-6)


def test_three_objectives_need_a_key():
    with pytest.raises(ValueError, match="key=key"):
        update_of(pcgrad(), jnp.eye(3), key=None)
    update_of(pcgrad(), jnp.eye(2), key=None)
