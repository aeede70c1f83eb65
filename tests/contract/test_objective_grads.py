"""The contract: order by name, lazy against stacked, structure, features, errors, devices."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from jax.sharding import AxisType, PartitionSpec

import mmjax
from contract.problems import (
    cross_entropy,
    encode,
    expected_rows,
    head_losses,
    head_losses_aux,
    losses_fn,
    make_batch,
    make_params,
)
from mmjax.lazy_gradients import LazyGradientsError

NAMES = ("fusion", "audio", "image")
WEIGHTS = jnp.array([1.0, 0.3, 2.0])


def tree_close(a, b, rtol=1e-5, atol=1e-6):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=atol)


def weighted(rows, weights):
    return jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights, g, strict=True)), *rows)


@pytest.fixture(scope="module")
def problem():
    params, batch = make_params(), make_batch()
    return params, batch, expected_rows(params, batch, NAMES)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jitted", "remat"])
def test_order_is_by_name_however_losses_fn_is_wrapped(problem, wrap):
    params, batch, rows = problem
    values, grads = mmjax.objective_grads(wrap(losses_fn))(params, batch)
    assert grads.names == NAMES
    losses = losses_fn(params, batch)
    np.testing.assert_allclose(values, [losses[n] for n in NAMES], rtol=1e-6)
    stacked = grads.stacked()
    for k in range(3):
        tree_close(jax.tree.map(lambda g, k=k: g[k], stacked), rows[k])
    tree_close(grads.weighted(WEIGHTS), weighted(rows, WEIGHTS))


def test_structure_is_known_through_jit_and_remat(problem):
    params, batch, _ = problem
    for wrap in (lambda f: f, jax.jit, jax.checkpoint):
        touching = mmjax.objective_grads(wrap(losses_fn))(params, batch)[1].touching
        assert jax.tree.structure(touching) == jax.tree.structure(params)
        assert touching["encoder"]["audio"]["kernel"].tolist() == [True, True, False]
        assert touching["encoder"]["image"]["kernel"].tolist() == [True, False, True]
        assert touching["fusion"]["hidden"].tolist() == [True, False, False]
        assert touching["head"]["image"]["bias"].tolist() == [False, False, True]
    lowered = jax.jit(lambda p: mmjax.objective_grads(losses_fn)(p, batch)[1].touching)
    assert lowered(params)["head"]["audio"]["bias"].tolist() == [False, True, False]  # static inside a trace, too


def test_touching_sees_stop_gradient_and_never_reads_values():
    def probed(params, x):
        z = params["a"] * x
        return {"fusion": jnp.sum(z * params["b"]), "probe": jnp.sum(jax.lax.stop_gradient(z) * params["c"])}

    zeros = {"a": jnp.zeros(2), "b": jnp.zeros(2), "c": jnp.zeros(2)}  # every gradient value is zero here
    touching = mmjax.objective_grads(probed)(zeros, jnp.zeros(2))[1].touching
    assert {k: v.tolist() for k, v in touching.items()} == {"a": [True, False], "b": [True, False], "c": [False, True]}


@pytest.mark.parametrize("inside", ["scan", "cond", "while_free_vmap", "custom_vjp"])
def test_touching_never_misses_a_dependence(inside):
    """Through any control flow: a leaf whose gradient is nonzero must be called touched."""

    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))

    def through(x):
        if inside == "scan":
            return jax.lax.scan(lambda c, _: (c * x, c), x, None, length=3)[0]
        if inside == "cond":
            return jax.lax.cond(x[0] > 0, lambda v: v * 3, lambda v: v, x)
        if inside == "custom_vjp":
            return double(x)
        return jax.vmap(lambda v: v**2)(x)

    def losses(params):
        return {"fusion": jnp.sum(through(params["a"])), "m": jnp.sum(through(params["b"]) * params["a"])}

    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    grads = mmjax.objective_grads(losses)(params)[1]
    nonzero = jax.tree.map(lambda g: np.asarray(jnp.any(g != 0, axis=1)), grads.stacked())
    touching = grads.touching
    for leaf in params:
        assert np.all(touching[leaf] >= nonzero[leaf])
    assert touching["b"].tolist() == [False, True]


def test_pairs_hold_the_touching_objectives_only(problem):
    params, batch, rows = problem
    pairs = jax.jit(lambda p: mmjax.objective_grads(losses_fn)(p, batch)[1].pairs())(params)
    assert set(pairs["encoder"]["audio"]["kernel"]) == {"fusion", "audio"}
    assert set(pairs["fusion"]["bias"]) == {"fusion"}
    assert set(pairs["head"]["image"]["bias"]) == {"image"}
    for k, name in ((0, "fusion"), (1, "audio")):
        tree_close(pairs["encoder"]["audio"]["kernel"][name], rows[k]["encoder"]["audio"]["kernel"])


def test_gradients_of_different_objectives_are_distinct(problem):
    """A known benchmark accumulates between its backward calls, so that both "task gradients" are one sum."""
    params, batch, rows = problem
    pair = mmjax.objective_grads(losses_fn)(params, batch)[1].pairs()["encoder"]["image"]["kernel"]
    assert not np.allclose(pair["fusion"], pair["image"], rtol=1e-2)
    tree_close(
        pair["fusion"] + pair["image"], rows[0]["encoder"]["image"]["kernel"] + rows[2]["encoder"]["image"]["kernel"]
    )


@pytest.mark.parametrize("modalities", [(), ("image",), ("a", "b", "zz", "fusion2", "audio")])
def test_any_number_of_modalities(modalities):
    def losses(params):
        return {"fusion": params["x"] ** 2} | {m: (i + 2) * params["x"] for i, m in enumerate(modalities)}

    values, grads = mmjax.objective_grads(losses)({"x": jnp.float32(3.0)})
    assert grads.names == ("fusion", *sorted(modalities))
    assert values.shape == (1 + len(modalities),)
    by_name = dict(zip(grads.names, grads.stacked()["x"].tolist(), strict=True))
    assert by_name == {"fusion": 6.0} | {m: i + 2.0 for i, m in enumerate(modalities)}


def test_aux_comes_out_once(problem):
    params, batch, _ = problem
    calls = []

    def with_aux(p, b):
        calls.append(1)
        return losses_fn(p, b), {"count": jnp.float32(7)}

    values, grads, aux = mmjax.objective_grads(with_aux, has_aux=True)(params, batch)
    assert len(calls) == 1  # nothing else is traced until it is asked for
    assert aux == {"count": 7}
    grads.weighted(WEIGHTS)
    assert len(calls) == 1
    values, grads, aux = mmjax.objective_grads(
        lambda p, z, b: (head_losses(p, z, b), "head"), encode=lambda p, b: (encode(p, b), "stats"), has_aux=True
    )(params, batch)
    assert aux == ("stats", "head")


# ---- features ----------------------------------------------------------------------------------------------------


def feature_grads(params, batch):
    call = mmjax.objective_grads(
        lambda p, z, b: head_losses_aux(p, z, b), encode=lambda p, b: (encode(p, b), None), has_aux=True
    )
    return call(params, batch)[1]


def test_features_pulled_back_are_the_parameter_gradients(problem):
    params, batch, rows = problem
    grads = feature_grads(params, batch)
    tree_close(grads.weighted(WEIGHTS), weighted(rows, WEIGHTS))
    tree_close(grads.stacked(), jax.tree.map(lambda *g: jnp.stack(g), *rows))
    features = grads.features()
    cotangents, direct = features.cotangents, features.direct
    assert cotangents["audio"].shape == (3, 8, 4)
    assert features.touching["audio"].tolist() == [True, True, False]
    assert features.direct_touching["encoder"]["audio"]["kernel"].tolist() == [False] * 3
    assert features.direct_touching["fusion"]["bias"].tolist() == [True, False, False]
    np.testing.assert_array_equal(direct["encoder"]["audio"]["kernel"], 0)
    for k in range(3):
        row = features.pull_back({m: c[k] for m, c in cotangents.items()}, jax.tree.map(lambda d, k=k: d[k], direct))
        tree_close(row, rows[k])


def tied(p, b):
    """One encoder for all modalities."""
    return {m: jnp.tanh(x @ p["encoder"]["audio"]["kernel"]) for m, x in b["inputs"].items()}


def partly_tied(p, b):
    own = encode(p, b)
    return {m: own[m] + own["audio"] for m in own}


def without_parameters(p, b):
    return encode(p, b) | {"image": b["inputs"]["image"][:, :4]}


def crossed_heads(p, z, b):
    """Features used by several heads, a parameter of an encoder in a head, one objective that reaches nothing."""
    swapped = head_losses(p, {"audio": z["image"], "image": z["audio"]}, b)
    decay = jnp.sum(p["encoder"]["image"]["kernel"] ** 2)
    return head_losses(p, z, b) | {
        "nothing": jnp.float32(2.0),
        "other": swapped["audio"],
        "zz": swapped["image"] + decay,
    }


@pytest.mark.parametrize(
    ("encoder", "heads"),
    [(encode, crossed_heads), (tied, head_losses), (partly_tied, head_losses), (without_parameters, crossed_heads)],
)
def test_objectives_share_a_backward_pass_only_where_they_cannot_mix(problem, encoder, heads):
    params, batch, _ = problem
    _, grads = mmjax.objective_grads(heads, encode=encoder)(params, batch)
    rows = [jax.grad(lambda p, n=n: heads(p, encoder(p, batch), batch)[n])(params) for n in grads.names]
    tree_close(grads.stacked(), jax.tree.map(lambda *g: jnp.stack(g), *rows))
    pairs = grads.pairs()["encoder"]["audio"]["kernel"]
    for k, name in enumerate(grads.names):
        expected = rows[k]["encoder"]["audio"]["kernel"]
        tree_close(pairs.get(name, jnp.zeros_like(expected)), expected)


def test_last_layer_samples_are_pulled_back_one_by_one(problem):
    """γ = the true cotangent at the last layer's input must come back as the true cotangent at the features."""
    params, batch, _ = problem
    features = feature_grads(params, batch).features()
    z = encode(params, batch)
    _, aux = head_losses_aux(params, z, batch)

    def gamma(name):
        a, w, b = aux["last_layer"][name]
        return jax.grad(lambda a: cross_entropy(a @ w + b, batch["label"]))(a)

    samples = {n: jnp.stack([gamma(n), -2 * gamma(n)]) for n in NAMES}
    back = features.from_last_layer(samples)
    assert back["image"].shape == (2, 3, 8, 4)
    tree_close({m: b[0] for m, b in back.items()}, features.cotangents)
    tree_close(back["image"][1], -2 * features.cotangents["image"])


