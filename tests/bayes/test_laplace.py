"""The last layer's posterior against dense float64 references and quadrature."""

from __future__ import annotations

import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.bayes import laplace
from mmjax.bayes.laplace import (
    empty_precision,
    is_dense,
    jittered_cholesky,
    posteriors,
    warn_of_blocks,
)

# Compiled as a whole: one program each, not one an operation.
precision = jax.jit(laplace.precision, static_argnames="likelihood")
posterior = jax.jit(laplace.posterior)
deviations = jax.jit(laplace.deviations, static_argnames="samples")
sample_weights = jax.jit(laplace.sample_weights, static_argnames="samples")
sampled_cotangents = jax.jit(laplace.sampled_cotangents, static_argnames="loss")
predictive = jax.jit(laplace.predictive, static_argnames=("samples", "likelihood"))

N, D, C, TAU = 40, 4, 3, 0.7
DRAWS = 20_000


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(0)
    return [scale * rng.normal(size=n).astype(np.float32) for n, scale in (((N, D), 1), ((D, C), 1), ((C,), 0.3))]


def reference(inputs, kernel, bias, likelihood, weight=None):
    """Σ J^T H J in float64, by the book: one Kronecker product an example."""
    x, w, b = (np.asarray(v, np.float64) for v in (inputs, kernel, bias))
    weight = np.ones(len(x)) if weight is None else weight
    total = 0.0
    for a, logits, mass in zip(np.c_[x, np.ones(len(x))], x @ w + b, weight, strict=True):
        if likelihood == "softmax":
            p = np.exp(logits - logits.max())
            p /= p.sum()
            h = np.diag(p) - np.outer(p, p)
        else:
            p = 1 / (1 + np.exp(-logits))
            h = np.diag(p * (1 - p))
        total = total + mass * np.kron(h, np.outer(a, a))
    return total


def whole(matrix):
    """Blocks [C, d, d] as one matrix."""
    matrix = np.asarray(matrix)
    if matrix.ndim == 2:
        return matrix
    out = np.zeros((matrix.shape[0], matrix.shape[1]) * 2)
    for i, block in enumerate(matrix):
        out[i, :, i] = block
    return out.reshape(matrix.shape[0] * matrix.shape[1], -1)


@pytest.mark.parametrize("likelihood", ["softmax", "sigmoid"])
def test_precision_is_the_gauss_newton_sum_and_batches_add_up(layer, likelihood):
    inputs, kernel, bias = layer
    weight = np.r_[np.ones(N - 3), np.zeros(3)].astype(np.float32)  # padding
    got = precision(*layer, weight, likelihood)
    assert got.shape == empty_precision(D, C, likelihood).shape
    np.testing.assert_allclose(whole(got), reference(*layer, likelihood, weight), rtol=1e-5, atol=1e-5)
    halves = [precision(inputs[s], kernel, bias, weight[s], likelihood) for s in (slice(15), slice(15, None))]
    np.testing.assert_allclose(sum(halves), got, rtol=1e-5, atol=1e-5)


def test_precision_keeps_its_digits_where_the_head_is_certain(layer):
    inputs, kernel, bias = layer
    for likelihood in ("softmax", "sigmoid"):
        got = whole(precision(inputs, 12 * kernel, bias, None, likelihood))
        expected = reference(inputs, 12 * kernel, bias, likelihood)
        np.testing.assert_allclose(np.diag(got), np.diag(expected), rtol=1e-4)


@pytest.mark.parametrize("likelihood", ["softmax", "sigmoid"])
def test_samples_have_the_dense_inverse_as_covariance(layer, likelihood):
    made = posterior(precision(*layer, None, likelihood), TAU)
    draws = np.asarray(deviations(made, jax.random.key(1), DRAWS)).reshape(DRAWS, -1)
    expected = np.linalg.inv(reference(*layer, likelihood) + TAU * np.eye(C * (D + 1)))
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(np.cov(draws.T) / scale, expected / scale, atol=5 * np.sqrt(2 / DRAWS))
    np.testing.assert_allclose(draws.mean(0) / np.sqrt(np.diag(expected)), 0, atol=5 / np.sqrt(DRAWS))
    centre = sample_weights(made, *layer[1:], jax.random.key(1), 8) - deviations(made, jax.random.key(1), 8).reshape(
        8, C, -1
    )
    np.testing.assert_allclose(centre[3], np.c_[np.asarray(layer[1]).T, layer[2]], atol=1e-5)


