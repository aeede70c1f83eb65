"""Every encoder: sizes, padding, precision, devices, recomputation; encoders of one's own; mistakes."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import Config, ModelConfig, validate
from mmjax.config_file import from_json, to_json
from mmjax.data import Planted
from mmjax.models import (
    ENCODERS,
    GRU,
    Conv1D,
    CustomConfig,
    GRUConfig,
    Identity,
    LeNetConfig,
    MLPConfig,
    NnxEncoder,
    PytreeEncoder,
    ResNet18,
    ResNet18Config,
    Transformer,
    TransformerConfig,
    ViT,
    ViTConfig,
    build_model,
)
from mmjax.models.attention import Attention
from mmjax.optim import UniformConfig
from mmjax.train.optimizer import AdamConfig

KEY = jax.random.key(0)
OWN = "models.own_encoders"  # tests/ is on the path
QUICK = {"xla_backend_optimization_level": 0}


def shapes_of(module, x):
    return jax.eval_shape(partial(module.init_with_output, train=False), KEY, x)


def random_variables(module, x):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype) / s.shape[0] ** 0.5, shapes_of(module, x)[1])


def count(module, x):
    return sum(p.size for p in jax.tree.leaves(shapes_of(module, x)[1]["params"]))


def apply(module, variables, *args, **kwargs):
    run = jax.jit(partial(module.apply, **kwargs), static_argnums=2, compiler_options=QUICK)
    return run(variables, *args)


def test_published_and_counted_sizes():
    image = jnp.zeros((1, 32, 32, 3))
    assert count(ResNet18(), image) == 11_176_512 - 49 * 3 * 64 + 9 * 3 * 64  # the 3x3 stem for the 7x7 one
    assert count(ResNet18(norm="group"), image) == count(ResNet18(), image)
    f, w = 12, 30
    assert count(GRU(w), jnp.zeros((1, 24, f))) == 3 * (f * w + w) + 3 * w * w + w
    waves = 80 * 128 + 3 * 128 * 128 + 3 * 128 * 256 + 3 * 256 * 512 + 2 * (128 + 128 + 256 + 512)
    assert count(Conv1D(128), jnp.zeros((1, 8000))) == waves
    block = 4 * (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 4 * 8
    tokens = jnp.zeros((1, 5), jnp.int32)
    assert count(Transformer(8, 3, 2, vocabulary=11), tokens) == 11 * 8 + 5 * 8 + 3 * block + 2 * 8


EXAMPLES = {
    "mlp": ({"width": 7}, (2, 3, 4), (2, 7), None),
    "lenet": ({"channels": 2, "layers": 1}, (2, 8, 8), (2, 16), None),
    "resnet18": ({"width": 2}, (2, 32, 32, 1), (2, 16), (2, 16, 16)),
    "vit": ({"width": 8, "heads": 2, "layers": 2}, (2, 8, 12, 3), (2, 8), (2, 6, 8)),
    "gru": ({"width": 6}, (2, 5, 3), (2, 6), (2, 5, 6)),
    "conv1d": ({"channels": 2, "layers": 3}, (2, 600), (2, 4), (2, 2, 4)),
    "transformer": ({"width": 8, "heads": 2}, (2, 5, 3), (2, 8), (2, 5, 8)),
    "identity": ({}, (2, 3), (2, 3), None),
    "custom": ({"path": f"{OWN}:Linear", "options": {"width": 4}}, (2, 3), (2, 4), None),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_shapes_and_number_formats(kind):
    options, given, vector, tokens = EXAMPLES[kind]
    config = ENCODERS[kind](**options)
    assert config.name == kind
    if hasattr(config, "validate"):
        config.validate()
    x = jnp.zeros(given)
    for dtype in (jnp.float32, jnp.bfloat16):
        out, variables = shapes_of(config.build(dtype=dtype), x)
        assert (out.shape, out.dtype) == (vector, dtype)
        assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
    if tokens is not None:
        out, _ = shapes_of(dataclasses.replace(config, features="tokens").build(dtype=jnp.float32), x)
        assert out.shape == tokens
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_attention_is_the_softmax_of_scaled_products_over_real_positions():
    x = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    context = np.random.default_rng(2).normal(size=(2, 5, 6)).astype(np.float32)
    real = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], bool)
    module = Attention(heads=2)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, KEY, x, context, real)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)
    p = variables["params"]
    sources = {"query": x, "key": context, "value": context}
    q, k, v = ((a @ p[n]["kernel"] + p[n]["bias"]).reshape(2, -1, 2, 2) for n, a in sources.items())
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(2)
    weights = np.exp(scores) * real[:, None, None]
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhts,bshd->bthd", weights, v).reshape(2, 3, 4) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(module.apply(variables, x, context, real), out, rtol=1e-4, atol=1e-5)


def sequences(lengths=(4, 2, 1)):
    """Random sequences [3, 4, 2] with a mask channel; what stands in padding is large."""
    x = np.random.default_rng(3).normal(size=(len(lengths), 4, 2)).astype(np.float32)
    real = np.arange(4) < np.array(lengths)[:, None]
    x[~real] = 100
    return np.concatenate([x, np.where(real, 1, -1)[..., None]], axis=2).astype(np.float32), real


def test_gru_by_its_formula_and_padding_leaves_the_state():
    x, real = sequences()
    real[0, 1], x[0, 1, -1] = False, -1  # a hole inside
    module = GRU(3, mask_channel=True)
    variables = random_variables(module, x)
    p = variables["params"]["layer_0"]

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    state = np.zeros((3, 3))
    states = []
    for t in range(4):
        now = x[:, t, :-1]
        r, z = (sigmoid(now @ p[f"i{g}"]["kernel"] + p[f"i{g}"]["bias"] + state @ p[f"h{g}"]["kernel"]) for g in "rz")
        n = np.tanh(now @ p["in"]["kernel"] + p["in"]["bias"] + r * (state @ p["hn"]["kernel"] + p["hn"]["bias"]))
        state = np.where(real[:, t, None], (1 - z) * n + z * state, state)
        states.append(np.where(real[:, t, None], state, 0))
    np.testing.assert_allclose(apply(module, variables, x, False), state, rtol=1e-4, atol=1e-5)
    tokens = apply(module.clone(features="tokens"), variables, x, False)
    np.testing.assert_allclose(tokens, np.stack(states, 1), rtol=1e-4, atol=1e-5)
    # a scaling and shift of the features, such as a standardisation, leaves the mask channel readable
    moved = np.concatenate([x[..., :-1], (x[..., -1:] - 0.9) / 0.5], axis=2)
    np.testing.assert_array_equal(apply(module, variables, moved, False), apply(module, variables, x, False))


@pytest.mark.parametrize("kind", ["sequences", "tokens"])
def test_transformer_never_sees_padding(kind):
    if kind == "sequences":
        x, real = sequences()
        module = Transformer(8, 2, 2, mask_channel=True)
        other = np.where((real | False)[..., None] | (np.arange(3) == 2), x, -7).astype(np.float32)
    else:
        x = np.array([[3, 5, 2, 1], [4, 1, 0, 0], [6, 0, 0, 0]], np.int32)
        real, other = x != 0, None
        module = Transformer(8, 2, 2, vocabulary=7)
    variables = random_variables(module, x)
    out = apply(module, variables, x, False)
    if other is not None:
        np.testing.assert_array_equal(apply(module, variables, other, False), out)
    short = {"params": variables["params"] | {"position": variables["params"]["position"][:2]}}
    np.testing.assert_allclose(apply(module, short, x[1:2, :2], False), out[1:2], rtol=1e-4, atol=1e-5)
    tokens = apply(module.clone(features="tokens"), variables, x, False)
    np.testing.assert_array_equal(np.any(np.asarray(tokens) != 0, -1), real)
    np.testing.assert_allclose(tokens.sum(1) / real.sum(1, keepdims=True), out, rtol=1e-4, atol=1e-6)
    given = x if kind == "tokens" else x[..., :-1]
    explicit = module.clone(mask_channel=False)
    np.testing.assert_array_equal(apply(explicit, variables, given, False, mask=jnp.asarray(real)), out)


def test_order_matters_to_a_transformer():
    x = np.array([[1, 2, 3, 4]], np.int32)
    module = Transformer(8, 1, 2, vocabulary=7)
    variables = random_variables(module, x)
    assert np.abs(apply(module, variables, x, False) - apply(module, variables, x[:, ::-1], False)).max() > 1e-3


def test_recomputation_changes_memory_and_not_the_gradient():
    image = jax.random.normal(KEY, (2, 8, 8, 1))
    for module, x in ((ViT(8, 1, 2), image), (Transformer(8, 1, 2), image[..., 0]), (ResNet18(1), image)):
        variables = random_variables(module, x)

        def gradient(module, v, x=x):
            def loss(params):
                out = module.apply({**v, "params": params}, x, train=False)
                return jnp.sum(jnp.sin(out))

            return jax.grad(loss)(v["params"])

        again = module.clone(remat=True)
        assert jax.tree.structure(shapes_of(again, x)[1]) == jax.tree.structure(variables)
        assert "remat" in str(jax.make_jaxpr(partial(gradient, again))(variables))
        assert "remat" not in str(jax.make_jaxpr(partial(gradient, module))(variables))
        if isinstance(module, ViT):
            kept, computed = (jax.jit(partial(gradient, m), compiler_options=QUICK)(variables) for m in (module, again))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), kept, computed)


RANDOM = {"gru": GRU(4, 2, 0.5), "transformer": Transformer(4, 1, 2, dropout=0.5, remat=True)}


@pytest.mark.parametrize("module", RANDOM.values(), ids=RANDOM)
def test_dropout_is_the_same_on_any_number_of_devices(module):
    x = jax.random.normal(KEY, (4, 3, 2))
    variables = random_variables(module, x)
    rngs = {"dropout": jax.random.key(7)}
    whole = apply(module, variables, x, True, rngs=rngs)
    split = jax.pmap(
        lambda x: module.clone(axis_name="d").apply(variables, x, True, rngs=rngs),
        axis_name="d",
        devices=jax.devices()[:2],
    )(x.reshape(2, 2, 3, 2))
    np.testing.assert_allclose(split.reshape(whole.shape), whole, rtol=1e-4, atol=1e-6)
    assert np.abs(whole - apply(module, variables, x, True, rngs={"dropout": KEY})).max() > 1e-3


# -- encoders of one's own ---------------------------------------------------------------------------------------------


def test_a_pure_function_plugs_in_by_its_path():
    config = CustomConfig(path=f"{OWN}:function", initialise=f"{OWN}:initialise", options={"width": 5})
    config.validate()
    module = config.build()
    x = jnp.ones((2, 4))
    variables = module.init(KEY, x, train=False)
    assert variables["params"]["function"]["w"].shape == (4, 5)
    plain = module.apply(variables, x, train=False)
    np.testing.assert_allclose(plain, jnp.tanh(x @ variables["params"]["function"]["w"]), rtol=1e-6)
    dropped = module.apply(variables, x, train=True, rngs={"dropout": KEY})
    assert 0 < np.count_nonzero(dropped == 0) < dropped.size
    model = build_model(ModelConfig(encoders={"a": config}), ("a", "b"), 3)
    shapes = jax.eval_shape(model.init, KEY, {"a": x, "b": x})
    assert shapes["params"]["encoders_a"]["function"]["w"].shape == (4, 5)


def test_an_nnx_module_plugs_in_with_its_statistics_and_its_dropout():
    module = CustomConfig(path=f"{OWN}:nnx_net", options={"width": 6}).build()
    assert isinstance(module, NnxEncoder)
    x = jax.random.normal(KEY, (16, 4)) + 3
    variables = module.init(KEY, x, train=False)
    other = module.init(jax.random.key(1), x, train=False)
    kernel = variables["params"]["nnx"]["linear"]["kernel"]
    assert kernel.shape == (4, 6) and np.abs(kernel - other["params"]["nnx"]["linear"]["kernel"]).max() > 0.01
    run = jax.jit(partial(module.apply, train=True, mutable=["batch_stats"]))
    out, after = run(variables, x, rngs={"dropout": KEY})
    assert out.shape == (16, 6)
    stats = after["batch_stats"]["nnx"]["norm"]
    np.testing.assert_allclose(stats["mean"], 0.01 * (x @ kernel).mean(0), rtol=1e-3, atol=1e-5)  # nnx: momentum .99
    again, _ = run(variables, x, rngs={"dropout": KEY})
    np.testing.assert_array_equal(again, out)
    assert np.any(np.asarray(run(variables, x, rngs={"dropout": jax.random.key(1)})[0]) != out)
    gradient = jax.grad(lambda p: jnp.sum(module.apply({**variables, "params": p}, x, train=False)))(
        variables["params"]
    )
    assert np.abs(gradient["nnx"]["linear"]["kernel"]).max() > 0


@jax.tree_util.register_pytree_node_class
class Stand:
    """What equinox makes, as far as the adapter sees: a callable pytree with parameters and static leaves."""

    def __init__(self, weight, bias, activation, order):
        self.weight, self.bias, self.activation, self.order = weight, bias, activation, order

    def tree_flatten(self):
        return (self.weight, self.bias, self.activation, self.order), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)

    def __call__(self, x):
        assert x.ndim == 1  # one example
        return self.activation(self.weight @ x[self.order] + self.bias)


def test_a_module_that_is_a_pytree_plugs_in():
    order = np.array([1, 0])

    def make(key):
        return Stand(jax.random.normal(key, (3, 2)), jnp.ones(3), jnp.tanh, order)

    module = PytreeEncoder(make)
    x = jax.random.normal(KEY, (4, 2))
    variables = module.init(KEY, x, train=False)
    weight, bias = variables["params"]["pytree"]["leaf_0"], variables["params"]["pytree"]["leaf_1"]
    assert len(jax.tree.leaves(variables)) == 2
    expected = np.tanh(x[:, order] @ weight.T + bias)
    np.testing.assert_allclose(module.apply(variables, x, train=False), expected, rtol=1e-5)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (LeNetConfig(), (2, 8, 8), r"encoder of 'a': LeNet .*at least 16 pixels.*got shape \(2, 8, 8, 1\)"),
        (ViTConfig(patch=4), (2, 8, 9), r"encoder of 'a': ViT with patch=4.*got shape \(2, 8, 9, 1\)"),
        (ResNet18Config(), (2, 8), r"encoder of 'a': ResNet-18 needs images.*got shape \(2, 8\)"),
        (GRUConfig(), (2, 8), r"encoder of 'a': GRU needs sequences \[B, T, F\].*got shape \(2, 8\)"),
        (GRUConfig(mask_channel=True), (2, 8, 1), r"'a'.*a feature besides it, got shape \(2, 8, 1\)"),
        (ENCODERS["conv1d"](), (2, 900), r"'a': Conv1D .*at least 1024 samples, got shape \(2, 900, 1\)"),
        (TransformerConfig(), (2, 8), r"'a': Transformer needs sequences.*got shape \(2, 8\)"),
        (ENCODERS["identity"](), (2,), r"'a': identity takes features.*got shape \(2,\)"),
        (
            CustomConfig(path=f"{OWN}:flat", initialise=f"{OWN}:nothing"),
            (2, 3),
            r"the encoder of 'a' must give features \[2, D\].*for inputs \(2, 3\), got \(6,\)",
        ),
    ],
)
def test_a_wrong_shape_names_modality_expected_and_found(config, shape, message):
    model = build_model(ModelConfig(encoders={"a": config}), ("a",), 3)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, KEY, {"a": jnp.zeros(shape)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CustomConfig(path=f"{OWN}:wrong_width", initialise=f"{OWN}:initialise"), r"\(2, 4\): .*dot_general"),
        (CustomConfig(path=f"{OWN}:nnx_net"), r"\(2, 3\): .*dot_general"),
        (CustomConfig(path=f"{OWN}:pair", initialise=f"{OWN}:initialise"), r"must give features .*, got tuple"),
    ],
)
def test_an_own_encoder_s_mistake_names_the_modality_and_what_it_was_given(config, message):
    model = build_model(ModelConfig(encoders={"a": config}), ("a",), 3)
    shape = (2, 3) if config.path.endswith("nnx_net") else (2, 4)
    with pytest.raises(ValueError, match=rf"encoder of 'a'.*{message}"):
        jax.eval_shape(model.init, KEY, {"a": jnp.zeros(shape)})


def test_an_option_that_an_own_encoder_needs_is_asked_for_and_the_modality_named():
    model = ModelConfig(encoders={"a": CustomConfig(path=f"{OWN}:Linear")})
    config = Config(data=Planted(), model=model, method=UniformConfig(), optimizer=AdamConfig())
    with pytest.raises(ValueError, match=r"model.encoders.a: encoder option options: .*missing .*'width'"):
        validate(config)
    model = ModelConfig(encoders={"a": MLPConfig(), "b": MLPConfig(width=0)})
    with pytest.raises(ValueError, match=r"model.encoders.b: encoder option width must be at least 1, got 0"):
        validate(dataclasses.replace(config, model=model))


def test_mistakes_about_masks_and_tokens():
    x, real = sequences()
    for module in (GRU(3), Transformer(8, 1, 2)):
        with pytest.raises(ValueError, match=r"mask must be \[B, T\] = \(3, 4\).*got \(3, 5\)"):
            module.init(KEY, x, False, jnp.ones((3, 5), bool))
    with pytest.raises(ValueError, match="not both"):
        GRU(3, mask_channel=True).init(KEY, x, False, jnp.asarray(real))
    tokens = jnp.ones((2, 3), jnp.int32)
    with pytest.raises(ValueError, match="vocabulary"):
        Transformer().init(KEY, tokens, False)
    with pytest.raises(ValueError, match="id 0 for padding"):
        Transformer(vocabulary=3, mask_channel=True).init(KEY, tokens, False)
    with pytest.raises(ValueError, match=r"int \[B, T\]"):
        Transformer(vocabulary=3).init(KEY, tokens[0], False)
    with pytest.raises(ValueError, match=r"mask must be"):
        Transformer(vocabulary=3).init(KEY, tokens, False, jnp.ones((2, 2), bool))
    assert Identity(jnp.bfloat16).apply({}, tokens, False).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("kind", "options", "what"),
    [
        ("resnet18", {"norm": "none"}, "norm"),
        ("resnet18", {"stem": "tiny"}, "stem"),
        ("resnet18", {"width": 0}, "width"),
        ("vit", {"heads": 3}, "heads"),
        ("vit", {"patch": 0}, "patch"),
        ("vit", {"layers": 0}, "layers"),
        ("gru", {"layers": 0}, "layers"),
        ("gru", {"dropout": 1.0}, "dropout"),
        ("conv1d", {"stride": 0}, "stride"),
        ("conv1d", {"features": "both"}, "features"),
        ("transformer", {"vocabulary": -1}, "vocabulary"),
        ("custom", {}, "path"),
        ("custom", {"path": f"{OWN}:Nothing"}, "path: cannot find"),
        ("custom", {"path": f"{OWN}:NUMBER"}, "path: .* is a int"),
        ("custom", {"path": f"{OWN}:Linear", "options": {"depth": 1}}, "options: .* takes no 'depth'"),
        ("custom", {"path": f"{OWN}:function", "initialise": "here"}, "initialise"),
    ],
)
def test_options_out_of_range_are_named(kind, options, what):
    with pytest.raises(ValueError, match=f"encoder option {what}"):
        ENCODERS[kind](**options).validate()


def test_a_factory_must_give_a_module():
    with pytest.raises(ValueError, match="gave a dict, not a linen module"):
        CustomConfig(path=f"{OWN}:nothing", options={"key": 0, "x": 0}).build()
