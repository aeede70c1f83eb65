"""Known parameter counts, shapes, structure, batch statistics, device-independent dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import mmjax
from mmjax.config import ModelConfig
from mmjax.models import (
    MLP,
    ConcatConfig,
    ConcatFusion,
    Dropout,
    Head,
    LeNet,
    LeNetConfig,
    MLPConfig,
    MultiModal,
    Norm,
    build_model,
    parameter_groups,
)
from mmjax.models.layers import max_pool_2x2


def count(module, *args):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, train=False))
    return sum(p.size for p in jax.tree.leaves(shapes["params"]))


IMAGE, SOUND = jnp.zeros((1, 28, 28, 1)), jnp.zeros((1, 112, 112, 1))


@pytest.mark.parametrize(
    ("module", "example", "parameters"),
    [
        (LeNet(3, 3), IMAGE, 3_567),
        (Head(10, (100,)), jnp.zeros((1, 24)), 3_510),
        (LeNet(3, 5), SOUND, 55_695),
        (Head(10, (100,)), jnp.zeros((1, 96)), 10_710),
        (LeNet(6, 3), IMAGE, 13_938),
        (LeNet(6, 5), SOUND, 221_874),
        (ConcatFusion(10, (100,)), {"image": jnp.zeros((1, 48)), "audio": jnp.zeros((1, 192))}, 25_110),
    ],
)
def test_published_parameter_counts(module, example, parameters):
    assert count(module, example) == parameters


def test_lenet_feature_sizes():
    for module, example, features in ((LeNet(3, 3), IMAGE, 24), (LeNet(3, 5), SOUND, 96), (LeNet(6, 5), SOUND, 192)):
        out = jax.eval_shape(lambda m=module, x=example: m.init_with_output(jax.random.key(0), x, train=False)[0])
        assert out.shape == (1, features)
    with pytest.raises(ValueError, match="at least 16 pixels"):
        LeNet(3, 3).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)


@pytest.mark.parametrize("size", [4, 7])
def test_max_pool_against_the_windowed_one(size):
    import flax.linen as nn

    x = jax.random.normal(jax.random.key(0), (2, size, size, 3))
    expected = nn.max_pool(x, (2, 2), strides=(2, 2))
    np.testing.assert_array_equal(max_pool_2x2(x), expected)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(max_pool_2x2(x))))(x)
    np.testing.assert_allclose(
        gradient, jax.grad(lambda x: jnp.sum(jnp.sin(nn.max_pool(x, (2, 2), strides=(2, 2)))))(x)
    )


def small_model(**options):
    return MultiModal(
        encoders={"audio": MLP(6, 1, norm="batch"), "image": MLP(5, 1)},
        fusion=ConcatFusion(3, (4,)),
        heads={"audio": Head(3), "image": Head(3)},
        **options,
    )


BATCH = {
    "audio": jax.random.normal(jax.random.key(1), (8, 4)),
    "image": jax.random.normal(jax.random.key(2), (8, 2, 3)),
}


def test_outputs_and_last_layer():
    model = small_model()
    variables = model.init(jax.random.key(0), BATCH)
    out = model.apply(variables, BATCH)
    assert out.logits.shape == (8, 3) and set(out.by_objective) == {"fusion", "audio", "image"}
    for name, logits in out.by_objective.items():
        inputs, kernel, bias = out.last_layer[name]
        np.testing.assert_allclose(inputs @ kernel + bias, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out.last_layer["image"].inputs, out.features["image"])
    twice = model.apply(variables, model.apply(variables, BATCH, method="encode"), method="decide")
    np.testing.assert_array_equal(twice.logits, out.logits)


def test_structure_of_probe_heads():
    label = jnp.arange(8) % 3

    def touching(model):
        variables = model.init(jax.random.key(0), BATCH)

        def losses_fn(params):
            out = model.apply({**variables, "params": params}, BATCH, train=True, mutable=["batch_stats"])[0]
            return {n: -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(8), label]) for n, z in out.by_objective.items()}

        return mmjax.objective_grads(losses_fn)(variables["params"])[1].touching

    own = touching(small_model())
    assert own["encoders_image"]["dense_0"]["kernel"].tolist() == [True, False, True]
    probed = touching(small_model(probe_heads=True))
    assert probed["encoders_image"]["dense_0"]["kernel"].tolist() == [True, False, False]
    assert probed["heads_image"]["last"]["kernel"].tolist() == [False, False, True]


def test_groups_follow_the_modules():
    variables = small_model().init(jax.random.key(0), BATCH)
    groups = parameter_groups(variables["params"])
    assert jax.tree.structure(groups) == jax.tree.structure(variables["params"])
    assert set(jax.tree.leaves(groups)) == {"encoder/audio", "encoder/image", "fusion", "head/audio", "head/image"}


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    config = ModelConfig(encoders={"image": LeNetConfig(channels=2, layers=1)}, dtype="bfloat16")
    model = build_model(config, ("audio", "image"), 3)
    inputs = {"audio": jnp.ones((2, 4)), "image": jnp.ones((2, 8, 8, 1))}
    variables = model.init(jax.random.key(0), inputs)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = model.apply(variables, inputs)
    assert out.features["image"].dtype == jnp.bfloat16 and out.logits.dtype == jnp.float32


def test_dropout_is_the_same_on_any_number_of_devices():
    x = jnp.ones((8, 16))
    key = jax.random.key(0)
    one = Dropout(0.5).apply({}, x, True, rngs={"dropout": key})
    assert 0.2 < float(jnp.mean(one == 0)) < 0.8 and set(np.unique(one)) == {0.0, 2.0}
    assert not np.array_equal(one[0], one[1])
    split = jax.pmap(
        lambda x: Dropout(0.5, axis_name="d").apply({}, x, True, rngs={"dropout": key}),
        axis_name="d",
        devices=jax.devices()[:4],
    )(x.reshape(4, 2, 16))
    np.testing.assert_array_equal(split.reshape(8, 16), one)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, False), x)


def test_batch_norm_runs_over_the_global_batch():
    x = jax.random.normal(jax.random.key(0), (8, 3)) * jnp.arange(1, 9)[:, None]
    one = Norm("batch")
    variables = one.init(jax.random.key(0), x, False)
    expected, stats = one.apply(variables, x, True, mutable=["batch_stats"])
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    split = jax.shard_map(
        lambda v, x: Norm("batch", axis_name="d").apply(v, x, True, mutable=["batch_stats"]),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("d")),
        out_specs=(PartitionSpec("d"), PartitionSpec()),
    )
    got, got_stats = jax.jit(split)(variables, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got_stats, stats)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="audioo"):
        build_model(ModelConfig(encoders={"audioo": MLPConfig()}), ("audio",), 3)
    with pytest.raises(ValueError, match="\"fusion\"|'fusion'"):
        model = MultiModal(encoders={"fusion": MLP(2)}, fusion=ConcatFusion(2), heads={"fusion": Head(2)})
        model.init(jax.random.key(0), {"fusion": jnp.ones((1, 2))})
    with pytest.raises(ValueError, match="at least one modality"):
        MultiModal(encoders={}, fusion=ConcatFusion(2), heads={}).init(jax.random.key(0), {})
    variables = small_model().init(jax.random.key(0), BATCH)
    with pytest.raises(ValueError, match=r"inputs are of modalities \['audio'\]"):
        small_model().apply(variables, {"audio": BATCH["audio"]})
    with pytest.raises(ValueError, match="width must be at least 1"):
        MLPConfig(width=0).validate()
    with pytest.raises(ValueError, match="hidden"):
        ConcatConfig(hidden=(0,)).validate()
    with pytest.raises(ValueError, match="norm must be one of"):
        Norm("layer").apply({}, jnp.ones((1, 2)), False)
