"""GradDrop, OGM and AGM: signs and expectations, the jump of the modulation, Shapley shares and running references."""

from __future__ import annotations

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.problems import losses_fn, make_batch, make_params

import mmjax
from mmjax.optim import METHODS, agm, graddrop, ogm, ogm_ge
from mmjax.optim.agm import leads, sampled_shares, shapley_shares
from mmjax.optim.agm import modulation as agm_modulation
from mmjax.optim.graddrop import drop_signs
from mmjax.optim.ogm import modulation

KEY = jax.random.key(11)


# ---- GradDrop ----------------------------------------------------------------------------------------------------


def test_graddrop_keeps_one_sign_an_entry_and_has_its_expectation():
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    rows[:, 0], rows[:, 1] = np.abs(rows[:, 0]), 0.0
    kept = np.stack(jax.vmap(lambda key: drop_signs(list(jnp.asarray(rows)), key))(jax.random.split(KEY, 8000)), axis=1)
    assert not ((kept > 0).any(axis=1) & (kept < 0).any(axis=1)).any()
    assert ((kept == rows) | (kept == 0)).all()
    np.testing.assert_array_equal(kept[:, :, 0], np.broadcast_to(rows[:, 0], (8000, 3)))
    p = 0.5 * (1 + rows.sum(0) / np.maximum(np.abs(rows).sum(0), 1e-30))
    expected = p * np.maximum(rows, 0).sum(0) + (1 - p) * np.minimum(rows, 0).sum(0)
    np.testing.assert_allclose(kept.sum(axis=1).mean(axis=0), expected, atol=0.1)
    p_kept = (kept[:, :, 2:] > 0).any(axis=1).mean(axis=0)
    np.testing.assert_allclose(p_kept, p[2:], atol=0.03)


def test_graddrop_draws_for_each_leaf_and_entry():
    grads = {m: jnp.stack([jnp.ones(400), -jnp.ones(400)]) for m in "ab"}
    update, state = graddrop().update(grads, graddrop().init(None), key=KEY)
    a, b = np.asarray(update["a"]) > 0, np.asarray(update["b"]) > 0
    for drawn in (a, b, a ^ b):
        assert 140 < drawn.sum() < 260
    np.testing.assert_allclose(state.weights.sum(), 1.0, rtol=1e-5)  # each entry keeps one of the two


def test_graddrop_leaves_alone_what_one_objective_reaches_and_takes_both_forms():
    params, batch = make_params(), make_batch()
    tx = graddrop()

    @jax.jit
    def updates(params, batch):
        values, grads = mmjax.objective_grads(losses_fn)(params, batch)
        rows = grads.stacked()
        lazy, state = tx.update(grads, tx.init(params), params, key=KEY)
        stacked, _ = tx.update(rows, tx.init(params), params, key=KEY, touching=grads.touching)
        broken = jax.tree.map(lambda g: g.at[2].set(jnp.nan), rows)
        active = jnp.array([True, True, False])
        absent, _ = tx.update(broken, tx.init(params), params, key=KEY, touching=grads.touching, active=active)
        return lazy, stacked, absent, rows, state

    lazy, stacked, absent, rows, state = updates(params, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), lazy, stacked)
    np.testing.assert_allclose(lazy["head"]["image"]["kernel"], rows["head"]["image"]["kernel"].sum(0), rtol=1e-6)
    np.testing.assert_allclose(absent["encoder"]["image"]["kernel"], rows["encoder"]["image"]["kernel"][0], rtol=1e-6)
    assert np.all(np.asarray(state.weights) > 0)
    assert np.all(np.asarray(state.weights) < 1)


# ---- OGM ---------------------------------------------------------------------------------------------------------


def test_ogm_jumps_where_nobody_is_ahead():
    alpha = 0.3
    assert modulation(jnp.array([1.0, 1.0]), alpha).tolist() == [1.0, 1.0]
    ahead = modulation(jnp.array([1.0 + 1e-6, 1.0]), alpha)
    np.testing.assert_allclose(ahead, [1 - np.tanh(alpha), 1.0], rtol=1e-4)