@pytest.mark.parametrize("kind", [FrozenDict, OrderedDict])
def test_any_mapping_of_losses_and_features(problem, kind):
    params, batch, rows = problem
    _, grads = mmjax.objective_grads(
        lambda p, z, b: kind(head_losses(p, z, b)), encode=lambda p, b: kind(encode(p, b))
    )(params, batch)
    tree_close(grads.weighted(WEIGHTS), weighted(rows, WEIGHTS))
    features = grads.features()
    assert sorted(features.cotangents) == ["audio", "image"]
    row = features.pull_back(
        {m: c[1] for m, c in features.cotangents.items()}, jax.tree.map(lambda d: d[1], features.direct)
    )
    tree_close(row, rows[1])


def undefined(p):
    """NaN in value and gradient, in the encoder and beyond."""
    return jnp.sqrt(-1.0 - jnp.sum(p["encoder"]["image"]["kernel"] ** 2) - jnp.sum(p["head"]["image"]["bias"] ** 2))


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("method", ["uniform", "mimo", "joint"])
def test_an_inactive_objective_may_be_nan(problem, encoded, method):
    params, batch, rows = problem

    def poisoned(p, z, b):
        losses = head_losses(p, z, b)
        return losses | {"image": losses["image"] + undefined(p) * jnp.sum(z["image"])}

    call = (
        mmjax.objective_grads(poisoned, encode=encode)
        if encoded
        else mmjax.objective_grads(lambda p, b: poisoned(p, encode(p, b), b))
    )
    tx = getattr(mmjax.optim, method)()
    active = jnp.array([True, True, False])

    def step(p, active):
        values, grads = call(p, batch)
        extra = {"values": values, "active": active, "touching": grads.touching}
        lazy, state = tx.update(grads, tx.init(p), p, **extra)
        return values, lazy, tx.update(grads.stacked(), tx.init(p), p, **extra)[0], state.record.padded[:3]

    values, lazy, stacked, weights = jax.jit(step)(params, active)
    assert np.isnan(values[2]) and weights[2] == 0
    tree_close(lazy, stacked)
    expected = weighted(rows, weights)
    if method == "joint":
        expected["head"]["audio"] = rows[1]["head"]["audio"]  # a probe keeps its own gradient
    tree_close(lazy, expected)


