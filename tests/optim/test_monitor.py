"""`monitor` changes nothing and sees everything; `skip_nonfinite` sits out what would poison a state."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract.problems import losses_fn, make_batch, make_params
from jax.sharding import AxisType, PartitionSpec

import mmjax
from mmjax.optim import joint, mimo, monitor, skip_nonfinite, uniform
from mmjax.optim.geometry import geometry_of, named_geometry
from mmjax.testing import check_combiner

NAMES = ("fusion", "audio", "image")


@pytest.fixture(scope="module")
def problem():
    return make_params(), make_batch()


def step(tx, params, state, batch, axis_name=None, **extra):
    values, grads = mmjax.objective_grads(losses_fn, axis_name=axis_name)(params, batch)
    return tx.update(grads, state, params, values=values, **extra)


def test_the_update_is_the_combiners_and_the_state_tells_what_it_did(problem):
    params, batch = problem
    inner = mimo(2.0, 0.05, num_objectives=3)
    tx = monitor(inner, every=2, num_objectives=3)
    run = jax.jit(partial(step, tx))
    state = tx.init(params)
    assert np.isnan(state.norms).all() and state.values.shape == (3,)
    wanted, wanted_state = step(inner, params, inner.init(params), batch)
    updates, state = run(params, state, batch)
    chex.assert_trees_all_close(updates, wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(state.weights, wanted_state.weights, rtol=1e-6)
    losses = losses_fn(params, batch)
    np.testing.assert_allclose(state.values, [losses[n] for n in NAMES], rtol=1e-6)
    named = named_geometry(geometry_of(mmjax.objective_grads(losses_fn)(params, batch)[1]), NAMES)
    np.testing.assert_allclose(state.norms, [named[f"norm/{n}"] for n in NAMES], rtol=1e-5)
    np.testing.assert_allclose(
        state.cosines[0, 1:], [named["cosine/fusion/audio"], named["cosine/fusion/image"]], rtol=1e-4
    )
    assert np.isnan(state.cosines[1, 2])  # audio and image meet nowhere
    np.testing.assert_array_equal(state.conflicts, np.asarray(state.cosines) < 0)
    other = jax.tree.map(lambda p: 1.1 * p, params)
    _, second = run(other, state, batch)  # not measured
    np.testing.assert_array_equal(second.norms, state.norms)
    assert not np.allclose(second.values, state.values)
    _, third = run(other, second, batch)
    assert (int(third.count), int(third.measurements)) == (3, 2)
    assert not np.allclose(third.norms, state.norms)
    assert run._cache_size() == 1


def test_conflicts_are_counted_and_inactive_objectives_not():
    rows = {"w": jnp.array([[1.0, 0.0], [-1.0, 1.0], [jnp.nan, 0.0]])}
    tx = monitor(uniform(num_objectives=3), every=1, num_objectives=3)
    params = {"w": jnp.zeros(2)}
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(rows, state, params, active=jnp.array([True, True, False]))
    assert state.conflicts.tolist() == [[0, 2, 0], [2, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(state.norms, [1.0, np.sqrt(2), np.nan], rtol=1e-6)
    assert np.isnan(state.values).all()  # none came
    _, state = tx.update(rows, state, params, values=jnp.arange(3.0), active=jnp.array([True, True, False]))
    np.testing.assert_array_equal(state.values, [0, 1, np.nan])


def test_stacked_gradients_are_seen_as_lazy_ones(problem):
    params, batch = problem
    grads = mmjax.objective_grads(losses_fn)(params, batch)[1]
    chex.assert_trees_all_close(geometry_of(grads.stacked(), grads.touching), geometry_of(grads), rtol=1e-4)
    dense = geometry_of(grads.stacked())  # everyone reaches everything: audio and image meet, at a right angle
    assert dense.cosines[1, 2] == 0
    half = jax.tree.map(lambda g: g.astype(jnp.bfloat16), grads.stacked())
    assert geometry_of(half).norms.dtype == jnp.float32


def test_inside_scan_and_for_any_combiner(problem):
    params, batch = problem

    def plain(k):  # no state, no weights, no extra arguments
        return optax.GradientTransformation(
            lambda params: optax.EmptyState(), lambda grads, state, params=None: (grads.weighted(jnp.ones(k)), state)
        )

    tx = optax.chain(monitor(plain(3), every=3), optax.sgd(0.05))

    @jax.jit
    def run(params):
        def body(carry, _):
            params, state = carry
            updates, state = step(tx, params, state, batch)
            return (optax.apply_updates(params, updates), state), (state[0].padded_norms, state[0].padded_values)

        return jax.lax.scan(body, (params, tx.init(params)), None, length=7)

    (_, state), (norms, values) = run(params)
    assert int(state[0].measurements) == 3  # steps 0, 3, 6
    assert (norms[0] == norms[2])[:3].all() and not (norms[2] == norms[3])[:3].any()
    assert (values[:, 0] != jnp.roll(values[:, 0], 1)).all()
    assert np.isnan(state[0].weights).all() and state[0].weights.shape == (3,)
    assert state[0].cosines.shape == (3, 3)


@pytest.mark.parametrize("route", ["pmap", "shard_map"])
def test_devices_see_what_one_sees(problem, route):
    params, batch = problem
    tx = monitor(uniform(num_objectives=3), every=1, num_objectives=3)
    _, one = step(tx, params, tx.init(params), batch)
    sharded = partial(step, tx, axis_name="data")
    if route == "pmap":
        parts = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), batch)
        many = jax.pmap(sharded, axis_name="data", in_axes=(None, None, 0), devices=jax.devices()[:2])(
            params, tx.init(params), parts
        )[1]
        many = jax.tree.map(lambda x: x[1], many)
    else:
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
        specs = (PartitionSpec(), PartitionSpec(), PartitionSpec("data"))
        many = jax.jit(jax.shard_map(sharded, mesh=mesh, in_specs=specs, out_specs=PartitionSpec()))(
            params, tx.init(params), batch
        )[1]
    chex.assert_trees_all_close(many, one, rtol=1e-4, atol=1e-6)


def test_runs_in_one_program_measure_at_their_own_steps():
    """And a step at which none measures pays for nothing: the condition stays one."""
    tx = monitor(uniform(), every=2, num_objectives=2)
    params, grads = {"w": jnp.zeros(2)}, {"w": jnp.array([[3.0, 4.0], [-1.0, 0.0]])}
    states = jax.vmap(lambda _: tx.init(params))(jnp.arange(2))
    states = states._replace(count=jnp.array([2, 3]))
    many = jax.vmap(lambda state: tx.update(grads, state, params)[1])
    assert any(equation.primitive.name == "cond" for equation in jax.make_jaxpr(many)(states).eqns)
    after = many(states)
    assert after.measurements.tolist() == [1, 0]
    np.testing.assert_array_equal(after.padded_norms, [[5, 1], [np.nan, np.nan]])
    assert after.padded_conflicts.tolist() == [[[0, 1], [1, 0]], [[0, 0], [0, 0]]]
    assert after.count.tolist() == [3, 4]


def flops(tx, params, batch):
    compiled = jax.jit(partial(step, tx)).lower(params, tx.init(params), batch).compile()
    return compiled.cost_analysis()["flops"]


def test_cost():
    params, batch = make_params(features=64, hidden=64), make_batch(size=64)
    for combiner in (uniform(num_objectives=3), mimo(num_objectives=3)):
        assert flops(monitor(combiner, num_objectives=3), params, batch) <= 1.02 * flops(combiner, params, batch)


def test_errors():
    for bad in (-1, 2.5):
        with pytest.raises(ValueError, match="every must be an integer >= 0"):
            monitor(uniform(), every=bad)
    params = {"w": jnp.zeros(2)}
    for wrap in (monitor, skip_nonfinite):
        with pytest.raises(ValueError, match="num_objectives must be"):
            wrap(uniform(), num_objectives=0)
        tx = wrap(optax.with_extra_args_support(uniform(num_objectives=17)))
        with pytest.raises(ValueError, match="num_objectives=17"):
            tx.update({"w": jnp.ones((17, 2))}, tx.init(params), params)
        tx = wrap(uniform(), num_objectives=3)
        with pytest.raises(ValueError, match="num_objectives=2"):
            tx.update({"w": jnp.ones((2, 2))}, tx.init(params), params)


@pytest.mark.parametrize(
    "wrap", [partial(monitor, every=2), skip_nonfinite, lambda tx, **k: skip_nonfinite(monitor(tx, **k), **k)]
)
def test_wrapped_combiners_keep_all_properties(wrap):
    check_combiner(
        lambda k: wrap(mimo(num_objectives=k), num_objectives=k),
        {"identity_for_one", "permutation_equivariant", "linear_under_scaling"},
        num_objectives=(3,),
    )


# ---- skip_nonfinite --------------------------------------------------------------------------------------------------


def exploding(params, batch, which, how):
    """The losses, one of them with an infinite or undefined gradient, unless how is 0."""
    losses = dict(losses_fn(params, batch))
    losses[which] += how * jnp.sum(params["encoder"]["image"]["kernel"])
    return losses


@pytest.mark.parametrize("form", ["lazy", "stacked"])
@pytest.mark.parametrize("bad", ["fusion", "image"])
def test_a_nonfinite_gradient_is_sat_out_and_named(problem, form, bad):
    params, batch = problem
    tx = skip_nonfinite(mimo(lambda count: 1.0 + count, num_objectives=3), num_objectives=3)

    @jax.jit
    def run(state, how, active):
        values, grads = mmjax.objective_grads(lambda p: exploding(p, batch, bad, how))(params)
        given = grads if form == "lazy" else grads.stacked()
        values = jnp.nan_to_num(values)  # the losses alone do not tell
        return tx.update(given, state, params, values=values, active=active)

    everyone = jnp.ones(3, bool)
    _, good = run(tx.init(params), 0.0, everyone)
    for how in (jnp.inf, jnp.nan):
        updates, state = run(good, how, everyone)
        assert all((u == 0).all() for u in jax.tree.leaves(updates))
        chex.assert_trees_all_equal(state.inner, good.inner)
        assert int(state.skipped) == 1
        assert state.nonfinite.tolist() == [int(n == bad) for n in NAMES]
        np.testing.assert_array_equal(state.weights, good.weights)
    _, state = run(state, 0.0, everyone)
    assert int(state.inner.count) == 2 and int(state.skipped) == 1
    updates, state = run(state, jnp.nan, jnp.array([n != bad for n in NAMES]))  # absent: it has no say
    assert int(state.skipped) == 1 and state.nonfinite.sum() == 1
    assert any((u != 0).any() for u in jax.tree.leaves(updates))


def test_skipped_steps_of_joint_too(problem):
    """Also where the combiner would have left the bad objective out."""
    params, batch = problem
    rows = mmjax.objective_grads(losses_fn)(params, batch)[1].stacked()
    rows["head"]["image"]["bias"] = rows["head"]["image"]["bias"].at[2, 0].set(jnp.inf)
    tx = skip_nonfinite(joint())
    updates, state = tx.update(rows, tx.init(params), params)
    assert all((u == 0).all() for u in jax.tree.leaves(updates))
    assert state.nonfinite[:3].tolist() == [0, 0, 1] and state.nonfinite.shape == (16,)
