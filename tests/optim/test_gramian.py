"""What all Gram-based methods share: the Gramian, scope, scale, level, absent objectives, and life inside Optax."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract.problems import encode, head_losses, losses_fn, make_batch, make_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mmjax
from mmjax.optim import mmpareto
from mmjax.optim.gramian import gramian, inner_products
from mmjax.optim.rows import gradient_rows
from optim.gram_cases import KEY, MEAN, METHODS, random_jacobian, run, update_of

GROUPS = {
    "encoder": {m: {"kernel": f"encoder/{m}"} for m in ("audio", "image")},
    "fusion": {"hidden": "fusion", "kernel": "fusion", "bias": "fusion"},
    "head": {m: {"kernel": f"head/{m}", "bias": f"head/{m}"} for m in ("audio", "image")},
}
STRUCTURE = {name: METHODS[name] for name in ("mgda", "nash_mtl", "mmpareto")}
"""What concerns where a method acts is common to all; these stand for them."""
DENSE = {name: method for name, method in METHODS.items() if name != "mmpareto"}
"""Those that do not ask which encoder a parameter belongs to."""


def close(a, b, rtol=1e-5, atol=1e-6):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def problem():
    return make_params(), make_batch()


# ---- the Gramian -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (5,), (9001,), (3, 8192), (300, 200), (3, 3, 2, 4), (2, 4097), (70, 1)])
def test_inner_products_against_float64(shape):
    rows = [jnp.asarray(np.random.default_rng(k).normal(size=shape) + 0.5, jnp.float32) for k in range(3)]
    wide = np.stack([np.asarray(r, np.float64).ravel() for r in rows])
    expected = (wide @ wide.T)[np.triu_indices(3)]
    np.testing.assert_allclose(jax.jit(inner_products)(rows), expected, atol=1e-6 * max(expected))


def test_inner_products_of_many_rows():
    wide = random_jacobian(0, 10)
    expected = (wide @ wide.T)[np.triu_indices(10)]
    np.testing.assert_allclose(inner_products(list(jnp.asarray(wide))), expected, rtol=1e-5, atol=1e-5)


def test_inner_products_of_long_rows_do_not_stagnate():
    rows = [jnp.full((2000, 2000), 0.1), jnp.full((4_000_001,), 0.1)]
    for row in rows:  # summed one by one in float32, both would err by percents
        np.testing.assert_allclose(jax.jit(lambda r: inner_products([r])[0])(row), 0.01 * row.size, rtol=2e-6)


def test_inner_products_of_bfloat16_are_float32():
    a = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.bfloat16)
    (got,) = inner_products([a])
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, np.sum(np.asarray(a, np.float64) ** 2), rtol=1e-6)


def test_gramian_covers_the_scope(problem):
    params, batch = problem
    _, grads = mmjax.objective_grads(losses_fn)(params, batch)
    rows = gradient_rows(grads, 3)
    stacked = grads.stacked()

    def dense(tree):
        flat = np.concatenate([np.asarray(x, np.float64).reshape(3, -1) for x in jax.tree.leaves(tree)], axis=1)
        return flat @ flat.T

    for scope, tree in (("shared", stacked["encoder"]), ("all", stacked)):
        gram = gramian(rows, scope=scope)
        np.testing.assert_allclose(gram.matrix * gram.trace, dense(tree), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(jnp.trace(gram.matrix), 1, rtol=1e-6)
        again = gramian(gradient_rows(stacked, 3, touching=grads.touching), scope=scope)
        close(gram, again)
    assert gramian(gradient_rows(stacked, 3)).trace > gramian(rows).trace  # without touching: every leaf


def test_gramian_at_the_features(problem):
    params, batch = problem
    _, grads = mmjax.objective_grads(head_losses, encode=encode)(params, batch)
    gram = gramian(gradient_rows(grads, 3, level="features"))
    flat = np.concatenate([np.asarray(c).reshape(3, -1) for c in grads.features().cotangents.values()], axis=1)
    np.testing.assert_allclose(gram.matrix * gram.trace, flat @ flat.T, rtol=1e-5, atol=1e-7)


# ---- every method ------------------------------------------------------------------------------------------------


def applied(method, grads, params, *, active=None, touching=None, **options):
    """(update, weights [K]) of a method on a tree."""
    if method is mmpareto:  # it acts in the encoders, whatever the scope
        options.pop("scope", None)
    tx = method(**options)
    updates, state = tx.update(
        grads, tx.init(params), params, active=active, touching=touching, groups=GROUPS, key=KEY, unknown=3
    )
    return updates, state.weights[:3]


@pytest.fixture(scope="module")
def results(problem):
    """{scope: {form: {method: (update, weights)}}} of lazy and stacked gradients, also with an objective absent."""
    params, batch = problem

    @jax.jit
    def compute(params, active):
        _, grads = mmjax.objective_grads(losses_fn)(params, batch)
        stacked, touching = grads.stacked(), grads.touching
        poisoned = jax.tree.map(lambda g: jnp.where(active.reshape(-1, *[1] * (g.ndim - 1)), g, jnp.nan), stacked)
        forms = {
            "lazy": (grads, {}),
            "stacked": (stacked, {"touching": touching}),
            "lazy absent": (grads, {"active": active}),
            "stacked absent": (poisoned, {"touching": touching, "active": active}),
        }
        return {
            scope: {
                form: {n: applied(method, g, params, scope=scope, **extra) for n, method in STRUCTURE.items()}
                for form, (g, extra) in forms.items()
            }
            for scope in ("shared", "all")
        }

    return {absent: compute(params, jnp.arange(3) != absent) for absent in (1, 2)}


@pytest.mark.parametrize("scope", ["shared", "all"])
def test_lazy_as_stacked_and_plain_outside_the_scope(problem, results, scope):
    params, batch = problem
    stacked = mmjax.objective_grads(losses_fn)(params, batch)[1].stacked()
    close(results[1][scope]["lazy"], results[1][scope]["stacked"])
    for name, (update, weights) in results[1][scope]["lazy"].items():
        if name == "mmpareto":
            continue
        rows = jax.tree.map(lambda g, w=weights: jnp.tensordot(w, g, axes=1), stacked)
        close(update["encoder"], rows["encoder"])
        if scope == "shared":  # what one objective reaches keeps its gradient
            rows = jax.tree.map(lambda g: jnp.sum(g, axis=0), stacked)
        close(update["head"], rows["head"])
        close(update["fusion"], rows["fusion"])


@pytest.mark.parametrize("absent", [1, 2])
@pytest.mark.parametrize("scope", ["shared", "all"])
def test_absent_objectives_leave_the_rest_as_if_they_did_not_exist(problem, results, scope, absent):
    params, batch = problem
    _, grads = mmjax.objective_grads(losses_fn)(params, batch)
    present = np.arange(3) != absent
    rows = jax.tree.map(lambda g: g[present], grads.stacked())
    touching = jax.tree.map(lambda t: t[present], grads.touching)
    left = jax.tree.map(lambda t: bool(t.any()), touching)
    gone = ("audio", "image")[absent - 1]
    groups = jax.tree.map(lambda g: "other" if g.endswith(gone) else g, GROUPS)
    expected = jax.jit(
        lambda: {
            n: (lambda tx: tx.update(rows, tx.init(params), params, touching=touching, groups=groups, key=KEY))(
                mmpareto() if method is mmpareto else method(scope=scope)
            )
            for n, method in STRUCTURE.items()
        }
    )()
    for form in ("lazy absent", "stacked absent"):
        for name, (update, weights) in results[absent][scope][form].items():
            wanted, state = expected[name]
            close(jax.tree.map(lambda u, t: u if t else 0 * u, update, left), wanted)
            np.testing.assert_allclose(weights[present], state.weights[:2], rtol=1e-5, err_msg=name)
            assert weights[absent] == 0


@pytest.fixture(scope="module")
def at_features(problem):
    params, batch = problem

    @jax.jit
    def compute(active):
        _, grads = mmjax.objective_grads(head_losses, encode=encode)(params, batch)
        return {n: applied(m, grads, params, active=active, level="features") for n, m in STRUCTURE.items()}

    return compute


def test_absent_at_the_features_and_all_absent(problem, at_features):
    params, batch = problem
    _, grads = mmjax.objective_grads(head_losses, encode=encode)(params, batch)
    alone = grads.weighted(jnp.array([1.0, 0.0, 0.0]))
    for update, weights in at_features(jnp.array([True, False, False])).values():
        close(update, alone)  # no feature is reached by two: nothing to act on
        np.testing.assert_array_equal(weights[1:], 0)
    for update, weights in at_features(jnp.zeros(3, bool)).values():
        close(update, jax.tree.map(jnp.zeros_like, params))
        np.testing.assert_array_equal(weights, 0)


def test_features_of_an_orthogonal_encoder_are_exact():
    """Features z = x θ of orthonormal examples: the Gramian there is the one at the parameters."""
    x = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0], jnp.float32)
    heads = {"fusion": jnp.eye(3), "m": -0.5 * jnp.eye(3) + 0.3, "n": jnp.ones((3, 3))}
    params = {"encoder": jnp.ones((6, 3)), "head": heads}

    def head_losses(p, z, x):
        return {n: jnp.mean((z["m"] @ w - jnp.arange(3)) ** 2) for n, w in p["head"].items()}

    def encode(p, x):
        return {"m": x @ p["encoder"]}

    @jax.jit
    def both(params):
        _, there = mmjax.objective_grads(lambda p, x: head_losses(p, encode(p, x), x))(params, x)
        _, here = mmjax.objective_grads(head_losses, encode=encode)(params, x)
        results = {"parameters": {}, "features": {}}
        for level, grads in (("parameters", there), ("features", here)):
            for name, method in STRUCTURE.items():
                tx = method(level=level, num_objectives=3)
                groups = {"encoder": "encoder/m", "head": dict.fromkeys(heads, "fusion")}
                updates, state = tx.update(grads, tx.init(params), params, groups=groups, key=KEY)
                results[level][name] = (updates, state.weights)
        return results

    results = both(params)
    close(results["features"], results["parameters"], rtol=1e-4, atol=1e-5)


def test_finite_at_any_scale_and_on_degenerate_gradients():
    rows = random_jacobian(3, 3)
    cases = {
        "zero": 0 * rows,
        "one zero": np.stack([rows[0], 0 * rows[0], rows[2]]),
        "identical": np.stack([rows[0]] * 3),
        "opposing": np.stack([rows[0], -rows[0], rows[1]]),
        "stationary": np.stack([rows[0], rows[1], -rows[0] - rows[1]]),
        "dependent": np.stack([rows[0], rows[1], rows[0] + rows[1]]),
        "unlike": rows * np.array([[1e-4], [1.0], [1e4]]),
    }
    for name, method in DENSE.items():
        for case, jacobian in cases.items():
            for scale in (1e-8, 1.0, 1e8):
                u, w = run(method, scale * jacobian)
                assert np.all(np.isfinite(u)) and np.all(np.isfinite(w)), (name, case, scale)
                assert u.shape == jacobian.shape[1:]


def test_one_objective():
    (row,) = jacobian = random_jacobian(1, 1)
    for name, method in METHODS.items():
        np.testing.assert_allclose(run(method, jacobian)[0], row, rtol=1e-5, err_msg=name)  # nothing is shared
    for name, expected in (("cagrad", 1.5 * row), ("nash_mtl", row / np.linalg.norm(row))):
        np.testing.assert_allclose(run(METHODS[name], jacobian, scope="all")[0], expected, rtol=1e-5)


def test_an_absent_objective_has_no_say_in_the_weights():
    jacobian = random_jacobian(5, 3)
    jacobian[1] -= 1.5 * jacobian[0]
    for name, method in DENSE.items():
        for absent in (1, 2):
            present = np.arange(3) != absent
            poisoned = np.where(present[:, None], jacobian, np.nan)
            u, w = run(method, poisoned, present)
            expected, weights = run(method, jacobian[present])
            np.testing.assert_allclose(u, expected, rtol=1e-3, atol=1e-4, err_msg=name)
            np.testing.assert_allclose(w[present], weights, rtol=1e-3, atol=1e-5, err_msg=name)
            assert w[absent] == 0
        u, w = run(method, poisoned, np.zeros(3, bool))
        assert not u.any() and not w.any(), name


def test_non_finite_gradients_reach_the_update():
    jacobian = jnp.asarray(random_jacobian(0, 3)).at[1, 2].set(jnp.nan)
    for name, method in DENSE.items():
        u, w = run(method, jacobian)
        assert np.isnan(u[2]) and np.isfinite(u[0]) and np.all(np.isfinite(w)), name


def test_bfloat16_gradients_are_combined_in_float32():
    jacobian = jnp.asarray(random_jacobian(1, 3, 40), jnp.bfloat16)
    names = ("mgda", "nash_mtl")
    compute = jax.jit(lambda j: {n: update_of(METHODS[n](), j) for n in names})
    narrow, wide = compute(jacobian), compute(jacobian.astype(jnp.float32))
    for name in names:
        assert narrow[name][0].dtype == jnp.bfloat16
        np.testing.assert_allclose(narrow[name][1], wide[name][1], rtol=1e-5, err_msg=name)
        exact = np.asarray(wide[name][0], np.float64)
        np.testing.assert_allclose(np.asarray(narrow[name][0], np.float64), exact, rtol=2**-8, err_msg=name)


def test_scale_sum_is_k_times_the_mean():
    jacobian, active = random_jacobian(2, 4), np.array([True, True, False, True])
    for name in MEAN:
        mean, w = run(METHODS[name], jacobian, active)
        total, sums = run(METHODS[name], jacobian, active, scale="sum")
        np.testing.assert_allclose(total, 3 * mean, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(sums, 3 * w, rtol=1e-5, err_msg=name)


def test_vmap_over_seeds():
    many = jnp.stack([random_jacobian(s, 3) for s in range(3)])
    swept = jax.jit(jax.vmap(lambda j: {n: update_of(m(num_objectives=3), j) for n, m in DENSE.items()}))(many)
    for name, method in DENSE.items():
        for i in range(3):
            u, w = run(method, many[i])
            np.testing.assert_allclose(swept[name][0][i], u, rtol=1e-4, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(swept[name][1][i], w, rtol=1e-4, atol=1e-5, err_msg=name)


def test_eight_devices_give_the_numbers_of_one(problem):
    params, batch = problem

    def everything(p, b, axis_name=None):
        _, grads = mmjax.objective_grads(head_losses, encode=encode, axis_name=axis_name)(p, b)
        return {
            level: {n: applied(m, grads, p, level=level) for n, m in STRUCTURE.items()}
            for level in ("parameters", "features")
        }

    one = jax.jit(everything)(params, batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    close(jax.jit(everything)(jax.device_put(params, NamedSharding(mesh, PartitionSpec())), spread), one, rtol=1e-4)
    shards = jax.tree.map(lambda x: x.reshape(8, 1, *x.shape[1:]), batch)
    many = jax.pmap(partial(everything, axis_name="d"), axis_name="d", in_axes=(None, 0))(params, shards)
    close(jax.tree.map(lambda x: x[5], many), one, rtol=1e-4)


def test_in_front_of_other_transformations(problem):
    params, batch = problem
    after = optax.chain(
        optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
        optax.apply_if_finite(optax.sgd(0.1), 3),
        optax.partition({"a": optax.sgd(0.1), "b": optax.adam(0.1)}, {"encoder": "a", "fusion": "b", "head": "b"}),
    )
    txs = {name: optax.chain(method(), after) for name, method in STRUCTURE.items()}
    traces = []

    @jax.jit
    def step(states, batch):
        traces.append(1)
        values, grads = mmjax.objective_grads(losses_fn)(params, batch)
        return {
            n: tx.update(grads, states[n], params, values=values, key=KEY, groups=GROUPS)[1] for n, tx in txs.items()
        }

    states = {n: tx.init(params) for n, tx in txs.items()}
    for _ in range(2):
        new = step(states, batch)
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, states)
        states = new
    assert len(traces) == 1
    assert all(s[0].weights.shape == (3,) for s in states.values())


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_bad_input_names_the_argument(problem, name):
    method, rows = METHODS[name], jnp.ones((3, 2))
    for option in ("level", *(["scope"] if name in DENSE else []), *(["scale"] if name in MEAN else [])):
        with pytest.raises(ValueError, match=rf"{option} must be one of"):
            method(**{option: "shard"})
    with pytest.raises(ValueError, match=r"did you mean features\?"):
        method(level="feature")
    with pytest.raises(ValueError, match="num_objectives"):
        method(num_objectives=0)
    with pytest.raises(ValueError, match=r"active must have shape \(3,\)"):
        update_of(method(), rows, active=jnp.ones(2, bool))
    with pytest.raises(ValueError, match="lazy gradients"):
        update_of(method(level="features"), rows)
    with pytest.raises(ValueError, match="encode"):
        params, batch = problem
        applied(method, mmjax.objective_grads(losses_fn)(params, batch)[1], params, level="features")
    with pytest.raises(ValueError, match="single gradients"):
        tx = method()
        tx.update({"w": jnp.ones((4, 3))}, tx.init(None), {"w": jnp.ones((4, 3))}, key=KEY)