def test_selecting_the_active_costs_one_encoder_backward():
    params, batch = make_params(features=4, hidden=4), make_batch(size=64)

    def deep(p, b):
        return {m: jnp.tanh(x @ p["encoder"][m]["wide"]) @ p["encoder"][m]["kernel"] for m, x in b["inputs"].items()}

    for m in params["encoder"]:
        params["encoder"][m] = {"wide": jnp.ones((6, 512)), "kernel": jnp.ones((512, 4))}

    def cost(active):
        def gradient(p, a):
            return mmjax.objective_grads(head_losses, encode=deep)(p, batch)[1].weighted(WEIGHTS, a)

        return jax.jit(gradient).lower(params, active).compile().cost_analysis()["flops"]

    assert cost(jnp.ones(3, bool)) <= 1.05 * cost(None)


# ---- parts -------------------------------------------------------------------------------------------------------


def test_parts_are_the_pairs_of_each_part(problem):
    params, batch, _ = problem
    grads = mmjax.objective_grads(losses_fn, batch_argnums=1)(params, batch)[1]
    parts = grads.parts(4)
    assert set(parts["encoder"]["image"]["kernel"]) == {"fusion", "image"}
    for i in range(4):
        part = jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], batch)
        rows = expected_rows(params, part, NAMES)
        tree_close(parts["encoder"]["image"]["kernel"]["image"][i], rows[2]["encoder"]["image"]["kernel"])
        tree_close(parts["fusion"]["hidden"]["fusion"][i], rows[0]["fusion"]["hidden"])