@pytest.mark.parametrize(("blocks", "side"), [((), 263), ((2,), 263), ((), 1100)])
def test_samples_of_a_side_of_several_strips(blocks, side):
    """Each strip of the root has noise of its own; together they are the product with the whole."""
    covariance = 0.5 * np.eye(side) + 0.5  # all entries correlated: ½
    sums = np.broadcast_to(np.linalg.inv(covariance) - TAU * np.eye(side), (*blocks, side, side)).astype(np.float32)
    made, key, height = posterior(sums, TAU), jax.random.key(2), 256 if side > 8 * 128 else 128
    strips = [min(height, side - start) for start in range(0, side, height)]
    noise = [jax.random.normal(jax.random.fold_in(key, i), (*blocks, 50, n)) for i, n in enumerate(strips)]
    whole = np.moveaxis(np.concatenate(noise, axis=-1) @ np.float64(made.root), -2, 0)
    np.testing.assert_allclose(deviations(made, key, 50), whole, atol=1e-4)
    assert len(strips) in (3, 5)
    if side < 300:
        draws = np.asarray(deviations(made, key, DRAWS))
        for block in np.ndindex(blocks):
            found = np.cov(draws[(slice(None), *block)].T)
            np.testing.assert_allclose(found, covariance, atol=6 * np.sqrt(2 / DRAWS))


def test_blocks_above_the_limit(layer, monkeypatch):
    dense = precision(*layer)
    monkeypatch.setattr(laplace, "DENSE_LIMIT", C * (D + 1) - 1)
    assert not is_dense(D, C) and is_dense(D - 1, C)
    blocks = jax.jit(lambda *x: laplace.precision(*x))(*layer)  # traced anew, under the other limit
    assert blocks.shape == (C, D + 1, D + 1)
    each = np.arange(C)
    np.testing.assert_allclose(blocks, np.asarray(dense).reshape(C, D + 1, C, D + 1)[each, :, each, :], rtol=1e-6)
    with pytest.warns(UserWarning, match="15 x 15, above the limit of 14.*between classes are left out"):
        warn_of_blocks("fusion", D, C)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_blocks("fusion", D, C, "sigmoid")  # exact by blocks
        warn_of_blocks("fusion", D - 1, C)


def gauss_hermite(function, mean, covariance, order=60):
    """E f and Var f of a bivariate normal, by quadrature in float64."""
    x, w = np.polynomial.hermite_e.hermegauss(order)
    w = w / w.sum()
    root = np.linalg.cholesky(covariance)
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), -1) @ root.T + mean
    values, weights = function(grid[..., 0], grid[..., 1]), np.outer(w, w)
    first = np.sum(weights * values)
    return first, np.sum(weights * (values - first) ** 2)


@pytest.mark.parametrize("likelihood", ["softmax", "sigmoid"])
def test_gradient_moments_match_quadrature_on_two_classes_and_one_feature(likelihood):
    """A softmax over two classes depends on differences of rows only: a bivariate normal, as a sigmoid's weight and bias."""
    inputs = np.random.default_rng(3).normal(size=(30, 1)).astype(np.float32)
    labels = np.arange(30) % 2
    outputs = 2 if likelihood == "softmax" else 1
    kernel, bias = np.float32([[0.8, -0.5]])[:, :outputs], np.float32([0.1, -0.2])[:outputs]
    made = posterior(precision(inputs, kernel, bias, None, likelihood), 1.0)
    covariance = np.linalg.inv(reference(inputs, kernel, bias, likelihood) + np.eye(2 * outputs))
    rows = np.c_[kernel.T, bias].reshape(-1)
    select = np.concatenate([-np.eye(2), np.eye(2)], axis=1) if outputs == 2 else np.eye(2)  # row 1 - row 0
    mean, covariance = select @ rows, select @ covariance @ select.T

    def loss(logits):
        two = logits if outputs == 2 else jnp.concatenate([jnp.zeros_like(logits), logits], axis=1)
        return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(two), labels[:, None], axis=1))

    weights = sample_weights(made, kernel, bias, jax.random.key(4), DRAWS)
    got = np.asarray(sampled_cotangents(loss, inputs, weights), np.float64)[..., 0]
    for n in (0, 1, 7):
        a, y = float(inputs[n, 0]), float(labels[n])
        first, second = gauss_hermite(lambda w, b: w * (1 / (1 + np.exp(-w * a - b)) - y), mean, covariance)  # noqa: B023
        np.testing.assert_allclose(got[:, n].mean(), first, atol=5 * np.sqrt(second / DRAWS))
        np.testing.assert_allclose(got[:, n].var(ddof=1), second, rtol=0.1)


