"""Many sums in one pass: right for leaves of any shape, and with few passes over them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.reductions import means_where, row_moments, sums


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5000,), (3, 4097), (300, 2), (1000, 1), (2, 3, 4, 5), (2, 0)])
def test_sums_and_means_of_any_shape(shape):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(sums([x, y]), [x.sum(dtype=np.float64), y.sum(dtype=np.float64)], rtol=1e-5, atol=1e-4)
    where = x > 0
    wanted = [a[where].mean(dtype=np.float64) if where.any() else 0 for a in (x, y)]
    np.testing.assert_allclose(means_where([(x, where), (y, where)]), wanted, rtol=1e-5, atol=1e-6)


def test_a_long_leaf_keeps_its_digits():
    """One running sum of ones in float32 stands still at 2^24."""
    x = jnp.full(40_000_000, 0.5)
    total, count = jax.jit(lambda x: sums([x, jnp.ones_like(x)]))(x)
    assert float(total) == 2e7 and float(count) == 4e7


def test_the_sums_have_derivatives_also_where_some_are_constant():
    x, y = jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3))
    slope = jax.grad(lambda t: sums([t * x, y])[0] ** 2)(2.0)
    assert float(slope) == 2 * 2 * 15 * 15
    assert jax.jvp(lambda x: sums([x, y]), (x,), (y,))[1].tolist() == [6.0, 0.0]


@pytest.mark.parametrize("shape", [(1000, 1000), (250_000, 4), (1_000_000, 1), (1_000_000,)])
def test_what_is_summed_is_computed_once(shape):
    """Four sums of functions of two arrays read these once, by XLA's count: twice the bytes of one array."""

    def four(x, y):
        return sums([jnp.abs(x), jnp.abs(y), jnp.where(x > y, x, 0), x * y])

    like = jax.ShapeDtypeStruct(shape, jnp.float32)
    cost = jax.jit(four).lower(like, like).compile().cost_analysis()
    assert cost["bytes accessed"] < 1.1 * 2 * 4e6


@pytest.mark.parametrize("rows", [2, 16, 300])
def test_moments_over_rows(rows):
    x = (3 + np.random.default_rng(1).normal(size=(rows, 5, 7))).astype(np.float32)
    mean, variance = jax.jit(row_moments)(x)
    np.testing.assert_allclose(mean, x.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(variance, x.var(axis=0, ddof=1, dtype=np.float64), rtol=1e-5)