# ---- errors ------------------------------------------------------------------------------------------------------


def test_errors_say_what_would_be_right(problem):
    params, batch, _ = problem
    with pytest.raises(ValueError, match='"fusion"'):
        mmjax.objective_grads(lambda p: {"image": p})(1.0)
    with pytest.raises(ValueError, match=r"'m' must be a real scalar, got shape \(2,\)"):
        mmjax.objective_grads(lambda p: {"fusion": p, "m": jnp.ones(2)})(1.0)
    with pytest.raises(ValueError, match="dict"):
        mmjax.objective_grads(lambda p: p)(1.0)
    with pytest.raises(ValueError, match="batch_argnums"):
        mmjax.objective_grads(losses_fn, batch_argnums=0)
    with pytest.raises(ValueError, match="name its losses by strings"):
        mmjax.objective_grads(lambda p: {"fusion": p, 1: p})(1.0)
    with pytest.raises(ValueError, match="losses_fn must return \\(result, aux\\); it returned dict"):
        mmjax.objective_grads(lambda p: {"fusion": p, "m": p}, has_aux=True)(1.0)
    with pytest.raises(ValueError, match="encode must return \\(result, aux\\); it returned dict"):
        mmjax.objective_grads(head_losses_aux, encode=encode, has_aux=True)(params, batch)
    with pytest.raises(ValueError, match="encode must return a dict"):
        mmjax.objective_grads(head_losses, encode=lambda p, b: (p, b))(params, batch)
    with pytest.raises(ValueError, match="'mask' must be a floating-point array, got int32"):
        mmjax.objective_grads(head_losses, encode=lambda p, b: encode(p, b) | {"mask": b["label"]})(params, batch)
    with pytest.raises(ValueError, match=r"params\['steps'\] has dtype int32"):
        mmjax.objective_grads(losses_fn)(params | {"steps": jnp.int32(1)}, batch)
    with pytest.raises(ValueError, match="only arguments 0 \\(params\\) to 1"):
        mmjax.objective_grads(losses_fn, batch_argnums=2)(params, batch)
    with pytest.raises(ValueError, match="holds a scalar"):
        mmjax.objective_grads(losses_fn, batch_argnums=1)(params, batch | {"scale": 1.0})[1].parts(2)
    _, grads = mmjax.objective_grads(losses_fn)(params, batch)
    with pytest.raises(ValueError, match=r"active must have shape \(3,\)"):
        grads.weighted(WEIGHTS, jnp.ones(2, bool))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        grads.weighted(jnp.ones(2))
    with pytest.raises(ValueError, match="encode="):
        grads.features()
    with pytest.raises(ValueError, match="batch_argnums"):
        grads.parts(2)
    with pytest.raises(ValueError, match="8 does not divide into 3"):
        mmjax.objective_grads(losses_fn, batch_argnums=1)(params, batch)[1].parts(3)
    features = feature_grads(params, batch).features()
    with pytest.raises(ValueError, match="pull_back needs"):
        features.pull_back({"audio": jnp.ones((8, 4))}, params)
    with pytest.raises(ValueError, match="no objective axis"):
        features.pull_back(features.cotangents, params)
    with pytest.raises(ValueError, match="from_last_layer needs one array"):
        features.from_last_layer({"fusion": jnp.ones((2, 8, 5))})
    with pytest.raises(ValueError, match="as many samples"):
        features.from_last_layer(
            {"fusion": jnp.ones((2, 8, 5)), "audio": jnp.ones((3, 8, 4)), "image": jnp.ones((2, 8, 4))}
        )
    no_aux = mmjax.objective_grads(head_losses, encode=encode)(params, batch)[1].features()
    with pytest.raises(ValueError, match="last_layer"):
        no_aux.from_last_layer({n: jnp.ones((2, 8, 4)) for n in NAMES})


