"""Batch statistics without the absent: those of the others alone, on any number of devices."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import Norm
from mmjax.models.batch_norm import statistics_over

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (16, 5, 3)), jnp.float32)
HERE = jnp.arange(16) % 8 < 3


def run(module, x, here=None, train=True):
    variables = module.init(jax.random.key(0), x, train=False)
    variables = jax.tree.map(lambda v: v + 0.1 * jnp.arange(3.0), variables)

    def apply(x, here):
        call = partial(module.apply, variables, x, train=train, mutable=["batch_stats"])
        if here is None:
            return call()
        with statistics_over(here):
            return call()

    return jax.jit(apply)(x, here)


def test_the_others_are_normalised_as_if_alone():
    y, after = run(Norm("batch"), jnp.where(HERE[:, None, None], X, 1e3), HERE)
    expected, statistics = run(Norm("batch"), X[HERE])
    np.testing.assert_allclose(y[HERE], expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, statistics)


def test_everybody_there_is_no_mask_and_nobody_there_keeps_the_statistics():
    y, after = run(Norm("batch"), X, jnp.ones(16, bool))
    expected, statistics = run(Norm("batch"), X)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, statistics)
    nobody, kept = run(Norm("batch"), X, jnp.zeros(16, bool))
    assert np.isfinite(nobody).all()
    jax.tree.map(np.testing.assert_array_equal, kept, run(Norm("batch"), X, train=False)[1])


def test_in_evaluation_and_for_other_norms_nothing_changes():
    for module, train in ((Norm("batch"), False), (Norm("group"), True)):
        alone, masked = run(module, X, None, train)[0], run(module, X, HERE, train)[0]
        np.testing.assert_array_equal(masked, alone)


def test_statistics_are_those_of_all_devices():
    module = Norm("batch", axis_name="devices")
    variables = module.init(jax.random.key(0), X, train=False)

    def apply(x, here):
        with statistics_over(here):
            return module.apply(variables, x, train=True, mutable=["batch_stats"])

    here = jnp.arange(16) < 5  # most devices have none
    y, after = jax.pmap(apply, axis_name="devices", devices=jax.devices()[:8])(
        X.reshape(8, 2, 5, 3), here.reshape(8, 2)
    )
    expected, statistics = Norm("batch").apply(variables, X[:5], train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.reshape(16, 5, 3)[:5], expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[7], b, rtol=1e-5), after, statistics)


@pytest.mark.parametrize("options", [{"use_scale": False}, {"use_bias": False}, {"dtype": jnp.bfloat16}, {"axis": 1}])
def test_options_of_the_layer_are_kept(options):
    class Wrapped(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm(momentum=0.5, **options)(x, use_running_average=not train)

    module = Wrapped()
    variables = module.init(jax.random.key(0), X, train=False)
    expected, statistics = module.apply(variables, X, train=True, mutable=["batch_stats"])
    with statistics_over(jnp.ones(16, bool)):
        y, after = module.apply(variables, X, train=True, mutable=["batch_stats"])
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(
        y.astype(np.float32), expected.astype(np.float32), rtol=1e-2 if "dtype" in options else 1e-5, atol=1e-5
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, statistics)