def test_ogm_takes_the_mean_of_ratios_with_several_modalities():
    scores, alpha = np.array([3.0, 1.0, 2.0]), 0.2
    ratios = [np.mean([scores[m] / scores[j] for j in range(3) if j != m]) for m in range(3)]
    expected = [1 - np.tanh(alpha * r) if r > 1 else 1.0 for r in ratios]
    np.testing.assert_allclose(modulation(jnp.asarray(scores), alpha), expected, rtol=1e-5)
    absent = modulation(jnp.array([3.0, jnp.nan, 2.0]), alpha, jnp.array([True, False, True]))
    np.testing.assert_allclose(absent, [1 - np.tanh(alpha * 1.5), 1.0, 1.0], rtol=1e-5)
    assert np.isfinite(modulation(jnp.zeros(3), alpha)).all()
    assert modulation(jnp.array([1.0, 0.0]), alpha).tolist() == [0.0, 1.0]
    assert modulation(jnp.array([4.0]), alpha).tolist() == [1.0]


def problem(modalities=("audio", "image")):
    """Encoders with a convolution, a dense kernel and a bias; one row an objective, of the fusion alone."""
    rng = np.random.default_rng(1)
    shapes = {"conv": (3, 3, 2, 2), "dense": (4, 2), "bias": (2,)}
    k = len(modalities) + 1

    def row(shape):
        return jnp.zeros((k, *shape)).at[0].set(rng.normal(size=shape))

    grads = {"encoder": {m: {n: row(s) for n, s in shapes.items()} for m in modalities}, "fusion": row((4,))}
    groups = {"encoder": {m: dict.fromkeys(shapes, f"encoder/{m}") for m in modalities}, "fusion": "fusion"}
    logits = {
        m: jnp.asarray(rng.normal(size=(6, 3)) + 3 * i * np.eye(3)[[0, 1, 2] * 2]) for i, m in enumerate(modalities)
    }
    return grads, {"groups": groups, "unimodal_logits": logits, "labels": jnp.array([0, 1, 2] * 2)}


@pytest.mark.parametrize(("conv_only", "changed"), [(False, {"conv", "dense"}), (True, {"conv"})])
def test_ogm_scales_the_kernels_of_the_encoder_that_is_ahead(conv_only, changed):
    grads, extra = problem()
    tx = ogm(0.2, conv_only=conv_only, num_objectives=3)
    update, state = tx.update(grads, tx.init(None), **extra)
    chances = {m: np.asarray(jax.nn.softmax(logits)) for m, logits in extra["unimodal_logits"].items()}
    scores = [chances[m][np.arange(6), extra["labels"]].sum() for m in ("audio", "image")]
    factor = 1 - np.tanh(0.2 * scores[1] / scores[0])
    np.testing.assert_allclose(state.weights, [1, 1, factor], rtol=1e-5)
    for name, leaf in update["encoder"]["image"].items():
        expected = grads["encoder"]["image"][name][0] * (factor if name in changed else 1.0)
        np.testing.assert_allclose(leaf, expected, rtol=1e-5)
    jax.tree.map(
        lambda u, g: np.testing.assert_array_equal(u, g[0]),
        (update["encoder"]["audio"], update["fusion"]),
        (grads["encoder"]["audio"], grads["fusion"]),
    )


def test_ogm_rounds_bfloat16_gradients_once():
    grads, extra = problem()
    grads = jax.tree.map(lambda g: (g + g[:1]).astype(jnp.bfloat16), grads)
    update, state = ogm(0.2).update(grads, ogm(0.2).init(None), **extra)
    total = np.asarray(grads["encoder"]["image"]["conv"], np.float32).sum(axis=0)
    expected = jnp.asarray(state.weights[2] * total, jnp.bfloat16)
    np.testing.assert_array_equal(update["encoder"]["image"]["conv"], expected)


def test_ogm_is_on_in_its_window_only():
    grads, extra = problem()
    tx = ogm(0.2, start=1, stop=3)
    state, factors = tx.init(None), []
    for _ in range(4):
        _, state = tx.update(grads, state, **extra)
        factors.append(float(state.weights[2]))
    assert [f < 1 for f in factors] == [False, True, True, False]


