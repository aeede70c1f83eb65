"""Products of experts: known answers, what is shared (nothing), what the published model has for parameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.config import Config, TrainConfig
from mmjax.config_file import load_config
from mmjax.data import Splits, Task, batch_indices, from_arrays, gather
from mmjax.losses import example_losses
from mmjax.models import (
    ExpertsConfig,
    LateConfig,
    LeNetConfig,
    MLPConfig,
    TransformerConfig,
    parameter_groups,
    product_of_experts,
)
from mmjax.models.fusion import ConcatConfig, LowRankTensorConfig
from mmjax.optim import METHODS, BogcConfig, JointConfig, MMParetoConfig, UniformConfig
from mmjax.train.experiment import build_classifier, build_experiment
from mmjax.train.loop import fit
from mmjax.train.optimizer import SGDConfig
from mmjax.train.run import evaluate, load

CLASSES, LABELS = Task("classification", 4), Task("multilabel", 3)


def random_logits(names="abc", shape=(5, 4), scale=3.0):
    keys = jax.random.split(jax.random.key(0), len(names))
    return {m: scale * jax.random.normal(k, shape) for m, k in zip(names, keys, strict=True)}


# -- the product -------------------------------------------------------------------------------------------------------


def test_two_experts_by_brute_force():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    logits = {"p": jnp.log(p)[None] + 5.0, "q": jnp.log(q)[None] - 2.0}  # what is added to all logits says nothing
    by_hand = p * q / np.sum(p * q)
    np.testing.assert_allclose(np.exp(product_of_experts("classification", logits)[0]), by_hand, rtol=1e-6)


def test_the_product_is_the_normalised_product_of_probabilities_and_its_loss_that_of_summed_logits():
    logits, label = random_logits(), jnp.array([0, 1, 2, 3, 0])
    probabilities = np.prod([jax.nn.softmax(x.astype(jnp.float32)) for x in logits.values()], axis=0)
    product = product_of_experts("classification", logits)
    np.testing.assert_allclose(np.exp(product), probabilities / probabilities.sum(-1, keepdims=True), rtol=1e-4)
    summed = sum(logits.values())
    np.testing.assert_allclose(-product[jnp.arange(5), label], example_losses(CLASSES, summed, label), rtol=1e-5)
    # and a second normalisation changes nothing
    np.testing.assert_allclose(
        example_losses(CLASSES, product, label), example_losses(CLASSES, summed, label), rtol=1e-5
    )


def test_multi_label_products_by_hand():
    """Each label is a product of Bernoulli experts: .8 and .5 give .8; .8 and .8 give .64/(.64 + .04)."""
    p, q = np.array([[0.8, 0.8, 0.3]]), np.array([[0.5, 0.8, 0.9]])
    logits = {"p": jnp.log(p / (1 - p)), "q": jnp.log(q / (1 - q))}
    by_hand = p * q / (p * q + (1 - p) * (1 - q))
    np.testing.assert_allclose(np.exp(product_of_experts("multilabel", logits)), by_hand, rtol=1e-6)
    np.testing.assert_allclose(by_hand[0, :2], [0.8, 0.64 / 0.68])
    label = jnp.array([[1.0, 0.0, 1.0]])
    cross_entropy = -np.mean(np.log(np.where(label > 0, by_hand, 1 - by_hand)))
    np.testing.assert_allclose(example_losses(LABELS, sum(logits.values()), label)[0], cross_entropy, rtol=1e-5)


def test_a_binary_task_is_the_same_as_two_classes_and_as_one_label():
    two = random_logits("ab", (6, 2))
    one = {m: x[:, 1:] - x[:, :1] for m, x in two.items()}
    np.testing.assert_allclose(
        product_of_experts("classification", two)[:, 1:], product_of_experts("multilabel", one), rtol=1e-5, atol=1e-6
    )


# -- the model ---------------------------------------------------------------------------------------------------------


def build(kind="i2m2", task=CLASSES, modalities=("a", "b"), probe_heads=False, **options):
    encoders = {m: MLPConfig(width=4, depth=1) for m in modalities}
    inter = {m: MLPConfig(width=6, depth=1) for m in modalities}
    config = ExpertsConfig(experts=kind, encoders=encoders, inter_encoders=inter, **options)
    return config.build(modalities, task, probe_heads=probe_heads)


def inputs(modalities=("a", "b"), batch=3):
    keys = jax.random.split(jax.random.key(1), len(modalities))
    return {m: jax.random.normal(k, (batch, 5 + i)) for i, (m, k) in enumerate(zip(modalities, keys, strict=True))}


@pytest.mark.parametrize("task", [CLASSES, LABELS, Task("classification", 2), Task("multilabel", 1)])
@pytest.mark.parametrize("modalities", [("a", "b"), ("a", "b", "zoom")])
@pytest.mark.parametrize("kind", ["intra", "inter", "i2m2"])
def test_outputs_hold_every_expert_and_their_product(kind, modalities, task):
    model, batch = build(kind, task, modalities), inputs(modalities)
    outputs, variables = model.init_with_output(jax.random.key(0), batch)
    experts = {"intra": modalities, "inter": (), "i2m2": ("inter", *modalities)}[kind]
    assert set(outputs.unimodal_logits) == set(experts) and model.objectives == ("fusion", *sorted(experts))
    told = outputs.log_probabilities
    if experts:
        wanted = product_of_experts(task.kind, {e: told[e] for e in experts} if task.kind == "classification" else
                                    outputs.unimodal_logits)  # fmt: skip
        np.testing.assert_allclose(told["fusion"], wanted, rtol=1e-4, atol=1e-5)
    if task.kind == "classification":
        np.testing.assert_allclose(jnp.sum(jnp.exp(told["fusion"]), axis=-1), 1, rtol=1e-5)
    # the product's last layer gives its logits, for what looks at last layers
    last = outputs.last_layer["fusion"]
    np.testing.assert_allclose(last.inputs @ last.kernel + last.bias, outputs.logits, rtol=1e-4, atol=1e-5)
    assert variables["params"].keys() == {f"{what}_{e}" for what in ("encoders", "heads") for e in experts or ["inter"]}


def test_no_expert_shares_a_parameter_with_another():
    model, batch = build(), inputs()
    variables = model.init(jax.random.key(0), batch)
    for expert in ("a", "b", "inter"):

        def loss(params, expert=expert):
            return jnp.sum(model.apply({"params": params}, batch).unimodal_logits[expert] ** 2)

        gradient = jax.grad(loss)(variables["params"])
        touched = {name for name, tree in gradient.items() if any(jnp.any(x != 0) for x in jax.tree.leaves(tree))}
        assert touched == {f"encoders_{expert}", f"heads_{expert}"}
    groups = jax.tree.leaves(parameter_groups(variables["params"]))
    assert set(groups) == {f"{what}/{e}" for what in ("encoder", "head") for e in ("a", "b", "inter")}


def test_as_published_the_product_alone_trains_and_experts_carry_a_stop_gradient():
    model, batch = build(probe_heads=True), inputs()
    params = model.init(jax.random.key(0), batch)["params"]
    by_expert = jax.grad(lambda p: sum(jnp.sum(x) for x in model.apply({"params": p}, batch).unimodal_logits.values()))
    assert not any(jnp.any(x != 0) for x in jax.tree.leaves(by_expert(params)))
    by_product = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, batch).logits ** 2))(params)
    assert all(any(jnp.any(x != 0) for x in jax.tree.leaves(tree)) for tree in by_product.values())


def test_one_loss_reaches_all_experts_with_the_gradient_of_summed_logits():
    """∂loss/∂logits of each expert is softmax(Σ) − onehot, the same for all."""
    logits, label = random_logits(), jnp.array([0, 1, 2, 3, 0])

    def loss(z):
        return -jnp.sum(product_of_experts("classification", z)[jnp.arange(5), label])

    by_hand = jax.nn.softmax(sum(logits.values())) - jax.nn.one_hot(label, 4)
    for gradient in jax.grad(loss)(logits).values():
        np.testing.assert_allclose(gradient, by_hand, atol=1e-6)


def test_an_expert_left_out_is_out_of_the_product():
    model, batch = build("intra"), inputs()
    outputs, variables = model.init_with_output(jax.random.key(0), batch)
    without_b = jnp.array([[True, False]] * 3)
    seen = model.apply(variables, batch, present=without_b)
    np.testing.assert_array_equal(seen.logits, outputs.unimodal_logits["a"])
    everything = model.apply(variables, batch, present=jnp.ones((3, 2), bool))
    np.testing.assert_array_equal(everything.logits, outputs.logits)


def test_what_an_absent_modality_holds_changes_nothing():
    model, batch = build(), inputs()
    variables = model.init(jax.random.key(0), batch)
    without_b = jnp.array([[True, False], [True, True], [True, False]])
    poisoned = batch | {"b": jnp.where(without_b[:, 1:], batch["b"], jnp.nan)}
    outputs = model.apply(variables, poisoned, present=without_b)
    wanted = outputs.unimodal_logits["a"] + outputs.unimodal_logits["inter"]
    np.testing.assert_allclose(outputs.logits[0], wanted[0], rtol=1e-6)
    assert outputs.here("b").tolist() == [False, True, False] and outputs.here("inter") is None
    assert outputs.present_by_objective.tolist() == [[True, False, True], [True, True, True], [True, False, True]]


def test_tokens_go_to_the_inter_expert_as_tokens():
    tokens = TransformerConfig(width=8, heads=2, layers=1, vocabulary=5, features="tokens")
    config = ExpertsConfig(encoders={"text": tokens}, inter_encoders={}, fusion=LowRankTensorConfig(rank=2, width=4))
    model = config.build(("image", "text"), CLASSES)
    batch = {"image": jnp.ones((2, 4, 4, 1)), "text": jnp.array([[1, 2, 0], [3, 0, 0]], jnp.int32)}
    outputs, _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), batch))
    assert outputs.features["inter.text"].shape == outputs.features["text"].shape == (2, 3, 8)


def test_published_parameter_counts():
    """METHODS: image 3,567 + 3,510; audio 55,695 + 10,710; concatenation 13,938 + 221,874 + 25,110."""
    config = load_config(Path(__file__).parents[2] / "configs" / "avmnist_i2m2.py")
    model = config.model.build(("audio", "image"), Task("classification", 10))
    batch = {"image": jnp.zeros((1, 28, 28, 1)), "audio": jnp.zeros((1, 112, 112, 1))}
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))["params"]

    def size(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    inter = params["encoders_inter"]
    assert (size(params["encoders_image"]), size(params["heads_image"])) == (3_567, 3_510)
    assert (size(params["encoders_audio"]), size(params["heads_audio"])) == (55_695, 10_710)
    assert (size(inter["encoders_image"]), size(inter["encoders_audio"])) == (13_938, 221_874)
    assert size(params["heads_inter"]) == 25_110


@pytest.mark.parametrize(
    ("options", "modalities", "task", "message"),
    [
        ({}, ("a",), CLASSES, r"at least 2 modalities, got \['a'\]"),
        ({}, ("a", "inter"), CLASSES, "no modality may be called 'inter'"),
        ({}, ("a", "fusion"), CLASSES, "no modality may be called 'fusion'"),
        ({}, ("a", "b"), Task("regression", 1), "the task is regression"),
        ({"encoders": {"c": MLPConfig()}}, ("a", "b"), CLASSES, r"model.encoders.c: the data have no such modality"),
        ({"inter_encoders": {"c": MLPConfig()}}, ("a", "b"), CLASSES, r"model.inter_encoders.c: the data have no"),
        ({"fusion": LateConfig()}, ("a", "b"), CLASSES, "model.fusion 'late' fuses decisions"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_compiled(options, modalities, task, message):
    with pytest.raises(ValueError, match=message):
        ExpertsConfig(**options).build(modalities, task)


def test_an_unknown_kind_is_told():
    with pytest.raises(ValueError, match=r"model option experts must be i2m2, intra or inter, got 'i2m3'"):
        ExpertsConfig(experts="i2m3").validate()


def test_an_input_that_an_encoder_does_not_take_names_the_expert():
    model = ExpertsConfig(inter_encoders={"a": LeNetConfig()}).build(("a", "b"), CLASSES)
    with pytest.raises(ValueError, match=r"encoder of 'inter.a': LeNet .*at least 16 pixels.*got shape \(2, 8, 8, 1\)"):
        model.init(jax.random.key(0), {"a": jnp.ones((2, 8, 8)), "b": jnp.ones((2, 3))})


# -- in training -------------------------------------------------------------------------------------------------------


def splits(task="classification", n=64) -> Splits:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, n)
    arrays = {m: (np.eye(3)[label] + rng.normal(size=(n, 3))).astype(np.float32) for m in ("audio", "zoom")}
    return from_arrays(arrays, np.stack([label > 0, label == 1], axis=1) if task == "multilabel" else label)


def configuration(method, kind="i2m2", **train):
    small = {m: MLPConfig(width=4, depth=1) for m in ("audio", "zoom")}
    return Config(
        data=None,  # given
        model=ExpertsConfig(experts=kind, encoders=small, fusion=ConcatConfig(hidden=())),
        method=method,
        optimizer=SGDConfig(learning_rate=0.1, momentum=0.0),
        train=TrainConfig(**({"epochs": 1, "batch_size": 16, "devices": 1, "monitor_every": 0} | train)),
    )


def one_step(method, kind="i2m2", task="classification"):
    experiment = build_experiment(configuration(method, kind), splits(task))
    state = jax.eval_shape(experiment.initial_state)
    batch = gather(experiment.splits.train, batch_indices(0, 0, len(experiment.splits.train), 16))
    return experiment, state, batch


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "i2m2") for name in METHODS), ("agm", "inter"), ("ogm", "inter"), ("bogc", "inter")]
)
def test_experts_are_objectives_of_every_method(name, kind):
    """Two real steps, the second with modalities missing: names, shapes, extra arguments fit, and every part moves."""
    experiment, shapes, batch = one_step(METHODS[name](), kind)
    lacking = batch._replace(present=np.array([[True, False]] * 8 + [[True, True]] * 8))
    assert experiment.names == (("fusion", "audio", "inter", "zoom") if kind == "i2m2" else ("fusion",))
    state = experiment.initial_state()
    step = jax.jit(experiment.step)
    for given in (batch, lacking):
        before, (state, metrics) = state, step(state, given)
        assert jax.tree.structure(state) == jax.tree.structure(shapes)
        assert metrics.values.shape == metrics.weights.shape == (len(experiment.names),)
        assert np.isfinite(metrics.values).all() and np.isfinite(metrics.weights).all()
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
        for part, params in state.params.items():
            leaves = zip(jax.tree.leaves(params), jax.tree.leaves(before.params[part]), strict=True)
            assert any(np.any(a != b) for a, b in leaves), part


def real_step(method):
    experiment, _, batch = one_step(method)
    state = experiment.initial_state()
    return state, *jax.jit(experiment.step)(state, batch)


def gradients_by_hand(experiment, params, batch):
    """{objective: gradient}, by one jax.grad an objective."""
    model = experiment.inference.model
    x = {m: jnp.asarray(experiment.splits.train.preprocess[m](v)) for m, v in batch.inputs.items()}

    @jax.jit
    @jax.jacrev
    def losses(params):
        told = model.apply({"params": params}, x, train=True).by_objective
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return {name: jnp.mean(cross_entropy(logits, batch.label)) for name, logits in told.items()}

    return losses(params)


def check_step(before, after, update, rate=0.1):
    by_hand = jax.tree.map(lambda p, u: p - rate * u, before.params, update)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.params, by_hand)


def test_mimo_on_experts_follows_the_product_and_the_worst_experts():
    method = METHODS["mimo"](penalty=3.0, smoothing=0.5)
    state, after, metrics = real_step(method)
    pi = jax.nn.softmax(metrics.values[1:] / 0.5)
    np.testing.assert_allclose(metrics.weights, [1, *(3 * pi)], rtol=1e-4)
    experiment, _, batch = one_step(method)
    grads = gradients_by_hand(experiment, state.params, batch)
    weights = dict(zip(experiment.names, metrics.weights, strict=True))
    total = jax.tree.map(
        lambda *g: sum(weights[n] * x for n, x in zip(experiment.names, g, strict=True)),
        *(grads[n] for n in experiment.names),
    )
    check_step(state, after, total)


def test_pcgrad_on_experts_by_hand():
    """Experts share no parameter, so only the product can conflict with each, and the order does not matter."""
    experiment, _, batch = one_step(METHODS["pcgrad"](), "i2m2")
    state = experiment.initial_state()
    # audio says class 0 too rarely; the others, and so the product, far too often: one wants more of it, the other less
    for expert, bias in (("audio", -3.0), ("zoom", 6.0), ("inter", 6.0)):
        last = jax.tree.leaves_with_path(state.params[f"heads_{expert}"])
        (path,) = (path for path, leaf in last if leaf.ndim == 1)
        shifted = jnp.array([bias, 0.0, 0.0])
        head = jax.tree.map_with_path(lambda p, x: shifted if p == path else x, state.params[f"heads_{expert}"])  # noqa: B023
        state = state.replace(params={**state.params, f"heads_{expert}": head})
    grads = gradients_by_hand(experiment, state.params, batch)
    product, *experts = (jax.flatten_util.ravel_pytree(grads[n])[0] for n in experiment.names)
    conflicts = [float(product @ g) < 0 for g in experts]
    assert any(conflicts)  # else this shows nothing
    total = product + sum(experts)
    for g, conflict in zip(experts, conflicts, strict=True):
        if conflict:
            total = total - (g @ product) / (product @ product) * product - (g @ product) / (g @ g) * g
    after, _ = jax.jit(experiment.step)(state, batch)
    check_step(state, after, jax.flatten_util.ravel_pytree(state.params)[1](total))


def test_ogm_slows_down_the_encoder_of_the_expert_that_is_ahead():
    state, after, metrics = real_step(METHODS["ogm"](alpha=0.5))
    joint_state, joint_after, _ = real_step(JointConfig())
    factors = dict(zip(("fusion", "audio", "inter", "zoom"), np.asarray(metrics.weights), strict=True))
    assert min(factors.values()) < 1 and factors["fusion"] == 1  # somebody is ahead at the start
    for expert in ("audio", "inter", "zoom"):
        moved, plain = (
            jax.tree.map(lambda a, b: a - b, x.params[f"encoders_{expert}"], s.params[f"encoders_{expert}"])
            for x, s in ((after, state), (joint_after, joint_state))
        )
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(plain), strict=True):
            if a.ndim == 2:
                np.testing.assert_allclose(a, factors[expert] * b, atol=1e-6)


@pytest.mark.parametrize("method", [MMParetoConfig(level="features"), BogcConfig(samples=16)], ids=lambda m: m.name)
def test_methods_at_the_features_take_the_inter_expert_as_one(method):
    _, after, metrics = real_step(method)
    assert np.isfinite(metrics.weights).all() and all(np.isfinite(x).all() for x in jax.tree.leaves(after.params))


@pytest.mark.parametrize("task", ["classification", "multilabel"])
@pytest.mark.parametrize("kind", ["i2m2", "intra", "inter"])
def test_a_run_reports_every_expert_and_is_loaded_again(kind, task, tmp_path):
    data = splits(task)
    run = fit(configuration(UniformConfig(), kind), tmp_path, splits=data)
    experts = {"i2m2": {"audio", "zoom", "inter"}, "intra": {"audio", "zoom"}, "inter": set()}[kind]
    told = {key.split("/")[0] for key in run.metrics if "/" in key}
    assert told == {"fusion", *experts, *({"late_fusion"} if kind != "inter" else set())}
    again = load(tmp_path)
    assert evaluate(again, data.test)["fusion/nll"] == pytest.approx(run.metrics["fusion/nll"], abs=1e-6)
    answers = again.predict({m: x[:2] for m, x in data.test.inputs.items()})
    assert set(answers) == {"fusion", *experts}
    if kind == "i2m2":
        product = np.prod([answers[e] for e in experts], axis=0)
        other = np.prod([1 - answers[e] for e in experts], axis=0)
        total = product.sum(-1, keepdims=True) if task == "classification" else product + other
        np.testing.assert_allclose(answers["fusion"], product / total, rtol=1e-3, atol=1e-6)


def test_batch_statistics_of_every_expert_are_updated_once():
    config = configuration(JointConfig())
    normed = {m: MLPConfig(width=4, depth=1, norm="batch") for m in ("audio", "zoom")}
    config = dataclasses.replace(config, model=ExpertsConfig(encoders=normed))
    experiment = build_experiment(config, splits())
    state = experiment.initial_state()
    batch = gather(experiment.splits.train, batch_indices(0, 0, len(experiment.splits.train), 16))
    after, _ = jax.jit(experiment.step)(state, batch)
    for name in ("encoders_audio", "encoders_zoom", "encoders_inter"):
        before, now = state.model_state["batch_stats"][name], after.model_state["batch_stats"][name]
        assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(now), strict=True)), name


def test_a_study_of_subsets_refuses_products_of_experts():
    with pytest.raises(ValueError, match="needs a MultiModal"):
        build_classifier(configuration(JointConfig()), splits())
