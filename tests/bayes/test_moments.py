"""Moments of gradients against float64 references; what an estimator lacks is named."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.bayes.moments import Given, Gradients, Setting, ema, laplace, microbatch

RNG = np.random.default_rng(0)
OBJECTIVES = ((0, 2), (1,))
EVERYBODY = np.ones(3, bool)


def gradients(rows=(), parts=(), **options):
    return Gradients(OBJECTIVES, tuple(rows), lambda n: tuple(p[:n] for p in parts), **options)


def given(active=EVERYBODY, **arguments):
    return Given(active, np.int32(0), **arguments)


def test_ema_follows_its_recurrence_as_if_in_float64():
    """Gradients with a mean far above their spread, where E[g^2] - E[g]^2 in float32 would be rounding."""
    beta, steps = 0.9, 60
    series = [np.float32(1000 + RNG.normal(size=(steps, len(ids), 5))) for ids in OBJECTIVES]
    present = RNG.random((steps, 3)) < 0.7
    estimator = ema(beta)

    @jax.jit
    def run(series, present):
        def step(state, x):
            rows, active = x
            moments, state = estimator.estimate(Setting(), gradients(rows), state, given(active))
            return state, [m.variance for m in moments]

        return jax.lax.scan(step, estimator.init(Setting(), [jnp.zeros((3, 5))] * 2), (series, present))

    state, variances = run(series, present)
    for leaf, ids in enumerate(OBJECTIVES):
        for row, k in enumerate(ids):
            m = v = 0.0
            for t, g in enumerate(series[leaf][present[:, k], row].astype(np.float64), start=1):
                a = (1 - beta) / (1 - beta**t)
                delta = g - m
                m, v = m + a * delta, (1 - a) * (v + a * delta**2)
            np.testing.assert_allclose(state.mean[leaf][k], m, rtol=1e-6)
            np.testing.assert_allclose(state.variance[leaf][k], v, rtol=2e-3)
            np.testing.assert_array_equal(variances[leaf][-1, row], state.variance[leaf][k])
    assert state.count.tolist() == present.sum(0).tolist()
    np.testing.assert_array_equal(state.mean[1][0], 0)  # an objective that does not reach the leaf has no row in it


def test_ema_at_the_features_is_of_the_batch_mean_and_the_update_uses_the_gradient():
    rows = [np.float32(RNG.normal(size=(len(ids), 6, 5))) for ids in OBJECTIVES]
    estimator = ema()

    @jax.jit
    def two(rows):
        state = estimator.init(Setting(), [jnp.zeros((3, 5))] * 2)
        for scale in (1.0, 3.0):
            moments, state = estimator.estimate(
                Setting(), gradients([scale * r for r in rows], examples=True), state, given()
            )
        return moments

    for r, (mean, variance) in zip(rows, two(rows), strict=True):
        np.testing.assert_allclose(mean, 3 * r, rtol=1e-6)
        a = 0.1 / (1 - 0.9**2)
        np.testing.assert_allclose(variance, ((1 - a) * a * (2 * r.mean(1)) ** 2)[:, None], rtol=1e-4)


def test_microbatch_moments_are_those_of_the_parts():
    parts = [np.float32(RNG.normal(size=(4, len(ids), 5))) for ids in OBJECTIVES]
    rows = [np.float32(RNG.normal(size=(len(ids), 6, 5))) for ids in OBJECTIVES]
    estimator = microbatch(3)
    moments, _ = estimator.estimate(Setting(), gradients([r[:, 0] for r in rows], parts), (), given())
    at_features, _ = estimator.estimate(Setting(), gradients(rows, parts, examples=True), (), given())
    for leaf, each in enumerate(parts):
        np.testing.assert_allclose(moments[leaf].mean, each[:3].mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(moments[leaf].variance, each[:3].var(0, ddof=1), rtol=1e-5)
        np.testing.assert_array_equal(at_features[leaf].mean, rows[leaf])
        np.testing.assert_allclose(at_features[leaf].variance[:, 0], each[:3].var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ema(1.0), r"decay must be in \(0, 1\), got 1.0"),
        (lambda: microbatch(1), "two micro-batches.*got 1"),
        (lambda: laplace(samples=15), "samples must be an integer >= 16, got 15"),
        (lambda: laplace(prior_precision=0.0), "prior_precision must be a finite number > 0, got 0.0"),
        (lambda: laplace(prior_precision=-3), "prior_precision must be a finite number > 0, got -3"),
        (lambda: laplace(mean="sample"), "mean must be one of gradient, posterior; got 'sample'"),
        (lambda: laplace(likelihood="probit"), "likelihood must be one of softmax, sigmoid; got 'probit'"),
        (lambda: laplace(refresh_every=0), "refresh_every must be None or an integer >= 1, got 0"),
        (lambda: laplace().init(Setting({"fusion": (2, 3)}), []), "needs num_examples"),
        (lambda: laplace().init(Setting(None, 100), []), "sizes of the last layers"),
    ],
)
def test_options_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_laplace_lacks_at_a_step_is_named():
    estimator, setting = laplace(refresh_every=1), Setting({"fusion": (2, 3)}, 100)
    state = estimator.init(setting, [])
    layer = (np.zeros((4, 2), np.float32), np.zeros((2, 3), np.float32), np.zeros(3, np.float32))
    whole = given(last_layer={"fusion": layer}, labels=np.zeros(4, int), key=jax.random.key(0))
    at_features = gradients([], examples=True, pull_back=lambda samples: ())
    estimate = lambda g, **change: estimator.estimate(setting, g, state, dataclasses.replace(whole, **change))  # noqa: E731
    for change, message in (
        ({"last_layer": None}, "laplace needs last_layer, {objective: "),
        ({"key": None}, "needs the extra argument key"),
        ({"labels": None}, "needs the extra argument labels"),
        ({"last_layer": {"fusion": (layer[0], np.zeros((2, 4), np.float32), layer[2])}}, r"\(2, 4\).*the layout says"),
        ({"last_layer": {"fusion": (np.zeros((4, 5, 2), np.float32), *layer[1:])}}, "has inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            estimate(at_features, **change)
    with pytest.raises(ValueError, match="level='features'"):
        estimate(gradients([]))
    with pytest.raises(ValueError, match="refreshed from mini-batches needs num_examples"):
        estimator.estimate(Setting(setting.layers), at_features, state, whole)
