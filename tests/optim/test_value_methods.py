"""Methods that weigh by the losses or at random: their formulas, against float64 loops, autodiff and MIMO."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract.problems import losses_fn, make_batch, make_params

import mmjax
from mmjax.optim import METHODS, dwa, famo, gblend, mimo_weights, rlw, stch, uncertainty
from mmjax.optim.gblend import gblend_weights

KEY = jax.random.key(3)
METHODS_HERE = {
    "stch": stch(0.3, scale="sum"),
    "uncertainty": uncertainty(0.1),
    "dwa": dwa(2),
    "famo": famo(0.1),
    "gblend": gblend(2),
    "rlw": rlw(),
}


def run(tx, values, *, active=None, validation=None, grads=None):
    """Weights [T, K] and the last state over the rows of `values` [T, K], in one compiled loop."""
    values = jnp.asarray(values, jnp.float32)
    k = values.shape[1]
    grads = {"w": jnp.eye(k)} if grads is None else grads
    validation = values if validation is None else jnp.asarray(validation, jnp.float32)

    def step(state, given):
        losses, validation, key = given
        _, state = tx.update(grads, state, values=losses, validation_values=validation, active=active, key=key)
        return state, state.weights[:k]

    keys = jax.random.split(KEY, len(values))
    state, weights = jax.jit(lambda *given: jax.lax.scan(step, tx.init(None), given))(values, validation, keys)
    return np.asarray(weights), state


# ---- STCH --------------------------------------------------------------------------------------------------------


def test_stch_weights_are_the_gradient_of_the_smooth_maximum():
    values = np.array([0.7, 1.0, 2.0, 1.9])
    preference, ideal, smoothing = np.array([1.0, 0.5, 2.0, 1.5]), np.array([0.1, 0.0, 0.9, 0.3]), 0.4
    with jax.enable_x64(True):
        value = lambda v: smoothing * jax.nn.logsumexp(preference * (v - ideal) / smoothing)  # noqa: E731
        expected = jax.grad(value)(jnp.asarray(values))
    weights, _ = run(stch(smoothing, preference=preference, ideal=ideal), [values])
    np.testing.assert_allclose(weights[0], expected, rtol=1e-5)


def test_stch_on_the_modalities_renormalised_is_mimo():
    values = np.array([0.7, 1.0, 1.3, 1.1])
    share = run(stch(0.2), [values])[0][0, 1:]
    pi = mimo_weights(jnp.asarray(values, jnp.float32), 1.0, 0.2)[1:]
    np.testing.assert_allclose(share / share.sum(), pi, rtol=1e-5)
    np.testing.assert_allclose(run(stch(0.2, scale="sum"), [values])[0].sum(), 4.0, rtol=1e-6)


def test_stch_is_centred_before_the_division():
    weights, _ = run(stch(1e-3), [[0.0, 1000.0, 1000.0007]])
    gap = float(np.float32(1000.0007)) - 1000.0
    np.testing.assert_allclose(weights[0, 2] / weights[0, 1], np.exp(gap / 1e-3), rtol=1e-5)


def test_stch_smoothing_may_be_a_schedule():
    weights, _ = run(stch(optax.linear_schedule(1.0, 0.1, 1)), [[1.0, 2.0]] * 2)
    np.testing.assert_allclose(weights[:, 1], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-10))], rtol=1e-5)


# ---- uncertainty -------------------------------------------------------------------------------------------------


def test_uncertainty_follows_autodiff_of_its_loss():
    values = np.random.default_rng(0).uniform(0.2, 3.0, (6, 3)).astype(np.float32)
    weights, state = run(uncertainty(0.1), values)

    def loss(s, losses):
        return jnp.sum(0.5 * jnp.exp(-s) * losses + 0.5 * s)

    s, tx = jnp.zeros(3), optax.adam(0.1)
    memory = tx.init(s)
    for t, losses in enumerate(values):
        by_values = jax.grad(loss, argnums=1)(s, losses)
        np.testing.assert_allclose(weights[t], by_values, rtol=1e-5)
        updates, memory = tx.update(jax.grad(loss)(s, losses), memory)
        s = s + updates
    np.testing.assert_allclose(state.memory.log_variance[:3], s, rtol=1e-4, atol=1e-6)
    assert weights[0].tolist() == [0.5, 0.5, 0.5]


def test_uncertainty_settles_at_half_the_inverse_loss():
    weights, _ = run(uncertainty(0.05), np.tile([0.5, 2.0], (400, 1)))
    np.testing.assert_allclose(weights[-1], [1.0, 0.25], rtol=1e-2)


# ---- DWA ---------------------------------------------------------------------------------------------------------


def test_dwa_is_uniform_for_two_windows_and_then_its_formula():
    values = np.random.default_rng(1).uniform(0.5, 2.0, (12, 3))
    weights, _ = run(dwa(3, temperature=0.7), values)
    np.testing.assert_allclose(weights[:6], 1.0, rtol=1e-6)
    means = values.reshape(4, 3, 3).mean(axis=1)
    for window in (2, 3):
        r = np.exp(means[window - 1] / means[window - 2] / 0.7)
        for t in range(3 * window, 3 * window + 3):
            np.testing.assert_allclose(weights[t], 3 * r / r.sum(), rtol=1e-5)


def test_dwa_survives_losses_of_zero():
    weights, _ = run(dwa(1), [[0.0, 1.0, 1e-40], [1.0, 0.5, 1e10], [1.0, 0.5, 1.0]])
    assert np.isfinite(weights).all()


# ---- FAMO --------------------------------------------------------------------------------------------------------


def famo_in_float64(values, rate, decay):
    xi, m, v, t, weights = *np.zeros((3, values.shape[1])), 0, []
    softmax = lambda x: np.exp(x) / np.exp(x).sum()  # noqa: E731
    for now, losses in enumerate(values):
        if now:
            z = softmax(xi)
            delta = np.log(values[now - 1]) - np.log(losses)
            gradient = (np.diag(z) - np.outer(z, z)) @ delta + decay * xi
            t += 1
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            xi = xi - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        z = softmax(xi)
        weights.append(z / losses / (z / losses).sum())
    return np.array(weights), xi


def test_famo_is_its_loop_in_float64():
    values = np.random.default_rng(2).uniform(0.2, 3.0, (12, 4)).astype(np.float32).astype(np.float64)
    weights, state = run(famo(0.1, 0.05), values)
    expected, xi = famo_in_float64(values, 0.1, 0.05)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    np.testing.assert_allclose(state.memory.logits[:4], xi, rtol=1e-3, atol=1e-5)


def test_famo_floors_losses():
    weights, _ = run(famo(scale="sum"), [[0.0, 1e-8, -3.0], [0.0, 1e-8, 1e-9]])
    np.testing.assert_allclose(weights[0], 1.0, rtol=1e-5)
    assert np.isfinite(weights).all()


# ---- G-Blend -----------------------------------------------------------------------------------------------------


def test_gblend_weights_are_its_formula():
    rng = np.random.default_rng(3)
    train, validation, train_before, validation_before = rng.uniform(0.2, 2.0, (4, 3))
    gap = (validation - train) - (validation_before - train_before)
    share = np.abs(validation - validation_before) / gap**2
    every = jnp.ones(3, bool)
    got = gblend_weights(*map(jnp.asarray, (train, validation, train_before, validation_before)), 1e-6, every)
    np.testing.assert_allclose(got, 3 * share / share.sum(), rtol=1e-4)
    still = gblend_weights(*map(jnp.ones, [2] * 4), 0.01, jnp.ones(2, bool))
    assert still.tolist() == [1, 1]


def test_gblend_floors_a_gap_that_stands_still():
    now = (jnp.array([0.5, 0.8]), jnp.array([0.8, 0.8]))  # the second gap has not moved at all
    before = (jnp.array([1.0, 1.0]), jnp.array([1.0, 1.0]))
    got = gblend_weights(*now, *before, 0.1, jnp.ones(2, bool))
    np.testing.assert_allclose(got, 2 * np.array([1, 100]) / 101, rtol=1e-4)


def test_gblend_estimates_between_evaluations_of_its_own_means():
    values = np.random.default_rng(4).uniform(0.5, 2.0, (9, 2))
    first, second, third = [1.0, 1.1], [0.7, 1.0], [0.6, 0.5]
    nan = [np.nan, np.nan]
    validation = [nan, nan, first, first, second, second, second, third, third]  # every=2: points at 2, 4, 7
    weights, _ = run(gblend(2, floor=1e-6), values, validation=validation)
    np.testing.assert_allclose(weights[:4], 1.0)

    def formula(now, before, later, earlier):
        gap = (later - now) - (earlier - before)
        share = np.abs(later - earlier) / gap**2
        return 2 * share / share.sum()

    means = [values[a:b].mean(axis=0) for a, b in ((0, 2), (2, 4), (4, 7))]
    first, second, third = map(np.array, (first, second, third))
    np.testing.assert_allclose(weights[4:7], [formula(means[1], means[0], second, first)] * 3, rtol=1e-4)
    np.testing.assert_allclose(weights[7:], [formula(means[2], means[1], third, second)] * 2, rtol=1e-4)


# ---- RLW ---------------------------------------------------------------------------------------------------------


def test_rlw_is_the_softmax_of_normal_logits_in_distribution():
    weights, _ = run(rlw(), np.ones((4000, 3)))
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(weights.mean(axis=0), 1 / 3, atol=0.02)
    log_odds = np.log(weights[:, 1] / weights[:, 2])  # the difference of two standard normals
    np.testing.assert_allclose([log_odds.mean(), log_odds.std()], [0, np.sqrt(2)], atol=0.07)
    two, _ = run(rlw(scale="sum"), np.ones((2, 3)), active=jnp.array([True, True, False]))
    np.testing.assert_allclose(two.sum(axis=1), 2.0, rtol=1e-5)
    assert (two[:, 2] == 0).all()


# ---- what all share ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS_HERE)
def test_absent_objectives_leave_the_rest_as_if_they_did_not_exist(name):
    tx = METHODS_HERE[name]
    values = np.random.default_rng(5).uniform(0.3, 2.0, (8, 4))
    validation = np.random.default_rng(6).uniform(0.3, 2.0, (8, 4))
    active = np.array([True, True, False, True])
    values[:, 2], validation[:, 2] = np.nan, np.nan
    grads = {"w": jnp.eye(4).at[2].set(jnp.nan)}
    weights, state = run(tx, values, validation=validation, active=jnp.asarray(active), grads=grads)
    assert (weights[:, 2] == 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    if name != "rlw":  # its draw is another one with another K
        without, _ = run(tx, values[:, active], validation=validation[:, active])
        np.testing.assert_allclose(weights[:, active], without, rtol=1e-5)
    update, _ = tx.update(
        grads,
        tx.init(None),
        values=jnp.asarray(values[0]),
        validation_values=jnp.ones(4),
        active=jnp.asarray(active),
        key=KEY,
    )
    np.testing.assert_allclose(update["w"], weights[0] if name != "rlw" else update["w"], rtol=1e-5)
    assert np.isfinite(update["w"]).all()


@pytest.mark.parametrize("name", METHODS_HERE)
def test_a_loss_that_is_not_finite_reaches_the_update_and_no_weight_or_memory(name):
    values = np.random.default_rng(7).uniform(0.3, 2.0, (5, 3)).astype(np.float32)
    values[2, 1] = np.inf
    weights, state = run(METHODS_HERE[name], values, validation=np.ones((5, 3)))
    np.testing.assert_array_equal(weights[2], 1.0)
    assert np.isfinite(weights).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_lazy_and_stacked_give_one_update():
    params, batch = make_params(), make_batch()

    @jax.jit
    def both(params, batch):
        values, grads = mmjax.objective_grads(losses_fn)(params, batch)
        rows = grads.stacked()
        extra = {"values": values, "validation_values": values, "key": KEY}
        forms = (grads, rows)
        chosen = (METHODS_HERE["famo"], METHODS_HERE["rlw"])  # they differ in nothing that the form could matter to
        return [[tx.update(g, tx.init(params), params, **extra)[0] for g in forms] for tx in chosen]

    for lazy, stacked in both(params, batch):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), lazy, stacked)


def test_options_may_be_traced():
    values, grads, params = jnp.array([1.0, 2.0, 0.5]), {"w": jnp.eye(3)}, {"w": jnp.zeros(3)}

    def two_steps(make):
        def at(option):
            tx = make(option)
            _, state = tx.update(grads, tx.init(params), params, values=values)
            # no loss falls as fast as the mean of them: Adam would make a whole step of the rounding there

            return tx.update(grads, state, params, values=values * jnp.array([0.5, 0.7, 2.0]))[0]["w"]

        swept = jax.jit(jax.vmap(at))(jnp.array([0.1, 0.5]))
        np.testing.assert_allclose(swept[1], at(0.5), rtol=1e-5)
        assert np.abs(swept[0] - swept[1]).max() > 1e-4

    two_steps(stch)
    two_steps(uncertainty)
    two_steps(famo)
    injected = optax.inject_hyperparams(famo)(learning_rate=0.1, decay=0.01)
    update, _ = injected.update(grads, injected.init(params), params, values=values)
    assert np.isfinite(update["w"]).all()


@pytest.mark.parametrize("name", METHODS_HERE)
def test_state_can_be_donated(name):
    leaves = jax.tree.leaves(METHODS_HERE[name].init(None))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_state_keeps_its_shapes_in_front_of_other_transformations():
    params, batch = make_params(), make_batch()
    tx = optax.chain(famo(num_objectives=3), optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation())
    traces = []

    @jax.jit
    def step(params, state, batch):
        traces.append(1)
        values, grads = mmjax.objective_grads(losses_fn)(params, batch)
        updates, state = tx.update(grads, state, params, values=values)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(2):
        params, state = step(params, state, batch)
    assert len(traces) == 1
    assert state[0].weights.shape == (3,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stch(-1.0), "smoothing must be a finite number > 0, got -1.0"),
        (lambda: stch(preference=[1.0, 0.0]), "preference must be"),
        (lambda: stch(ideal=[np.nan]), "ideal must be"),
        (lambda: stch(scale="some"), "scale must be one of mean, sum; got 'some'"),
        (lambda: uncertainty(0.0), "learning_rate"),
        (lambda: dwa(0), "window must be a finite number >= 1, got 0"),
        (lambda: dwa(1, 0.0), "temperature"),
        (lambda: famo(decay=-1.0), "decay"),
        (lambda: gblend(0), "every"),
        (lambda: gblend(1, 0.0), "floor"),
        (lambda: METHODS["stch"](preference={"image": 0.0}).validate(), r"method.preference\['image'\]"),
        (lambda: METHODS["stch"](scale="mena").validate(), r"method.scale must .*did you mean mean\?"),
        (lambda: METHODS["dwa"](window=0).validate(), "method.window"),
        (lambda: METHODS["famo"](learning_rate=-1.0).validate(), "method.learning_rate"),
        (lambda: METHODS["gblend"](every=0).validate(), "method.every"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_missing_arguments_are_named():
    grads = {"w": jnp.eye(3)}

    def update(tx, **extra):
        return tx.update(grads, tx.init(None), **extra)

    for tx in (stch(), uncertainty(), dwa(1), famo(), gblend(1)):
        with pytest.raises(ValueError, match="values=values"):
            update(tx)
    with pytest.raises(ValueError, match="validation_values=validation_values"):
        update(gblend(1), values=jnp.ones(3))
    with pytest.raises(ValueError, match=r"validation_values must have shape \(3,\)"):
        update(gblend(1), values=jnp.ones(3), validation_values=jnp.ones(2))
    with pytest.raises(ValueError, match="key=key"):
        update(rlw())
    with pytest.raises(ValueError, match=r"preference must have shape \(3,\)"):
        update(stch(preference=[1.0, 2.0]), values=jnp.ones(3))
    with pytest.raises(ValueError, match="num_objectives=3"):
        update(dwa(1, num_objectives=2), values=jnp.ones(3))
