"""Known answers on models that can be enumerated, in float64: densities, variation of information, its minima."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generative.exact import directional, finite_difference, joint_table, minimiser, random_params
from mmjax.generative import (
    MRBM,
    RBM,
    conditional_entropy,
    exact_vi_objective,
    gaussian_variation_of_information,
    log_conditionals,
    log_joint,
    log_unnormalised,
    lowest_free_energy,
    table_objective,
    table_variation_of_information,
    vi_objective,
    visible_states,
)

BINARY = MRBM({"x": "binary", "y": "binary"}, num_hidden=3)
SIZES = {"x": 3, "y": 2}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def params():
    return random_params(jax.random.key(0), BINARY, SIZES)


def energy(params, x, y, h):
    """The definition, term by term."""
    w, b = params.weights, params.visible_bias
    return -(x @ w["x"] @ h) - (y @ w["y"] @ h) - b["x"] @ x - b["y"] @ y - params.hidden_bias @ h


def test_joint_is_the_boltzmann_distribution_of_the_energy(params):
    states = [np.array(s, float) for s in itertools.product((0, 1), repeat=8)]
    weight = np.array([math.exp(-energy(params, s[:3], s[3:5], s[5:])) for s in states])
    expected = weight.reshape(8, 4, 8).sum(axis=2) / weight.sum()
    np.testing.assert_allclose(joint_table(BINARY, params), expected, rtol=1e-12)


@pytest.mark.parametrize("num_hidden", [1, 7])  # fewer and more than the missing visible units: both ways of summing
def test_marginals_and_conditionals_follow_from_the_joint(num_hidden):
    model = MRBM({"x": "binary", "y": "binary"}, num_hidden)
    params = random_params(jax.random.key(1), model, SIZES)
    table = joint_table(model, params)
    states = visible_states(model, params)
    np.testing.assert_allclose(table.sum(), 1, rtol=1e-12)
    given = log_conditionals(model, params, states)
    np.testing.assert_allclose(jnp.exp(given["x"]), (table / table.sum(1, keepdims=True)).ravel(), rtol=1e-12)
    np.testing.assert_allclose(jnp.exp(given["y"]), (table / table.sum(0, keepdims=True)).ravel(), rtol=1e-12)
    np.testing.assert_allclose(jnp.exp(log_joint(model, params, {"y": states["y"]}))[:4], table.sum(0), rtol=1e-12)


def test_gaussian_units_integrate():
    """log Σ_h ∫ against a fine grid, one real unit; and the free energy is that sum over h for given values."""
    model = MRBM({"x": "gaussian", "y": "binary"}, num_hidden=2)
    params = random_params(jax.random.key(2), model, {"x": 1, "y": 2})
    grid = jnp.linspace(-12, 12, 6_001)[:, None]
    for y in ([0.0, 1.0], [1.0, 1.0]):
        every = {"x": grid, "y": jnp.broadcast_to(jnp.array(y), (len(grid), 2))}
        integral = jnp.trapezoid(jnp.exp(-model.free_energy(params, every)), grid[:, 0])
        np.testing.assert_allclose(
            jnp.exp(log_unnormalised(model, params, {"y": jnp.array([y])}))[0], integral, rtol=1e-9
        )
    x, h = 0.7, jnp.array(list(itertools.product((0.0, 1.0), repeat=2)))
    w, b = params.weights, params.visible_bias
    terms = (
        0.5 * (x - b["x"][0]) ** 2
        - x * h @ w["x"][0]
        - h @ w["y"].T @ jnp.ones(2)
        - b["y"].sum()
        - h @ params.hidden_bias
    )
    value = model.free_energy(params, {"x": jnp.array([[x]]), "y": jnp.ones((1, 2))})
    np.testing.assert_allclose(value[0], -jax.scipy.special.logsumexp(-terms), rtol=1e-12)


def test_rbm_is_the_one_modality_case(params):
    rbm = RBM(num_hidden=3)
    single = rbm.init(jax.random.key(0), 5).replace(
        weights=jnp.concatenate([params.weights["x"], params.weights["y"]]),
        visible_bias=jnp.concatenate([params.visible_bias["x"], params.visible_bias["y"]]),
        hidden_bias=params.hidden_bias,
    )
    states = visible_states(BINARY, params)
    whole = jnp.concatenate([states["x"], states["y"]], axis=1)
    np.testing.assert_allclose(rbm.free_energy(single, whole), BINARY.free_energy(params, states), rtol=1e-12)


def test_1_at_the_own_joint_the_objective_is_the_variation_of_information(params):
    states, table = visible_states(BINARY, params), joint_table(BINARY, params)
    value_and_grad = jax.value_and_grad(lambda p: exact_vi_objective(BINARY, p, states, probability=table.ravel()))
    value, grad = jax.jit(value_and_grad)(params)
    entropy = -np.sum(table * np.log(table))
    by_hand = 2 * entropy + sum(np.sum(table.sum(a) * np.log(table.sum(a))) for a in (0, 1))
    np.testing.assert_allclose(value, by_hand, rtol=1e-12)
    np.testing.assert_allclose(table_variation_of_information(table), by_hand, rtol=1e-12)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grad)) < 1e-12


def test_2_twice_the_joint_likelihood_is_the_marginals_and_the_objective(params):
    data = {m: jax.random.bernoulli(jax.random.key(i), 0.5, (7, SIZES[m])).astype(float) for i, m in enumerate("xy")}
    nll = -log_joint(BINARY, params, data).mean()
    marginals = sum(-log_joint(BINARY, params, {m: data[m]}).mean() for m in "xy")
    np.testing.assert_allclose(2 * nll, marginals + exact_vi_objective(BINARY, params, data), rtol=1e-12)


def test_gradient_of_the_exact_objective(params):
    """Against finite differences, and against 2E[∂F] - E[∂F(x, y')] - E[∂F(x', y)] with exact conditionals."""
    data = {"x": jnp.array([[0.0, 1, 1], [1, 0, 1]]), "y": jnp.array([[1.0, 0], [1, 1]])}
    direction = random_params(jax.random.key(5), BINARY, SIZES)
    grad = jax.jit(jax.grad(lambda p: exact_vi_objective(BINARY, p, data)))(params)
    numeric = finite_difference(lambda p: exact_vi_objective(BINARY, p, data), params, direction)
    np.testing.assert_allclose(directional(grad, direction), numeric, rtol=1e-8)

    def expected(p):
        total = 2 * BINARY.free_energy(p, data).mean()
        for given, other in (("x", "y"), ("y", "x")):
            for i in range(2):
                states = visible_states(BINARY, params, (other,))
                count = len(states[other])
                every = {given: jnp.broadcast_to(data[given][i], (count, SIZES[given]))} | states
                chance = jax.nn.softmax(-BINARY.free_energy(params, every))
                total -= jnp.sum(chance * BINARY.free_energy(p, every)) / 2
        return total

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), grad, jax.jit(jax.grad(expected))(params))


def test_3_realisable_data_are_recovered_as_a_distribution():
    model = MRBM({"x": "binary", "y": "binary"}, num_hidden=2)
    sizes = {"x": 2, "y": 2}
    truth = joint_table(model, random_params(jax.random.key(7), model, sizes, std=1.5))

    def loss(p):
        return exact_vi_objective(model, p, visible_states(model, p), probability=truth.ravel())

    minimise = minimiser(loss)
    found = [minimise(random_params(jax.random.key(s), model, sizes)) for s in range(5)]
    best, value = min(found, key=lambda pair: float(pair[1]))
    np.testing.assert_allclose(value, table_variation_of_information(truth), atol=1e-5)
    np.testing.assert_allclose(joint_table(model, best), truth, atol=2e-3)


def test_4_misspecified_data_part_the_two_objectives():
    model = MRBM({"x": "binary", "y": "binary"}, num_hidden=1)
    sizes = {"x": 2, "y": 2}
    table = jax.random.dirichlet(jax.random.key(3), 0.3 * jnp.ones(16), dtype=jnp.float64)

    def vi(p):
        return exact_vi_objective(model, p, visible_states(model, p), probability=table)

    def nll(p):
        return -jnp.sum(table * log_joint(model, p, visible_states(model, p)))

    vi, nll = jax.jit(vi), jax.jit(nll)
    to_vi, to_nll = minimiser(vi), minimiser(nll)
    by_nll = to_nll(random_params(jax.random.key(0), model, sizes, std=0.1))[0]
    by_vi = by_nll
    while True:  # until neither improves
        before = float(vi(by_vi)), float(nll(by_nll))
        by_vi = min((by_vi, to_vi(by_nll)[0]), key=lambda p: float(vi(p)))
        by_nll = min((by_nll, to_nll(by_vi)[0]), key=lambda p: float(nll(p)))
        if before[0] - vi(by_vi) < 1e-6 and before[1] - nll(by_nll) < 1e-6:
            break
    assert vi(by_vi) < vi(by_nll) - 1e-3
    assert nll(by_nll) < nll(by_vi) - 1e-3


def test_5_alternating_conditional_sampling_keeps_the_joint(params):
    """Exactly: the kernel x' ~ p(x|y), y' ~ p(y|x'), made of the model's conditionals, leaves the joint as it is."""
    table = joint_table(BINARY, params)
    states = visible_states(BINARY, params)
    given = {m: jnp.exp(value).reshape(table.shape) for m, value in log_conditionals(BINARY, params, states).items()}
    x_given_y, y_given_x = given["y"], given["x"]
    moved = jnp.einsum("xy,ay,ab->ab", table, x_given_y, y_given_x)
    np.testing.assert_allclose(moved, table, rtol=1e-10)
    other = jnp.full(table.shape, 1 / table.size)  # and it is the only one: anything goes there
    for _ in range(200):
        other = jnp.einsum("xy,ay,ab->ab", other, x_given_y, y_given_x)
    np.testing.assert_allclose(other, table, rtol=1e-6)


def test_6_blocks_hide_their_mass():
    first, second = np.array([[0.1, 0.3], [0.4, 0.2]]), np.array([[0.25, 0.25], [0.1, 0.4]])

    def blocks(mass):
        zero = jnp.zeros((2, 2))
        return jnp.block([[mass * first, zero], [zero, (1 - mass) * second]])

    data = blocks(0.5)
    values = [float(table_objective(data, blocks(mass))) for mass in (0.1, 0.5, 0.9)]
    np.testing.assert_allclose(values, values[0], rtol=1e-12)
    np.testing.assert_allclose(jax.grad(lambda a: table_objective(data, blocks(a)))(0.3), 0, atol=1e-12)
    np.testing.assert_allclose(table_variation_of_information(data), values[1], rtol=1e-12)


@pytest.mark.parametrize("rho", [0.0, 0.5, -0.9])
def test_7_two_normals(rho):
    expected = math.log(2 * math.pi * math.e * (1 - rho**2))
    np.testing.assert_allclose(gaussian_variation_of_information([[1, rho], [rho, 1]], 1), expected, rtol=1e-12)


def test_normals_of_more_dimensions_against_their_conditionals():
    root = np.random.default_rng(0).normal(size=(5, 5))
    cov = root @ root.T
    x, y = slice(0, 2), slice(2, 5)
    total = 0.0
    for a, b in ((x, y), (y, x)):
        conditional = cov[a, a] - cov[a, b] @ np.linalg.inv(cov[b, b]) @ cov[b, a]
        total += 0.5 * np.log(np.linalg.det(2 * np.pi * np.e * conditional))
    np.testing.assert_allclose(gaussian_variation_of_information(cov, 2), total, rtol=1e-10)


def test_tables():
    p = np.array([[0.5, 0.0], [0.25, 0.25]])
    h_y_given_x = 0.5 * math.log(2)
    h_x_given_y = 0.75 * -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    np.testing.assert_allclose(conditional_entropy(p, given=0), h_y_given_x, rtol=1e-12)
    np.testing.assert_allclose(conditional_entropy(p, given=1), h_x_given_y, rtol=1e-12)
    np.testing.assert_allclose(table_objective(p, p, (1.0, 0.0)), h_y_given_x, rtol=1e-12)  # rows given
    q = np.full((2, 2), 0.25)
    np.testing.assert_allclose(table_objective(p, q), 2 * math.log(2), rtol=1e-12)
    assert table_objective(q, np.array([[0.5, 0.5], [0.0, 0.0]])) == np.inf  # a row that the model says never comes
    assert np.isfinite(jax.grad(lambda t: table_objective(t, t))(jnp.asarray(p))).all()
    assert np.isfinite(jax.grad(lambda t: table_objective(p, t))(jnp.asarray(p))).all()
    given = {"x": jnp.array([-jnp.inf, -1.0]), "y": jnp.array([-1.0, -1.0])}
    assert vi_objective(given, probability=jnp.array([0.0, 1.0])) == 2.0
    assert vi_objective(given, weights={"x": 0.0, "y": 1.0}) == 1.0


def test_weights_choose_directions(params):
    data = {"x": jnp.array([[0.0, 1, 1]]), "y": jnp.array([[1.0, 0]])}
    given = log_conditionals(BINARY, params, data)
    np.testing.assert_allclose(vi_objective(given, weights={"x": 1.0, "y": 0.0}), -given["x"][0], rtol=1e-12)
    np.testing.assert_allclose(
        vi_objective(given, weights={"x": 0.5, "y": 2.0}), -(0.5 * given["x"] + 2 * given["y"])[0]
    )
    for weights, message in (
        ({"x": 1.0}, "weights are of"),
        ({"x": 0.0, "y": 0.0}, "not all 0"),
        ({"x": -1.0, "y": 1.0}, "at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            vi_objective(given, weights=weights)


def test_lowest_free_energy_is_the_minimum_over_all_completions(params):
    given = {"x": jnp.array([[0.0, 1, 1], [1, 0, 0]])}
    found = lowest_free_energy(BINARY, params, given)
    table = BINARY.free_energy(params, visible_states(BINARY, params)).reshape(8, 4)
    np.testing.assert_allclose(BINARY.free_energy(params, found), table[jnp.array([3, 4])].min(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(found["x"], given["x"])


def test_mistakes_are_named(params):
    with pytest.raises(ValueError, match="enumeration of 21 units"):
        model = MRBM({"x": "binary", "y": "binary"}, num_hidden=30)
        log_unnormalised(model, model.init(jax.random.key(0), {"x": 20, "y": 1}), {})
    with pytest.raises(ValueError, match="states of x cannot be enumerated"):
        model = MRBM({"x": "gaussian", "y": "binary"}, num_hidden=2)
        visible_states(model, model.init(jax.random.key(0), SIZES))
    with pytest.raises(ValueError, match="sums to 2"):
        table_variation_of_information(np.ones((1, 2)))
    with pytest.raises(ValueError, match="sums to 4"):
        table_variation_of_information(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="sums to 4"):
        table_variation_of_information([[1.0, 1.0], [1.0, 1.0]])
    for weights in ((-1.0, 0.0), (0.0, 0.0)):
        with pytest.raises(ValueError, match="weights must be at least 0 and not all 0"):
            table_objective(np.eye(2) / 2, np.eye(2) / 2, weights)
    with pytest.raises(ValueError, match="covariance must be a symmetric matrix"):
        gaussian_variation_of_information(1.0, 1)
    with pytest.raises(ValueError, match="two modalities"):
        vi_objective({"x": jnp.zeros(1)})
    with pytest.raises(ValueError, match="num_x must be in 1..1"):
        gaussian_variation_of_information(np.eye(2), 2)
    with pytest.raises(ValueError, match="positive definite"):
        gaussian_variation_of_information(np.ones((2, 2)), 1)
    with pytest.raises(ValueError, match="at least two modalities"):
        MRBM({"x": "binary"}, 3)
    with pytest.raises(ValueError, match="one of binary, gaussian; got 'count'"):
        MRBM({"x": "binary", "y": "count"}, 3)
    with pytest.raises(ValueError, match="all pathways are missing"):
        log_joint(BINARY, params, {})
