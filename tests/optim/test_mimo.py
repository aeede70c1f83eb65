"""MIMO against its objective: finite differences, limits, convergence, numerics, absent modalities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract.problems import losses_fn, make_batch, make_params
from hypothesis import given, settings
from hypothesis import strategies as st

import mmjax
from mmjax.optim import joint, mimo, mimo_weights, smooth_maximum, uniform


def reference(values, penalty, smoothing):
    """Φ and its weights in float64, on the float32-rounded losses."""
    losses = np.asarray(values, np.float32).astype(np.float64)
    z = (losses[1:] - losses[1:].max()) / smoothing
    pi = np.exp(z) / np.exp(z).sum()
    phi = losses[0] + penalty * (losses[1:].max() + smoothing * np.log(np.exp(z).mean()))
    return phi, np.concatenate([[1.0], penalty * pi])


def update_of(tx, grads, values, **extra):
    params = jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), grads)
    return tx.update(grads, tx.init(params), params, values=values, **extra)


@pytest.mark.parametrize(("penalty", "smoothing"), [(1.0, 0.1), (3.0, 1.0), (0.2, 0.01)])
def test_gradient_is_that_of_phi_by_finite_differences(penalty, smoothing):
    with jax.enable_x64(True):
        to64 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)  # noqa: E731
        params, batch = to64(make_params()), to64(make_batch())

        def phi(p):
            losses = losses_fn(p, batch)
            modal = jnp.stack([losses["audio"], losses["image"]])
            return losses["fusion"] + penalty * smoothing * jnp.log(jnp.mean(jnp.exp(modal / smoothing)))

        values, grads = mmjax.objective_grads(losses_fn)(params, batch)
        tx = mimo(penalty, smoothing)
        update, _ = tx.update(grads, tx.init(params), params, values=values)
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        got = jax.flatten_util.ravel_pytree(update)[0]
        step = 1e-5
        for i in np.random.default_rng(0).choice(flat.size, 12, replace=False):
            e = step * jnp.zeros_like(flat).at[i].set(1.0)
            numeric = (phi(unravel(flat + e)) - phi(unravel(flat - e))) / (2 * step)
            np.testing.assert_allclose(got[i], numeric, rtol=2e-5, atol=2e-7)


def test_lazy_and_stacked_give_one_update():
    params, batch = make_params(), make_batch()
    values, grads = mmjax.objective_grads(losses_fn)(params, batch)
    for tx in (mimo(2.0, 0.05), uniform()):
        lazy, state = tx.update(grads, tx.init(params), params, values=values)
        stacked, _ = tx.update(grads.stacked(), tx.init(params), params, values=values)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), lazy, stacked)
        assert state.weights.shape == (3,)
    lazy, _ = joint().update(grads, joint().init(params), params)
    stacked, _ = joint().update(grads.stacked(), joint().init(params), params, touching=grads.touching)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), lazy, stacked)


def test_joint_is_the_fusion_gradient_and_trains_probes():
    params, batch = make_params(), make_batch()
    _, grads = mmjax.objective_grads(losses_fn)(params, batch)
    update, state = joint().update(grads, joint().init(params), params)
    rows = grads.stacked()
    np.testing.assert_allclose(update["encoder"]["image"]["kernel"], rows["encoder"]["image"]["kernel"][0], rtol=1e-6)
    np.testing.assert_allclose(update["head"]["image"]["kernel"], rows["head"]["image"]["kernel"][2], rtol=1e-6)
    assert state.weights.tolist() == [1, 0, 0]


def test_a_diverging_probe_has_no_say_in_joint():
    def losses(p):
        return {"fusion": jnp.sum(p["a"] ** 2), "m": jnp.sum(p["a"] * p["b"]) * jnp.nan}

    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    _, grads = mmjax.objective_grads(losses)(params)
    for form in (grads, grads.stacked()):
        update, _ = joint().update(form, joint().init(params), params, touching=grads.touching)
        assert update["a"].tolist() == [2, 2] and np.isnan(update["b"]).all()


def test_limits():
    values = jnp.array([0.7, 1.0, 2.0, 1.9])
    np.testing.assert_allclose(mimo_weights(values, 3.0, 1e8), [1, 1, 1, 1], rtol=1e-6)  # μ → ∞: λ/M each
    np.testing.assert_allclose(mimo_weights(values, 3.0, 1e-6), [1, 0, 3, 0], atol=1e-7)  # μ → 0: the worst alone
    tied = jnp.array([0.7, 2.0, 2.0, 1.0])
    np.testing.assert_allclose(mimo_weights(tied, 3.0, 1e-6), [1, 1.5, 1.5, 0], atol=1e-7)  # ties share
    np.testing.assert_allclose(mimo_weights(values, 1e-9, 0.1), [1, 0, 0, 0], atol=1e-8)  # λ → 0: joint
    assert mimo_weights(jnp.array([3.0]), 1.0, 0.1).tolist() == [1.0]  # M = 0
    np.testing.assert_allclose(mimo_weights(jnp.array([3.0, 0.2]), 1.0, 0.1), [1, 1])  # M = 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=2, max_size=7),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e2),
)
def test_weights_match_float64_at_any_scale(losses, smoothing, penalty):
    values = jnp.asarray(losses, jnp.float32)
    phi, weights = reference(losses, penalty, smoothing)
    np.testing.assert_allclose(mimo_weights(values, penalty, smoothing), weights, rtol=3e-5, atol=1e-6 * penalty)
    top = smooth_maximum(values[1:], smoothing)
    worst = float(np.max(losses[1:]))
    slack = 1e-5 * (worst + smoothing)
    assert worst - smoothing * np.log(len(losses) - 1) - slack <= top <= worst + slack
    np.testing.assert_allclose(values[0] + penalty * top, phi, rtol=1e-5, atol=1e-5 * penalty * smoothing + 1e-30)


def test_centred_softmax_is_accurate_where_the_plain_one_is_not():
    values = jnp.array([0.0, 1000.0, 1000.0007], jnp.float32)  # L/μ ~ 1e6
    _, expected = reference(values, 1.0, 1e-3)
    np.testing.assert_allclose(mimo_weights(values, 1.0, 1e-3), expected, rtol=1e-6)
    plain = jax.nn.softmax(values[1:] / 1e-3)
    assert np.max(np.abs(plain / expected[1:] - 1)) > 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_non_finite_loss_never_becomes_a_weight(bad, where):
    values = jnp.array([1.0, 2.0, 3.0]).at[where].set(bad)
    np.testing.assert_array_equal(mimo_weights(values, 5.0, 0.1), [1, 1, 1])
    active = jnp.arange(3) != where  # absent: it has no say at all
    weights = mimo_weights(values, 5.0, 0.1, active)
    assert np.all(np.isfinite(weights)) and weights[where] == 0
    grads = {"w": jnp.array([[1.0], [2.0], [3.0]]).at[where].set(jnp.nan)}
    assert np.isnan(update_of(mimo(), grads, values)[0]["w"]).all()
    assert np.isfinite(update_of(mimo(), grads, values, active=active)[0]["w"]).all()


def test_absent_modalities_leave_the_rest_as_if_they_did_not_exist():
    values = jnp.array([0.5, 1.0, 9.0, 1.2])
    active = jnp.array([True, True, False, True])
    without = mimo_weights(values[jnp.array([0, 1, 3])], 2.0, 0.3)
    np.testing.assert_allclose(mimo_weights(values, 2.0, 0.3, active)[jnp.array([0, 1, 3])], without, rtol=1e-6)
    np.testing.assert_array_equal(mimo_weights(values, 2.0, 0.3, jnp.array([True, False, False, False])), [1, 0, 0, 0])
    np.testing.assert_allclose(
        smooth_maximum(values[1:], 0.3, active[1:]), smooth_maximum(values[jnp.array([1, 3])], 0.3)
    )


def test_permuting_modalities_permutes_weights():
    values = jnp.array([0.5, 1.0, 1.3, 1.2])
    order = jnp.array([0, 3, 1, 2])
    np.testing.assert_allclose(mimo_weights(values[order], 2.0, 0.3), mimo_weights(values, 2.0, 0.3)[order], rtol=1e-6)


def test_penalty_m_on_equal_losses_is_uniform():
    np.testing.assert_allclose(mimo_weights(jnp.array([0.2, 1.0, 1.0, 1.0]), 3.0, 0.1), np.ones(4), rtol=1e-6)


# ---- convergence: quadratics L_k = ½ (θ-a_k)ᵀ H_k (θ-a_k) --------------------------------------------------------


def minimise(losses, theta, penalty, smoothing, steps, rate):
    tx = optax.chain(mimo(penalty, smoothing), optax.sgd(rate))

    def step(carry, _):
        theta, state = carry
        values, grads = mmjax.objective_grads(losses)(theta)
        updates, state = tx.update(grads, state, theta, values=values)
        return (optax.apply_updates(theta, updates), state), None

    return jax.jit(lambda t: jax.lax.scan(step, (t, tx.init(t)), None, length=steps)[0][0])(theta)


def test_gradient_of_phi_vanishes_on_quadratics():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        centres = {n: jnp.asarray(rng.normal(size=3)) for n in ("fusion", "a", "b", "c")}
        roots = {n: rng.normal(size=(3, 3)) for n in centres}
        curves = {n: jnp.asarray(r @ r.T + np.eye(3)) for n, r in roots.items()}

        def losses(theta):
            return {n: 0.5 * (theta - c) @ curves[n] @ (theta - c) for n, c in centres.items()}

        theta = minimise(losses, jnp.zeros(3), 2.0, 0.5, steps=3000, rate=0.01)
        values, grads = mmjax.objective_grads(losses)(theta)
        assert jnp.linalg.norm(grads.weighted(mimo_weights(values, 2.0, 0.5))) < 1e-6


@pytest.mark.parametrize(
    ("losses", "solution", "start", "stiff"),
    [
        # the two uni-modal losses cross at 1: neither can be improved without the other getting worse
        (lambda t: {"fusion": 0.5 * (t - 5) ** 2, "a": 0.5 * t**2, "b": 0.5 * (t - 2) ** 2}, 1.0, 1.1, True),
        # b is worse everywhere near its own minimum: the lexicographic solution is that minimum
        (lambda t: {"fusion": 0.5 * (t - 5) ** 2, "a": 0.5 * t**2, "b": 3 + 0.5 * (t - 2) ** 2}, 2.0, 2.1, True),
        # the worst loss is flat between -1 and 1: the fusion loss decides within
        (
            lambda t: {
                "fusion": 0.5 * (t - 0.25) ** 2,
                "a": 0.5 * jnp.maximum(jnp.abs(t) - 1, 0) ** 2,
                "b": 0.5 * jnp.maximum(jnp.abs(t) - 1, 0) ** 2,
            },
            0.25,
            1.5,
            False,  # equal losses share the penalty whatever the smoothing
        ),
    ],
)
def test_minimiser_tends_to_the_lexicographic_solution(losses, solution, start, stiff):
    with jax.enable_x64(True):
        distances = []
        for penalty, smoothing in ((10.0, 0.1), (100.0, 0.01), (1000.0, 0.001)):
            rate = 0.2 / (1 + penalty + stiff * penalty / smoothing)
            steps = 20_000 if penalty < 1000 else 60_000
            theta = minimise(losses, jnp.asarray(start), penalty, smoothing, steps, rate)
            distances.append(abs(float(theta) - solution))
        assert distances[-1] < 0.01
        assert distances[-1] <= distances[0] + 1e-4


# ---- as a citizen of Optax ---------------------------------------------------------------------------------------


def test_composes_and_keeps_its_shapes():
    params, batch = make_params(), make_batch()
    inner = {
        "multi_steps": optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
        "if_finite": optax.apply_if_finite(optax.adam(1e-2), 3),
        "partition": optax.partition(
            {"a": optax.sgd(0.1), "b": optax.adam(0.1)}, {"encoder": "a", "fusion": "b", "head": "b"}
        ),
        "clip": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    }
    for after in inner.values():
        tx = optax.chain(mimo(optax.linear_schedule(1.0, 2.0, 5), 0.1), after)
        traces = []

        @jax.jit
        def step(carry, batch, tx=tx, traces=traces):
            traces.append(1)
            params, state = carry
            values, grads = mmjax.objective_grads(losses_fn)(params, batch)
            updates, state = tx.update(grads, state, params, values=values, something_else=3)
            return optax.apply_updates(params, updates), state

        carry = (params, tx.init(params))
        for _ in range(3):
            new = step(carry, batch)
            assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, carry)
            carry = new
        assert len(traces) == 1
        assert carry[1][0].count == 3 and carry[1][0].weights.shape == (3,)


def test_schedule_acts_on_the_weights():
    tx = mimo(optax.linear_schedule(1.0, 3.0, 2), optax.constant_schedule(0.1))
    grads = {"w": jnp.zeros((2, 1))}
    state = tx.init({"w": jnp.zeros(1)})
    seen = []
    for _ in range(3):
        _, state = tx.update(grads, state, values=jnp.ones(2))
        seen.append(float(state.weights[1]))
    assert seen == [1.0, 2.0, 3.0]


def test_traced_options_pass():
    grads, values = {"w": jnp.eye(3)}, jnp.array([1.0, 2.0, 2.5])
    params = {"w": jnp.zeros(3)}
    many = jax.vmap(lambda p, s: mimo(p, s).update(grads, mimo().init(params), params, values=values)[0]["w"])
    swept = many(jnp.array([1.0, 2.0]), jnp.array([0.1, 0.5]))
    np.testing.assert_allclose(swept[1], update_of(mimo(2.0, 0.5), grads, values)[0]["w"], rtol=1e-6)
    injected = optax.inject_hyperparams(mimo)(penalty=2.0, smoothing=0.5)
    update, state = update_of(injected, grads, values)
    np.testing.assert_allclose(update["w"], swept[1], rtol=1e-6)
    model_params, batch = make_params(), make_batch()
    values, lazy = mmjax.objective_grads(losses_fn)(model_params, batch)
    injected.update(lazy, injected.init(model_params), model_params, values=values)


def test_float32_arithmetic_on_bfloat16_gradients():
    grads = {"w": jnp.array([[1.0], [1 / 256], [1 / 256]], jnp.bfloat16)}
    out, _ = update_of(uniform(), grads, None)
    assert out["w"].dtype == jnp.bfloat16
    assert float(out["w"][0]) == float(jnp.bfloat16(1 + 2 / 256))  # summed in bfloat16 it would have stayed 1


def test_one_step_costs_one_backward_pass():
    params, batch = make_params(features=64, hidden=64), make_batch(size=64)

    def cost(f):
        return jax.jit(f).lower(params).compile().cost_analysis()["flops"]

    def with_(tx):
        def step(p):
            values, grads = mmjax.objective_grads(losses_fn)(p, batch)
            return tx.update(grads, tx.init(p), p, values=values)[0]

        return cost(step)

    plain = cost(jax.grad(lambda p: sum(losses_fn(p, batch).values())))
    assert with_(uniform()) <= 1.01 * plain
    assert with_(mimo()) <= 1.01 * plain
    assert with_(joint()) <= 1.01 * plain


# ---- errors ------------------------------------------------------------------------------------------------------


def test_numbers_of_jax_are_checked_like_others_and_traced_ones_pass():
    for known in (jnp.float32(-1.0), np.float32(-1.0), jnp.array([1.0, jnp.nan])):
        with pytest.raises(ValueError, match="smoothing must be a finite number > 0"):
            mmjax.optim.mimo(smoothing=known)
        with pytest.raises(ValueError, match="penalty must be a finite number > 0"):
            mmjax.optim.mimo(penalty=known)

    @jax.jit
    def weight(smoothing):
        tx, params = mmjax.optim.mimo(smoothing=smoothing), {"w": jnp.zeros(1)}
        return tx.update({"w": jnp.ones((2, 1))}, tx.init(params), params, values=jnp.ones(2))[1].weights[0]

    assert weight(jnp.float32(0.1)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": 0.0}, "penalty must be a finite number > 0, got 0.0"),
        ({"penalty": float("nan")}, "penalty"),
        ({"smoothing": -1}, "smoothing must be a finite number > 0, got -1"),
        ({"num_objectives": 0}, "num_objectives"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        mimo(**options)


def test_bad_calls_name_the_argument():
    grads, values = {"w": jnp.ones((3, 2))}, jnp.ones(3)
    with pytest.raises(ValueError, match="values=values"):
        update_of(mimo(), grads, None)
    with pytest.raises(ValueError, match=r"values must have shape \(3,\)"):
        update_of(mimo(), grads, jnp.ones(2))
    with pytest.raises(ValueError, match=r"active must have shape \(3,\)"):
        update_of(mimo(), grads, values, active=jnp.ones(2, bool))
    with pytest.raises(ValueError, match="touching is static"):
        jax.jit(lambda t: update_of(joint(), grads, values, touching={"w": t}))(jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"touching\['w'\] must be bool\[3\]"):
        update_of(joint(), grads, values, touching={"w": np.ones(2, bool)})
    with pytest.raises(ValueError, match="disagree"):
        update_of(mimo(), {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}, values)
    with pytest.raises(ValueError, match="single gradients"):
        tx = uniform()
        params = {"w": jnp.ones((4, 3))}
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="num_objectives=3"):
        update_of(mimo(num_objectives=2), grads, values)
    with pytest.raises(ValueError, match="num_objectives=17"):
        update_of(mimo(), {"w": jnp.ones((17, 2))}, jnp.ones(17))


def test_a_smoothing_schedule_may_end_at_zero():
    """The limit: the worst modality takes all of the penalty, equal ones share it."""
    values = jnp.array([1.0, 2.0, 3.0, 3.0])
    np.testing.assert_array_equal(mimo_weights(values, 2.0, 0.0), [1, 0, 1, 1])
    np.testing.assert_array_equal(smooth_maximum(values[1:3], 0.0), 3.0)
    tx = mimo(1.0, optax.linear_schedule(0.1, 0.0, 2), num_objectives=4)
    params = {"w": jnp.zeros(4)}
    state = tx.init(params)
    for _ in range(4):
        _, state = tx.update({"w": jnp.eye(4)}, state, params, values=values)
    np.testing.assert_array_equal(state.weights, [1, 0, 0.5, 0.5])