def test_lazy_gradients_out_of_place_are_a_clear_error(problem):
    params, batch, _ = problem
    compute = mmjax.objective_grads(losses_fn)
    with pytest.raises(LazyGradientsError, match="returned from jit"):
        jax.jit(lambda p: compute(p, batch)[1])(params)
    _, grads = compute(params, batch)
    for tx in (
        optax.chain(optax.clip_by_global_norm(1.0), mmjax.optim.uniform()),
        optax.MultiSteps(mmjax.optim.uniform(), 2).gradient_transformation(),
        optax.apply_if_finite(mmjax.optim.uniform(), 3),
        optax.partition({"all": mmjax.optim.uniform()}, "all"),
    ):
        with pytest.raises(LazyGradientsError, match="first in optax.chain"):
            tx.update(grads, tx.init(params), params)
    with pytest.raises(LazyGradientsError):
        jax.lax.cond(True, lambda g: 1, lambda g: 2, grads)


def test_no_caching_across_traces(problem):
    """Asked for inside a branch and again outside: nothing traced in the branch may leak."""
    params, batch, rows = problem

    def step(p):
        _, grads = mmjax.objective_grads(losses_fn)(p, batch)
        inside = jax.lax.cond(
            jnp.sum(p["fusion"]["bias"]) > -1e9,
            lambda: optax.tree.norm(grads.stacked()) + 0 * grads.touching["fusion"]["bias"][0],
            lambda: 0.0,
        )
        return inside, grads.stacked(), grads.pairs()

    _, stacked, _ = jax.jit(step)(params)
    tree_close(jax.tree.map(lambda g: g[2], stacked), rows[2])


# ---- devices -----------------------------------------------------------------------------------------------------


def synchronised_losses(params, features, batch, axis_name=None):
    """Losses with a batch statistic in the features, so that a device's loss depends on the others' examples."""

    def mean(x):
        local = jnp.mean(x, axis=0)
        return local if axis_name is None else jax.lax.pmean(local, axis_name)

    normalised = {m: z - mean(z) for m, z in features.items()}
    return head_losses(params, normalised, batch)


@pytest.mark.parametrize("route", ["pmap", "shard_map", "shard_map_unchecked"])
def test_devices_give_the_numbers_of_one(problem, route):
    params, batch, _ = problem
    weights = WEIGHTS

    def everything(p, b, axis_name=None):
        values, grads = mmjax.objective_grads(
            partial(synchronised_losses, axis_name=axis_name), encode=encode, axis_name=axis_name
        )(p, b)
        features = grads.features()
        cotangents = {m: jnp.tensordot(weights, c, axes=1) for m, c in features.cotangents.items()}
        direct = jax.tree.map(lambda d: jnp.tensordot(weights, d, axes=1), features.direct)
        return {
            "values": values,
            "weighted": grads.weighted(weights),
            "selected": grads.weighted(weights, jnp.array([True, False, True])),
            "left out": grads.weighted(weights, np.array([True, False, True])),
            "none": grads.weighted(weights, np.zeros(3, bool)),
            "stacked": grads.stacked(),
            "pairs": grads.pairs(),
            "pulled": features.pull_back(cotangents, direct),
            "squares": {
                m: jax.lax.psum(jnp.sum(c**2), axis_name) if axis_name else jnp.sum(c**2)
                for m, c in features.cotangents.items()
            },
        }

    one = jax.jit(everything)(params, batch)
    tree_close(one["selected"], one["left out"])
    tree_close(one["none"], jax.tree.map(jnp.zeros_like, params))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    if route == "pmap":
        shards = jax.tree.map(lambda x: x.reshape(8, 1, *x.shape[1:]), batch)
        many = jax.pmap(partial(everything, axis_name="data"), axis_name="data", in_axes=(None, 0))(params, shards)
        many = jax.tree.map(lambda x: x[3], many)
    else:
        many = jax.jit(
            jax.shard_map(
                partial(everything, axis_name="data"),
                mesh=mesh,
                in_specs=(PartitionSpec(), PartitionSpec("data")),
                out_specs=PartitionSpec(),
                check_vma=route == "shard_map",
            )
        )(params, batch)
    tree_close(many, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 8])
def test_parts_are_the_same_on_any_number_of_devices(problem, parts):
    params, batch, _ = problem

    def of(p, b, axis_name=None):
        return mmjax.objective_grads(losses_fn, batch_argnums=1, axis_name=axis_name)(p, b)[1].parts(parts)

    shards = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    many = jax.pmap(partial(of, axis_name="d"), axis_name="d", in_axes=(None, 0), devices=jax.devices()[:4])(
        params, shards
    )
    tree_close(jax.tree.map(lambda x: x[1], many), of(params, batch))