def test_ogm_is_the_identity_for_one_modality():
    grads, extra = problem(("image",))
    for tx in (ogm(0.5), ogm_ge(0.5)):
        update, _ = tx.update(grads, tx.init(None), key=KEY, **extra)
        jax.tree.map(lambda u, g: np.testing.assert_array_equal(u, g[0]), update, grads)


def test_ogm_ge_adds_noise_of_the_unscaled_gradients_spread():
    grads, extra = problem()
    without, _ = ogm(0.8).update(grads, ogm(0.8).init(None), **extra)
    tx = ogm_ge(0.8)
    draw = jax.jit(jax.vmap(lambda key: tx.update(grads, tx.init(None), key=key, **extra)[0]))
    many = draw(jax.random.split(KEY, 2000))
    for m in ("audio", "image"):
        for name in ("conv", "dense"):
            noise = np.asarray(many["encoder"][m][name] - without["encoder"][m][name])
            spread = float(np.std(grads["encoder"][m][name][0]))
            np.testing.assert_allclose(noise.std(axis=0), spread, rtol=0.1)
            np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.12 * spread)
        np.testing.assert_array_equal(many["encoder"][m]["bias"][0], without["encoder"][m]["bias"])
    np.testing.assert_array_equal(many["fusion"][0], without["fusion"])
    absent = {"audio": extra["unimodal_logits"]["audio"], "image": jnp.full((6, 3), jnp.nan)}
    grads = jax.tree.map(lambda g: g.at[2].set(jnp.nan), grads)
    update, state = tx.update(
        grads, tx.init(None), key=KEY, **(extra | {"unimodal_logits": absent}), active=jnp.array([True, True, False])
    )
    jax.tree.map(lambda u, g: np.testing.assert_array_equal(u, g[0]), update, grads)
    assert state.weights.tolist() == [1, 1, 0]


# ---- AGM ---------------------------------------------------------------------------------------------------------


def game(seed, names):
    worth = {frozenset(): np.zeros(2)}
    rng = np.random.default_rng(seed)
    for size in range(1, 2 ** len(names)):
        worth[frozenset(m for i, m in enumerate(names) if size >> i & 1)] = rng.normal(size=2)
    return worth


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shapley_shares_are_the_mean_over_all_orders(count):
    names = list("abcd"[:count])
    worth = game(count, names)
    shares = shapley_shares(lambda s: jnp.asarray(worth[s]), names)
    orders = list(permutations(names))
    for m in names:
        gains = [worth[frozenset(o[: o.index(m) + 1])] - worth[frozenset(o[: o.index(m)])] for o in orders]
        np.testing.assert_allclose(shares[m], np.mean(gains, axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sum(shares.values()), worth[frozenset(names)], rtol=1e-5, atol=1e-6)


def test_shapley_shares_are_symmetric():
    shares = shapley_shares(lambda s: jnp.array(float(len(s) ** 2 + 3 * ("a" in s))), list("abc"))
    np.testing.assert_allclose([shares["b"], shares["c"], shares["a"]], [3, 3, 6], rtol=1e-6)


def test_sampled_shares_sum_to_the_whole_and_tend_to_the_exact_ones():
    names = list("abc")
    table = np.zeros((2, 2, 2, 2), np.float32)
    worth = game(9, names)
    for coalition, value in worth.items():
        table[tuple(int(m in coalition) for m in names)] = value
    table = jnp.asarray(table)
    whole = table[1, 1, 1]

    def estimate(key):
        return sampled_shares(lambda p: table[tuple(p[m].astype(int) for m in names)], whole, names, key, 2)

    many = jax.jit(jax.vmap(estimate))(jax.random.split(KEY, 3000))
    np.testing.assert_allclose(sum(many.values()), np.broadcast_to(whole, (3000, 2)), rtol=1e-4, atol=1e-5)
    exact = shapley_shares(lambda s: jnp.asarray(worth[s]), names)
    for m in names:
        np.testing.assert_allclose(many[m].mean(axis=0), exact[m], atol=0.06)


def test_agm_slows_down_who_is_further_ahead_than_usual():
    reference = jnp.array([1.0, 1.0, 1.0])
    ahead = agm_modulation(jnp.array([0.5, 1.0, 1.0]), reference, 1.0)
    assert ahead[0] < 1 and ahead[1] > 1 and ahead[2] > 1
    behind = agm_modulation(jnp.array([1.5, 1.0, 1.0]), reference, 1.0)
    assert behind[0] > 1 and behind[1] < 1 and behind[2] < 1
    c = np.array([0.5, 1.0, 2.0])
    r = np.exp(3 / 2 * (c.mean() - c))
    np.testing.assert_allclose(leads(jnp.asarray(c)), r, rtol=1e-5)
    np.testing.assert_allclose(agm_modulation(jnp.asarray(c), reference, 0.5), np.exp(0.5 * (1 - r)), rtol=1e-5)
    assert agm_modulation(reference, reference, 2.0).tolist() == [1, 1, 1]
    assert agm_modulation(jnp.array([3.0]), jnp.array([1.0]), 1.0).tolist() == [1]
    wild = agm_modulation(jnp.array([0.0, 1e4, 1e8]), reference, 1.0)
    assert np.isfinite(wild).all() and np.max(wild) <= np.exp(10) * 1.001
    assert agm_modulation(jnp.array([1.0, jnp.nan]), jnp.ones(2), 1.0).tolist() == [1, 1]


def test_agm_keeps_running_means_of_those_there():
    tx, grads = agm(num_objectives=3), {"w": jnp.eye(3)}
    state = tx.init(None)
    told = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 4.0]])
    for step, losses in enumerate(told):
        active = jnp.array([True, True, step != 1])
        update, state = tx.update(grads, state, shapley_losses=losses, kappa=jnp.array([0.5, 2.0]), active=active)
    np.testing.assert_allclose(state.losses, [3.0, 3.0])
    assert state.seen.tolist() == [3, 2]
    assert update["w"].tolist() == [1, 1, 1] and state.weights.tolist() == [1, 0.5, 2]


