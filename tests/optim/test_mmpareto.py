"""MMPareto: agreement, conflict, cancellation, by encoder; groups, touching and features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract.problems import encode, head_losses, losses_fn, make_batch, make_params

import mmjax
from mmjax.optim import mmpareto
from optim.gram_cases import random_jacobian

GROUPS = {"encoder": {"a": "encoder/a", "b": "encoder/b"}, "fusion": "fusion", "head": "head/b"}


def reference(g, h, gamma=1.5, max_scale=np.inf):
    """One encoder's update from the fusion's and the modality's gradient, float64."""
    g, h = np.asarray(g, np.float64), np.asarray(h, np.float64)
    w = 0.5
    if g @ h < 0:
        w = np.clip((h @ h - g @ h) / np.sum((g - h) ** 2), 0, 1)
    direction = 2 * (w * g + (1 - w) * h)
    size = np.linalg.norm(direction)
    if size <= 1e-6 * (np.linalg.norm(g) + np.linalg.norm(h)):
        return 0 * direction
    return direction * min(max(1, np.linalg.norm(g + h) / size) * gamma, max_scale)


def tree(rows_a, rows_b, fusion=(1.0, 5.0, 7.0), head=(2.0, 3.0, 4.0)):
    """Stacked gradients of K = 3; encoder a is split over two leaves' worth of one array."""
    return {
        "encoder": {"a": jnp.asarray(rows_a, jnp.float32), "b": jnp.asarray(rows_b, jnp.float32)},
        "fusion": jnp.asarray(fusion, jnp.float32)[:, None],
        "head": jnp.asarray(head, jnp.float32)[:, None],
    }


def apply(grads, active=None, groups=GROUPS, touching=None, **options):
    tx = mmpareto(**options)
    params = jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), grads)
    updates, state = jax.jit(
        lambda g: tx.update(g, tx.init(params), params, groups=groups, touching=touching, active=active)
    )(grads)
    return updates, state.weights


def test_agreement_and_conflict_by_encoder():
    g, a, b = random_jacobian(0, 3).astype(np.float64)
    a = a - (g @ a / (g @ g) + 0.6) * g  # conflicts with g
    b = b - (g @ b / (g @ g) - 0.3) * g  # agrees with 2 g
    junk = np.full(7, 100.0)  # the other modality's gradient, if it were looked at
    updates, weights = apply(tree([g, a, 0 * junk], [2 * g, 0 * junk, b]))
    np.testing.assert_allclose(updates["encoder"]["a"], reference(g, a), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updates["encoder"]["b"], 1.5 * (2 * g + b), rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(reference(g, a)) >= 1.5 * np.linalg.norm(g + a) * (1 - 1e-6)
    np.testing.assert_allclose(updates["fusion"], [13.0])  # heads keep plain sums
    np.testing.assert_allclose(updates["head"], [9.0])
    np.testing.assert_allclose(weights[2], 1.5, rtol=1e-5)
    with_junk, _ = apply(tree([g, a, junk], [2 * g, 0 * junk, b]))
    np.testing.assert_allclose(with_junk["encoder"]["a"], reference(g, a) + junk, rtol=1e-4, atol=1e-3)


def test_all_parameters_of_an_encoder_are_weighed_together():
    g, h = random_jacobian(1, 2)
    h = h - 1.2 * g
    grads = {"x": jnp.stack([g[:3], h[:3]]), "y": jnp.stack([g[3:], h[3:]]).reshape(2, 2, 2)}
    updates, _ = apply(grads, groups={"x": "encoder/m", "y": "encoder/m"}, gamma=1.0)
    joined = np.concatenate([np.ravel(updates["x"]), np.ravel(updates["y"])])
    np.testing.assert_allclose(joined, reference(g, h, 1.0), rtol=1e-4, atol=1e-5)


def test_weights_are_those_that_were_used():
    g, a, b = random_jacobian(2, 3)
    b = b - 1.5 * g
    zero = 0 * g
    updates, weights = apply(tree([g, a, zero], [g, zero, b]))
    factors = {
        m: np.linalg.lstsq(np.stack([g, x], 1), np.asarray(updates["encoder"][m]), rcond=None)[0]
        for m, x in (("a", a), ("b", b))
    }
    np.testing.assert_allclose(weights[1:], [factors["a"][1], factors["b"][1]], rtol=1e-3)
    np.testing.assert_allclose(weights[0], (factors["a"][0] + factors["b"][0]) / 2, rtol=1e-3)


def test_vanishing_and_bounded_factors():
    g, a = random_jacobian(3, 2)
    zero = 0 * g
    updates, weights = apply(tree([g, -g, zero], [zero, zero, zero]))
    np.testing.assert_array_equal(updates["encoder"]["a"], zero)  # opposite gradients: nothing is left
    np.testing.assert_array_equal(updates["encoder"]["b"], zero)
    assert np.all(np.isfinite(weights))
    h = -g + 1e-3 * (a - (a @ g / (g @ g)) * g) - 0.3 * g  # nearly opposite: a large factor
    updates, _ = apply(tree([g, h, zero], [g, zero, zero]))
    expected = reference(g, h)
    np.testing.assert_allclose(np.linalg.norm(updates["encoder"]["a"]), np.linalg.norm(expected), rtol=1e-2)
    assert np.linalg.norm(expected) > 0.4 * np.linalg.norm(g)
    np.testing.assert_allclose(updates["encoder"]["b"], 1.5 * g, rtol=1e-5)  # a zero gradient agrees
    bounded, _ = apply(tree([g, h, zero], [g, zero, zero]), max_scale=2.0)
    np.testing.assert_allclose(bounded["encoder"]["a"], reference(g, h, max_scale=2.0), rtol=2e-2, atol=1e-5)
    assert np.linalg.norm(bounded["encoder"]["a"]) < 0.1 * np.linalg.norm(expected)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_common_scale(scale):
    g, a, b = random_jacobian(4, 3)
    zero = 0 * g
    one, w = apply(tree([g, a - 2 * g, zero], [g, zero, b]))
    scaled = jax.tree.map(lambda x: scale * x, tree([g, a - 2 * g, zero], [g, zero, b]))
    other, weights = apply(scaled)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, scale * x, rtol=1e-4, atol=1e-6 * scale), one, other)
    np.testing.assert_allclose(weights, w, rtol=1e-4)


