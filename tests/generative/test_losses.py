"""Training losses and recurrent inference: gradients, clamped entries, limits, samplers, bad input."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from generative.exact import directional, finite_difference, joint_table, minimiser, random_params
from mmjax.generative import (
    MRBM,
    RBM,
    Rounds,
    Visibility,
    cd_percloss,
    check_inputs,
    hybrid,
    infer,
    iterate,
    log_joint,
    lowest_free_energy,
    multi_prediction,
    perceptron_losses,
    persistent_contrastive_divergence,
    sparsity_penalty,
)
from mmjax.generative.mrbm import MRBMRounds

MODEL = MRBM({"x": "binary", "y": "binary"}, num_hidden=3)
SIZES = {"x": 3, "y": 2}


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def params():
    return random_params(jax.random.key(0), MODEL, SIZES)


@pytest.fixture(scope="module")
def data():
    return {m: jax.random.bernoulli(jax.random.key(i), 0.5, (6, SIZES[m])).astype(float) for i, m in enumerate("xy")}


def close(a, b, **options):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, **options), a, b)


# -- sampling ----------------------------------------------------------------------------------------------------------


def histogram(model, params, sample):
    sizes = [params.visible_bias[m].shape[0] for m in model.modalities]
    bits = np.concatenate([np.asarray(sample[m]) for m in model.modalities], axis=1).astype(int)
    codes = bits @ 2 ** np.arange(sum(sizes))[::-1]
    return np.bincount(codes, minlength=2 ** sum(sizes)).reshape(2 ** sizes[0], -1) / len(bits)


def test_gibbs_samples_the_joint_and_clamped_the_conditional(params):
    n = 40_000
    start = {m: jnp.zeros((n, SIZES[m])) for m in "xy"}
    table = joint_table(MODEL, params)
    run = jax.jit(MODEL.gibbs, static_argnames=("steps", "given"))
    found = histogram(MODEL, params, run(params, jax.random.key(1), start, steps=30))
    error = np.sqrt(table * (1 - table) / n)
    assert np.abs((found - table) / error).max() < 4.5
    clamped = run(params, jax.random.key(2), start | {"x": start["x"].at[:, 1].set(1)}, steps=30, given=("x",))
    assert set(np.unique(clamped["x"][:, 1])) == {1.0} and not np.any(clamped["x"][:, [0, 2]])
    conditional = table[2] / table[2].sum()
    found = histogram(MODEL, params, clamped)[2]
    assert np.abs(found - conditional).max() < 4.5 * np.sqrt(0.25 / n)


def test_gaussian_samples_have_the_conditional_moments():
    rbm = RBM(num_hidden=1, visible="gaussian")
    params = rbm.init(jax.random.key(0), 1).replace(
        weights=jnp.array([[2.0]]), visible_bias=jnp.array([-1.0]), hidden_bias=jnp.array([-30.0])
    )
    v = rbm.gibbs(params, jax.random.key(1), jnp.zeros((20_000, 1)), steps=3)  # h stays off: v ~ N(-1, 1)
    np.testing.assert_allclose([v.mean(), v.std()], [-1, 1], atol=0.03)


def test_pcd_gradient_is_the_likelihoods():
    """With very many chains at the stationary law the estimate is the exact gradient of the NLL."""
    model = MODEL
    params = random_params(jax.random.key(4), model, SIZES, std=0.5)
    data = {"x": jnp.array([[1.0, 0, 1], [1, 1, 1]]), "y": jnp.array([[0.0, 1], [1, 1]])}
    chains = {m: jnp.zeros((40_000, SIZES[m])) for m in "xy"}
    estimate = jax.jit(
        jax.grad(lambda p: persistent_contrastive_divergence(model, p, data, chains, jax.random.key(0), steps=20)[0])
    )(params)
    exact = jax.grad(lambda p: -log_joint(model, p, data).mean())(params)
    close(estimate, exact, atol=0.02)


def test_pcd_moves_its_chains_on_and_keeps_them_out_of_the_gradient(params, data):
    key = jax.random.key(3)
    chains = {m: jnp.zeros((5, SIZES[m])) for m in "xy"}
    loss, moved = persistent_contrastive_divergence(MODEL, params, data, chains, key, steps=4)
    close(moved, MODEL.gibbs(params, key, chains, 4), rtol=0)
    np.testing.assert_allclose(loss, MODEL.free_energy(params, data).mean() - MODEL.free_energy(params, moved).mean())
    grad = jax.grad(lambda p: persistent_contrastive_divergence(MODEL, p, data, chains, key, steps=4)[0])(params)
    fixed = jax.grad(lambda p: MODEL.free_energy(p, data).mean() - MODEL.free_energy(p, moved).mean())(params)
    close(grad, fixed, rtol=1e-12)


def test_cd_lowers_the_reconstruction_error_of_an_rbm():
    rbm = RBM(num_hidden=4)
    v = jnp.tile(jnp.array([[1.0, 1, 0, 0], [0, 0, 1, 1]]), (10, 1))
    tx = optax.sgd(0.5)

    def step(carry, key):
        params, state = carry
        grad = jax.grad(rbm.contrastive_divergence)(params, key, v)
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = rbm.init(jax.random.key(0), 4, std=0.1)
    trained = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(jax.random.key(1), 300))[0][0]
    assert rbm.reconstruction_error(trained, v) < 0.2 < rbm.reconstruction_error(params, v)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        rbm.contrastive_divergence(params, jax.random.key(0), v, 0)


# -- CD-PercLoss -------------------------------------------------------------------------------------------------------


percloss = jax.jit(partial(cd_percloss, MODEL), static_argnames="steps")


def test_percloss_is_at_least_zero_and_at_most_that_of_exact_minima(params, data):
    fractional = {m: 0.1 + 0.8 * x for m, x in data.items()}  # F is concave in the inputs: minima are at corners
    for inputs in (data, fractional):
        exact = perceptron_losses(
            MODEL, params, inputs, {m: lowest_free_energy(MODEL, params, {m: inputs[m]}) for m in "xy"}
        )
        few, many = (percloss(params, inputs, jax.random.key(0), steps=n) for n in (1, 300))
        for m in "xy":
            assert 0 <= few[m] <= exact[m] + 1e-12 and exact[m] > 0
            np.testing.assert_allclose(many[m], exact[m], rtol=1e-9)


def test_percloss_is_half_the_free_energy_gap_with_constant_minima(params, data):
    lowest = {m: lowest_free_energy(MODEL, params, {m: data[m]}) for m in "xy"}
    losses = perceptron_losses(MODEL, params, data, lowest)
    both, given_x, given_y = (MODEL.free_energy(params, v) for v in (data, lowest["x"], lowest["y"]))
    np.testing.assert_allclose(sum(losses.values()), 0.5 * (2 * both - given_x - given_y).mean(), rtol=1e-12)
    direction = random_params(jax.random.key(5), MODEL, SIZES)
    loss = lambda p: sum(perceptron_losses(MODEL, p, data, lowest).values())  # noqa: E731
    np.testing.assert_allclose(
        directional(jax.grad(loss)(params), direction), finite_difference(loss, params, direction), rtol=1e-7
    )
    sampled = jax.grad(lambda p: sum(percloss(p, data, jax.random.key(0), steps=300).values()))(params)
    close(sampled, jax.grad(loss)(params), atol=1e-12)


# -- recurrent inference and multi-prediction --------------------------------------------------------------------------


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def test_rounds_are_the_formula(params, data):
    w, b, c, x = params.weights, params.visible_bias, params.hidden_bias, data["x"]
    h = sigmoid(c + (5 / 3) * x @ w["x"])
    for n in range(4):
        found = infer(MODEL, params, {"x": x}, n)
        y = sigmoid(h @ w["y"].T + b["y"])
        np.testing.assert_allclose(found.hidden, h, rtol=1e-12)
        np.testing.assert_allclose(found.inputs["y"], y, rtol=1e-12)
        h = sigmoid(x @ w["x"] + y @ w["y"] + c)
    everything = infer(MODEL, params, data, 5)
    np.testing.assert_allclose(everything.hidden, sigmoid(x @ w["x"] + data["y"] @ w["y"] + c), rtol=1e-12)


def test_inference_stops_by_tolerance_or_count(params, data):
    x = {"x": data["x"]}
    long = infer(MODEL, params, x, 500)
    found = infer(MODEL, params, x, 500, tolerance=1e-9)
    assert 0 < found.rounds < 500
    np.testing.assert_allclose(found.hidden, long.hidden, atol=1e-6)
    assert infer(MODEL, params, x, 3, tolerance=0.0).rounds == 3 == infer(MODEL, params, x, 3).rounds
    # an example's answer does not depend on who else is in the batch
    coarse = infer(MODEL, params, x, 500, tolerance=1e-3)
    alone = [infer(MODEL, params, {"x": row[None]}, 500, tolerance=1e-3) for row in data["x"]]
    assert len({int(one.rounds) for one in alone}) > 1
    np.testing.assert_allclose(coarse.hidden, np.concatenate([one.hidden for one in alone]), rtol=1e-12)
    assert coarse.rounds == max(one.rounds for one in alone)


def test_8_without_weights_the_reconstruction_is_the_bias(params, data):
    blind = params.replace(weights=params.weights | {"y": jnp.zeros((2, 3))})
    for n in (0, 3):
        y = infer(MODEL, blind, {"x": data["x"]}, n).inputs["y"]
        np.testing.assert_allclose(y, np.tile(sigmoid(params.visible_bias["y"]), (6, 1)), rtol=1e-12)


@pytest.mark.parametrize("rounds", [0, 2])
def test_multi_prediction_is_the_cross_entropy_of_the_hidden_entries(rounds, params, data):
    """n_steps rounds by hand, with the masks that the loss draws."""
    from mmjax.generative.losses import draw_mask

    key = jax.random.key(9)
    found = multi_prediction(MODEL, params, data, key, n_steps=rounds, keep_max=1.0)
    w, b, c = params.weights, params.visible_bias, params.hidden_bias
    for (given, other), k in zip((("x", "y"), ("y", "x")), jax.random.split(key, 2), strict=True):
        mask = np.asarray(draw_mask(k, {other: data[other]}, 1.0)[other])
        assert mask.any() and not mask.all()
        g, t = np.asarray(data[given]), np.asarray(data[other])
        seen = g.shape[1] + mask.sum(1, keepdims=True)
        h = sigmoid(c + (5 / seen) * (g @ w[given] + (mask * t) @ w[other]))
        for _ in range(rounds):
            y = np.where(mask, t, sigmoid(h @ w[other].T + b[other]))
            h = sigmoid(g @ w[given] + y @ w[other] + c)
        p = sigmoid(h @ w[other].T + b[other])
        entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p))
        np.testing.assert_allclose(found[given], (entropy * ~mask).sum(1).mean(), rtol=1e-12)


def scanned(params, data, backprop_steps):
    """The loss of `test_gradients_of_multi_prediction` through a plain scan, differentiated by JAX."""
    run = MRBMRounds.run
    try:
        MRBMRounds.run = Rounds.run
        found = multi_prediction(
            MODEL, params, data, jax.random.key(0), n_steps=3, keep_max=0.5, backprop_steps=backprop_steps
        )
    finally:
        MRBMRounds.run = run
    return sum(found.values())


def test_gradients_of_multi_prediction(params, data):
    direction = random_params(jax.random.key(5), MODEL, SIZES)
    data = {m: 0.1 + 0.8 * x for m, x in data.items()}  # grey: the slope at a clamped entry is not 0 by itself

    @partial(jax.jit, static_argnums=1)
    def loss(p, backprop_steps=None):
        found = multi_prediction(
            MODEL, p, data, jax.random.key(0), n_steps=3, keep_max=0.5, backprop_steps=backprop_steps
        )
        return sum(found.values())

    grad = jax.grad(loss)(params)
    np.testing.assert_allclose(directional(grad, direction), finite_difference(loss, params, direction), rtol=1e-7)
    close(jax.grad(loss)(params, 3), grad, rtol=1e-12)
    short = jax.grad(loss)(params, 1)
    assert not np.allclose(short.weights["x"], grad.weights["x"], rtol=1e-3)
    plain = jax.jit(jax.grad(scanned), static_argnums=2)
    for steps, ours in ((None, grad), (1, short)):
        close(ours, plain(params, data, steps), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(loss(params, 1), loss(params), rtol=1e-12)  # it changes the gradient alone
    # and to the inputs, of a network below, through those that stay visible too
    moved = {m: jax.random.normal(jax.random.key(7), x.shape) for m, x in data.items()}

    def of_inputs(x):
        return sum(multi_prediction(MODEL, params, x, jax.random.key(0), n_steps=3, keep_max=0.9).values())

    to_inputs = jax.jit(jax.grad(of_inputs))(data)
    np.testing.assert_allclose(directional(to_inputs, moved), finite_difference(of_inputs, data, moved), rtol=1e-6)


def test_clamped_entries_are_unchanged_and_have_no_gradient(params, data):
    mask = {"y": jnp.broadcast_to(jnp.array([True, False]), (6, 2))}

    def filled(p):
        rounds = MODEL.rounds(p, {"x": data["x"]}, Visibility(mask, {"y": data["y"]}))
        return rounds.decode(iterate(rounds.step, rounds.start, 3))["y"]

    np.testing.assert_array_equal(filled(params)[:, 0], data["y"][:, 0])
    assert not np.allclose(filled(params)[:, 1], data["y"][:, 1])
    grad = jax.grad(lambda p: filled(p)[:, 0].sum())(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grad))
    biased = jax.grad(lambda p: filled(p).sum())(params).visible_bias["y"]
    assert biased[0] == 0 and biased[1] != 0


def test_gaussian_directions_predict_by_squared_error():
    model = MRBM({"real": "gaussian", "tags": "binary"}, num_hidden=3)
    params = random_params(jax.random.key(1), model, {"real": 2, "tags": 3})
    inputs = {"real": jax.random.normal(jax.random.key(2), (4, 2)), "tags": jnp.ones((4, 3))}
    found = multi_prediction(model, params, inputs, jax.random.key(0), n_steps=1, keep_max=0.0)["tags"]
    guess = infer(model, params, {"tags": inputs["tags"]}, 1).inputs["real"]
    np.testing.assert_allclose(found, 0.5 * ((inputs["real"] - guess) ** 2).sum(1).mean(), rtol=1e-12)

    @jax.jit
    def loss(p):
        return sum(multi_prediction(model, p, inputs, jax.random.key(0), n_steps=2, keep_max=0.5).values())

    direction = random_params(jax.random.key(5), model, {"real": 2, "tags": 3})
    numeric = finite_difference(loss, params, direction)
    np.testing.assert_allclose(directional(jax.jit(jax.grad(loss))(params), direction), numeric, rtol=1e-7)


def test_multi_prediction_fits_the_pure_conditional():
    """y copies x: its floor is 0 and training comes close to it; y tossed by a coin: the floor is its entropy."""
    x = jnp.array(list(itertools.product((0.0, 1.0), repeat=2)))
    model = MRBM({"x": "binary", "y": "binary"}, num_hidden=4)

    def loss(p, y):
        return multi_prediction(model, p, {"x": x, "y": y}, jax.random.key(0), n_steps=2, keep_max=0.0)["x"]

    start = random_params(jax.random.key(3), model, {"x": 2, "y": 2})
    assert minimiser(lambda p: loss(p, x), steps=1000)(start)[1] < 0.02
    coin = minimiser(lambda p: loss(p, jnp.full((4, 2), 0.5)), steps=1000)(start)[1]
    np.testing.assert_allclose(coin, 2 * np.log(2), rtol=1e-4)


def test_hybrid_is_the_mixture_of_its_parts(params, data):
    chains = {m: jnp.zeros((5, SIZES[m])) for m in "xy"}
    key = jax.random.key(0)
    predict_key, chain_key = jax.random.split(key)
    loss, moved = hybrid(MODEL, params, data, chains, key, alpha=0.3)
    predicted = sum(multi_prediction(MODEL, params, data, predict_key, n_steps=5, keep_max=0.1).values())
    likelihood, expected = persistent_contrastive_divergence(MODEL, params, data, chains, chain_key, steps=10)
    np.testing.assert_allclose(loss, 0.3 * predicted + 0.7 * likelihood, rtol=1e-12)
    close(moved, expected, rtol=0)


def test_sparsity_penalty(params, data):
    logits = MODEL.hidden_logits(params, data)
    q = sigmoid(np.asarray(logits)).mean(0)
    expected = (0.1 * np.log(0.1 / q) + 0.9 * np.log(0.9 / (1 - q))).sum()
    np.testing.assert_allclose(sparsity_penalty(logits, 0.1), expected, rtol=1e-10)
    off = jnp.full((4, 1), -200.0)
    value, grad = jax.value_and_grad(sparsity_penalty)(off, 0.1)
    assert np.isfinite(value) and (grad < 0).all()  # a dead unit is pulled up
    with pytest.raises(ValueError, match=r"target must be in \(0, 1\)"):
        sparsity_penalty(logits, 0.0)


def test_losses_are_minimised_over_seeds_at_once(data):
    """vmap over seeds of a whole scanned training equals the seeds one by one; the loss goes down."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05))

    def train(key):
        def step(carry, key):
            p, state = carry
            value, grad = jax.value_and_grad(lambda p: sum(multi_prediction(MODEL, p, data, key).values()))(p)
            updates, state = tx.update(grad, state, p)
            return (optax.apply_updates(p, updates), state), value

        p = MODEL.init(key, SIZES, std=0.1)
        return jax.lax.scan(step, (p, tx.init(p)), jax.random.split(key, 60))[1]

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(train))(keys)
    np.testing.assert_allclose(together[1], jax.jit(train)(keys[1]), rtol=1e-9)
    assert (together[:, -5:].mean(1) < together[:, :5].mean(1)).all()


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_named(params, data):
    key, x = jax.random.key(0), {"x": data["x"]}
    cases = {
        "all pathways are missing": lambda: infer(MODEL, params, {}, 1),
        "no modality 'z'": lambda: infer(MODEL, params, {"z": data["x"]}, 1),
        "n_steps must be at least 0, got -1": lambda: infer(MODEL, params, x, -1),
        "tolerance must be at least 0": lambda: infer(MODEL, params, x, 1, tolerance=-1.0),
        "n_steps must be at least 0, got -2": lambda: multi_prediction(MODEL, params, data, key, n_steps=-2),
        r"keep_max must be in \[0, 1\], got 1.5": lambda: multi_prediction(MODEL, params, data, key, keep_max=1.5),
        "backprop_steps must be": lambda: multi_prediction(MODEL, params, data, key, backprop_steps=0),
        r"alpha must be in \[0, 1\]": lambda: hybrid(MODEL, params, data, data, key, alpha=-0.1),
        "steps must be at least 1": lambda: cd_percloss(MODEL, params, data, key, steps=0),
        "num_hidden must be": lambda: RBM(0),
        "sizes are of modalities": lambda: MODEL.init(key, {"x": 2}),
        r"values in \[0, 1\]; it holds values from 0.0 to 2.0": lambda: check_inputs(
            MODEL.visible, {"x": np.array([0.0, 2.0])}
        ),
        "x holds NaN": lambda: check_inputs(MODEL.visible, {"x": np.array([0.0, np.nan])}),
        "inputs must be .* with N >= 1": lambda: check_inputs(MODEL.visible, {"x": np.zeros((0, 3))}),
        "n_steps must be at least 0, got 2.5": lambda: infer(MODEL, params, x, 2.5),
        r"inputs are of modalities \['x'\]; the model has": lambda: multi_prediction(MODEL, params, x, key),
        r"inputs are of modalities \['x'\]; the model h": lambda: cd_percloss(MODEL, params, x, key),
        r"inputs are of modalities \['x'\]; the model": lambda: MODEL.free_energy(params, x),
        "inputs are of modalities ..; the": lambda: persistent_contrastive_divergence(MODEL, params, data, {}, key),
        "no modality 'w'": lambda: MODEL.gibbs(params, key, data, 1, given=("w",)),
        "inputs hold 'z'": lambda: check_inputs(MODEL.visible, {"z": np.zeros(1)}),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_unstandardised_real_features_are_warned_of():
    real = np.random.default_rng(0).normal(3.0, 10.0, (1000, 4))
    with pytest.warns(
        UserWarning, match=r"4 of its 4 features are not, the worst \(number 3\) with mean 3\.207 and stand"
    ):
        check_inputs({"real": "gaussian"}, {"real": real})
    opposite = np.stack(
        [1 + real[:, 0] / 1000, -1 + real[:, 1] / 1000], axis=1
    )  # over all of them mean 0 and deviation 1
    with pytest.warns(UserWarning, match="2 of its 2 features are not"):
        check_inputs({"real": "gaussian"}, {"real": opposite})
    check_inputs({"real": "gaussian"}, {"real": (real - 3) / 10})