def test_a_certain_posterior_gives_the_plain_gradient_and_prediction(layer):
    inputs, kernel, bias = layer
    made = posterior(precision(*layer), 1e12)
    loss = lambda logits: -jnp.mean(jax.nn.log_softmax(logits)[:, 0])  # noqa: E731
    got = sampled_cotangents(loss, inputs, sample_weights(made, kernel, bias, jax.random.key(0), 16))
    plain = jax.jit(jax.grad(lambda x: loss(x @ kernel + bias)))(inputs)
    np.testing.assert_allclose(got, np.broadcast_to(plain, got.shape), atol=1e-6)
    p = np.asarray(jax.nn.softmax(inputs @ kernel + bias))
    np.testing.assert_allclose(predictive(made, inputs, kernel, bias, jax.random.key(0)), p, atol=1e-5)
    wide = predictive(
        posterior(np.zeros((15, 15), np.float32), 0.05), inputs, kernel, bias, jax.random.key(0), samples=512
    )
    np.testing.assert_allclose(np.sum(wide, axis=1), 1, rtol=1e-5)
    assert np.mean(np.max(wide, 1)) < np.mean(p.max(1)) - 0.1  # a wide one is less certain
    s = predictive(made, inputs, kernel, bias, jax.random.key(0), likelihood="sigmoid")
    np.testing.assert_allclose(s, jax.nn.sigmoid(inputs @ kernel + bias), atol=1e-5)


def test_a_posterior_that_is_not_positive_definite_gets_a_jitter_and_warns_once():
    singular = np.full((4, 4), 1e6, np.float32)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        factor = jax.jit(jittered_cholesky)(singular + 1e-9 * np.eye(4, dtype=np.float32))[0]
        made = posterior(singular, 1e-9)
        again = posterior(2 * singular, 1e-9)
        jax.effects_barrier()
    assert [str(w.message)[:44] for w in seen] == ["a Laplace posterior is not positive definite"]
    assert made.jitter == pytest.approx(1.0) and again.jitter == pytest.approx(2.0)  # 1e-6 of the diagonal's mean
    factor = np.asarray(factor)
    np.testing.assert_allclose(made.root @ factor, np.eye(4), atol=1e-4)
    np.testing.assert_allclose(factor @ factor.T, singular + np.asarray(made.jitter) * np.eye(4), rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = jax.vmap(posterior, (0, None))(np.stack([np.eye(4, dtype=np.float32)] * 2), 1.0)
        jax.effects_barrier()
    assert both.jitter.tolist() == [0, 0]
    assert np.isnan(posterior(np.nan * singular, 1.0).root).any()  # the trainer looks


def test_decompositions_of_many_seeds_do_not_wait_for_each_other():
    code = """
import jax, jax.numpy as jnp
from mmjax.bayes.laplace import deviations, posteriors

def draws(sums, key):
    return {name: deviations(made, key, 64) for name, made in posteriors(sums, 1.0).items()}

sums = {name: jnp.broadcast_to(jnp.eye(300), (8, 300, 300)) for name in "abc"}
of_seeds = jax.jit(jax.vmap(draws))
for _ in range(5):
    jax.block_until_ready(of_seeds(sums, jax.random.split(jax.random.key(0), 8)))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_one_posterior_that_fails_leaves_the_next_alone():
    found = posteriors({"a": jnp.full((2, 2), jnp.nan), "b": jnp.eye(2)}, 3.0)
    assert np.isnan(found["a"].root).any()
    np.testing.assert_array_equal(found["b"].root, posterior(jnp.eye(2), 3.0).root)