# ---- errors ------------------------------------------------------------------------------------------------------


def test_missing_and_wrong_arguments_are_named():
    grads, extra = problem()

    def update(tx, **given):
        return tx.update(grads, tx.init(None), **given)

    for name in ("unimodal_logits", "labels", "groups"):
        with pytest.raises(ValueError, match=f"{name}={name}"):
            update(ogm(), **{n: x for n, x in extra.items() if n != name})
    with pytest.raises(ValueError, match="key=key"):
        update(ogm_ge(), **extra)
    with pytest.raises(ValueError, match="key=key"):
        update(graddrop())
    with pytest.raises(ValueError, match="each of the 2 modalities"):
        update(ogm(), **(extra | {"unimodal_logits": {"audio": jnp.ones((6, 3))}}))
    with pytest.raises(ValueError, match=r"integers \[B\]; got float32\[6, 2\]"):
        update(ogm(), **(extra | {"labels": jnp.ones((6, 2))}))
    with pytest.raises(ValueError, match="'encoder/image'"):
        update(ogm(), **(extra | {"groups": jax.tree.map(lambda g: g.replace("image", "img"), extra["groups"])}))
    with pytest.raises(ValueError, match="shapley_losses=shapley_losses"):
        update(agm())
    with pytest.raises(ValueError, match=r"kappa must have shape \(2,\)"):
        update(agm(), shapley_losses=jnp.ones(2), kappa=jnp.ones(3))
    with pytest.raises(ValueError, match="alpha must be a finite number > 0, got 0"):
        ogm(0)
    with pytest.raises(ValueError, match="start"):
        ogm(start=-1)
    for config, field in (
        (METHODS["ogm"](alpha=-1.0), "method.alpha"),
        (METHODS["ogm_ge"](start_epoch=2.0, stop_epoch=1.0), "method.stop_epoch must be a finite number >= 2.0"),
        (METHODS["agm"](alpha=0.0), "method.alpha"),
        (METHODS["agm"](permutations=0), "method.permutations"),
    ):
        with pytest.raises(ValueError, match=field):
            config.validate()