def test_objectives_are_distinct_and_encoders_found_from_structure():
    """The accumulated gradients of a known benchmark would make this three times the plain sum."""
    params, batch = make_params(), make_batch()
    groups = {
        "encoder": {m: {"kernel": f"encoder/{m}"} for m in ("audio", "image")},
        "fusion": {"hidden": "fusion", "kernel": "fusion", "bias": "fusion"},
        "head": {m: {"kernel": f"head/{m}", "bias": f"head/{m}"} for m in ("audio", "image")},
    }
    _, grads = mmjax.objective_grads(losses_fn)(params, batch)
    rows = jax.tree.map(np.asarray, grads.stacked())
    tx = mmpareto()
    with_groups, state = tx.update(grads, tx.init(params), params, groups=groups)
    for m, k in (("audio", 1), ("image", 2)):
        g, h = (rows["encoder"][m]["kernel"][i].ravel() for i in (0, k))
        assert not np.allclose(g, h)
        got = with_groups["encoder"][m]["kernel"].ravel()
        np.testing.assert_allclose(got, reference(g, h), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(with_groups["head"][m]["bias"], rows["head"][m]["bias"][k], rtol=1e-6)
    for given, extra in (
        (grads, {}),
        (grads.stacked(), {"touching": grads.touching}),
        (grads.stacked(), {"groups": groups}),
    ):
        again, new = tx.update(given, tx.init(params), params, **extra)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), again, with_groups)
        np.testing.assert_allclose(new.weights, state.weights, rtol=1e-5)


def test_at_the_features():
    params, batch = make_params(), make_batch()
    _, grads = mmjax.objective_grads(head_losses, encode=encode)(params, batch)
    features = grads.features()
    tx = mmpareto(level="features")
    updates, _ = jax.jit(
        lambda p: tx.update(mmjax.objective_grads(head_losses, encode=encode)(p, batch)[1], tx.init(p), p)
    )(params)
    combined = {}
    for m, k in (("audio", 1), ("image", 2)):
        g, h = (np.asarray(features.cotangents[m][i]) for i in (0, k))
        combined[m] = jnp.asarray(reference(g.ravel(), h.ravel()).reshape(g.shape), jnp.float32)
    expected = features.pull_back(combined, jax.tree.map(lambda d: d.sum(axis=0), features.direct))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), updates, expected)


def test_an_absent_modality_leaves_its_encoder_to_the_fusion():
    g, a, b = random_jacobian(5, 3)
    nan = np.full(7, np.nan)
    grads = tree([g, a, nan], [g, 0 * g, nan], fusion=(1.0, 0.0, np.nan), head=(0.0, 3.0, np.nan))
    updates, weights = apply(grads, active=jnp.array([True, True, False]))
    np.testing.assert_allclose(updates["encoder"]["a"], reference(g, a), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updates["encoder"]["b"], g, rtol=1e-6)
    np.testing.assert_allclose([updates["fusion"][0], updates["head"][0]], [1.0, 3.0])
    assert weights[2] == 0 and np.isfinite(weights).all()
    updates, _ = apply(grads, active=jnp.zeros(3, bool))
    jax.tree.map(lambda u: np.testing.assert_array_equal(u, 0 * u), updates)


def test_non_finite_gradients_reach_the_update():
    g, a, b = random_jacobian(6, 3)
    a[2] = np.nan
    updates, weights = apply(tree([g, a, 0 * g], [g, 0 * g, b]))
    assert np.isnan(updates["encoder"]["a"]).tolist() == [i == 2 for i in range(7)]
    assert np.isfinite(updates["encoder"]["b"]).all() and np.isfinite(weights).all()


def test_bfloat16_gradients_are_combined_in_float32():
    g, a = jnp.asarray(random_jacobian(7, 2, 40), jnp.bfloat16)
    grads = {"x": jnp.stack([g, a - 2 * g])}
    narrow, _ = apply(grads, groups={"x": "encoder/m"})
    wide, _ = apply(jax.tree.map(lambda x: x.astype(jnp.float32), grads), groups={"x": "encoder/m"})
    assert narrow["x"].dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow["x"].astype(jnp.float32), wide["x"], rtol=2**-8)


def test_options_and_errors():
    for options in ({"gamma": 0.0}, {"max_scale": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be a finite number > 0"):
            mmpareto(**options)
    grads = tree(*random_jacobian(0, 6, 2).reshape(2, 3, 2))
    with pytest.raises(ValueError, match=r"groups=.*touching="):
        apply(grads, groups=None)
    with pytest.raises(ValueError, match=r"3 objectives are the fusion and 2"):
        apply(grads, groups=jax.tree.map(lambda _: "fusion", GROUPS))
    with pytest.raises(ValueError, match="groups must be a tree like params"):
        apply(grads, groups={"encoder": "encoder/a"})
    injected = optax.inject_hyperparams(mmpareto)(gamma=2.0, max_scale=3.0)
    params = jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), grads)
    updates, _ = injected.update(grads, injected.init(params), params, groups=GROUPS)
    expected, _ = apply(grads, gamma=2.0, max_scale=3.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)
