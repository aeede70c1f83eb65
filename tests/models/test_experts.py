"""I2M2's product of experts against probabilities multiplied by hand; sizes as published; in training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mmjax
from mmjax.config import Config, TrainConfig
from mmjax.data import Planted, Task, from_arrays
from mmjax.losses import example_losses
from mmjax.models import ConcatConfig, ExpertsConfig, LateConfig, LeNetConfig, MLPConfig
from mmjax.models.multimodal import parameter_groups
from mmjax.optim import METHODS
from mmjax.train import loop
from mmjax.train.experiment import build_experiment
from mmjax.train.optimizer import AdamConfig

NAMES = ("a", "b", "c")
INPUTS = {m: np.random.default_rng(i).normal(size=(5, 4 + i)).astype(np.float32) for i, m in enumerate(NAMES)}


def made(kind="i2m2", outputs=3, probe_heads=False, **options):
    """The outputs, the variables and the model, of encoders of different widths."""
    config = ExpertsConfig(
        experts=kind,
        encoders={m: MLPConfig(width=3 + i, depth=1) for i, m in enumerate(NAMES)},
        inter_encoders={m: MLPConfig(width=8 - i, depth=1) for i, m in enumerate(NAMES)},
        **options,
    )
    model = config.build(NAMES, outputs, probe_heads=probe_heads)
    variables = model.init(jax.random.key(0), INPUTS)
    return model.apply(variables, INPUTS), variables, model


def experts_of(outputs):
    return {**outputs.experts, **outputs.unimodal_logits}


def test_single_labels_are_the_normalised_product_of_probabilities():
    outputs, _, _ = made()
    assert sorted(experts_of(outputs)) == ["a", "b", "c", "inter"]
    product = np.prod([np.asarray(jax.nn.softmax(z), np.float64) for z in experts_of(outputs).values()], axis=0)
    wanted = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(outputs.logits), wanted, rtol=1e-5)
    label = jnp.array([0, 1, 2, 1, 0])
    losses = example_losses(Task("classification", 3), outputs.logits, label)
    np.testing.assert_allclose(losses, -np.log(wanted[np.arange(5), label]), rtol=1e-4)


@pytest.mark.parametrize("outputs", [1, 4])  # 1: a binary task by one Bernoulli
def test_each_label_of_several_is_a_product_of_bernoulli_experts(outputs):
    said, _, _ = made(outputs=outputs)
    each = np.array([np.asarray(jax.nn.sigmoid(z), np.float64) for z in experts_of(said).values()])
    yes, no = each.prod(axis=0), (1 - each).prod(axis=0)
    np.testing.assert_allclose(jax.nn.sigmoid(said.logits), yes / (yes + no), rtol=1e-5)


def test_the_kinds_hold_what_they_say_and_no_more():
    product, variables, _ = made()
    intra, own, _ = made("intra")
    joint, shared, _ = made("inter")
    np.testing.assert_allclose(intra.logits, sum(intra.unimodal_logits.values()), rtol=1e-6)
    assert not intra.experts and not joint.experts
    assert sorted(own["params"]) == [f"{part}_{m}" for part in ("encoders", "heads") for m in NAMES]
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    probes = {name: tree for name, tree in shared["params"].items() if name.startswith("heads_")}
    assert size(variables["params"]) == size(own["params"]) + size(shared["params"]) - size(probes)
    assert set(jax.tree.leaves(parameter_groups(variables["params"]))) == {
        "fusion",
        *(f"{part}/{m}" for part in ("encoder", "head") for m in NAMES),
    }
    assert product.features["a"].shape == (5, 3 + 8)


def test_experts_share_nothing_and_each_sees_its_own_modality():
    _, variables, model = made()
    changed = INPUTS | {"b": INPUTS["b"] + 1}
    before, after = model.apply(variables, INPUTS), model.apply(variables, changed)
    for name in ("a", "c"):
        np.testing.assert_array_equal(before.unimodal_logits[name], after.unimodal_logits[name])
    assert not np.allclose(before.unimodal_logits["b"], after.unimodal_logits["b"])
    assert not np.allclose(before.experts["inter"], after.experts["inter"])

    def joint(params):
        return jnp.sum(model.apply({"params": params}, INPUTS).experts["inter"])

    grads = jax.grad(joint)(variables["params"])
    assert not any(np.any(x) for m in NAMES for x in jax.tree.leaves(grads[f"encoders_{m}"]["intra"]))
    assert all(np.any(x) for m in NAMES for x in jax.tree.leaves(grads[f"encoders_{m}"]["inter"]["dense_0"]["kernel"]))


def test_an_absent_modality_leaves_the_product_to_the_others():
    _, variables, model = made()
    present = np.array([[True, False, True]] * 5)
    poisoned = INPUTS | {"b": np.full_like(INPUTS["b"], np.nan)}
    outputs = model.apply(variables, poisoned, present=present)
    total = outputs.experts["inter"] + outputs.unimodal_logits["a"] + outputs.unimodal_logits["c"]
    np.testing.assert_allclose(outputs.logits, total, rtol=1e-6)


def test_the_last_layer_gives_the_product():
    outputs, _, _ = made(head_hidden=(6,))
    for name, logits in outputs.by_objective.items():
        last = outputs.last_layer[name]
        np.testing.assert_allclose(last.inputs @ last.kernel + last.bias, logits, rtol=1e-4, atol=1e-5)


def test_under_one_loss_the_experts_learn_through_the_product_alone():
    _, variables, model = made(probe_heads=True)
    own = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, INPUTS).unimodal_logits["a"]))(variables["params"])
    assert not any(np.any(x) for x in jax.tree.leaves(own))
    product = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, INPUTS).logits ** 2))(variables["params"])
    assert all(np.any(product[f"heads_{m}"]["last"]["kernel"]) for m in NAMES)


def test_published_sizes():
    """I2M2's AV-MNIST: image 3,567 + 3,510; audio 55,695 + 10,710; joint 13,938 + 221,874 + 25,110 parameters."""
    config = mmjax.load_config("configs/avmnist_i2m2.py").model
    model = config.build(("audio", "image"), 10)
    inputs = {"image": jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)}
    inputs["audio"] = jax.ShapeDtypeStruct((2, 112, 112, 1), jnp.float32)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), inputs)["params"]
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    assert size(params["encoders_image"]["intra"]) == 3_567 and size(params["heads_image"]) == 3_510
    assert size(params["encoders_audio"]["intra"]) == 55_695 and size(params["heads_audio"]) == 10_710
    assert size(params["encoders_image"]["inter"]) == 13_938
    assert size(params["encoders_audio"]["inter"]) == 221_874
    assert size(params["fusion"]) == 25_110


# -- in training ---------------------------------------------------------------------------------------------------------


def tiny(method="joint", kind="i2m2", **options):
    model = ExpertsConfig(
        experts=kind,
        encoders={m: MLPConfig(width=8, depth=1) for m in ("a", "b")},
        inter_encoders={m: MLPConfig(width=16, depth=1) for m in ("a", "b")},
        fusion=ConcatConfig(hidden=(16,)),
    )
    return Config(
        data=Planted(train_examples=256, validation_examples=64, test_examples=64),
        model=model,
        method=METHODS[method](),
        optimizer=AdamConfig(learning_rate=0.01),
        train=TrainConfig(**({"epochs": 1, "batch_size": 64, "monitor_every": 0, "devices": 1} | options)),
    )


@pytest.mark.parametrize("method", ["joint", "mimo", "pcgrad", "ogm", "mmpareto"])
def test_it_trains_with_every_kind_of_method_and_shows_every_expert(method):
    run = loop.fit(tiny(method))
    assert {f"{name}/accuracy" for name in ("fusion", "a", "b", "inter", "late_fusion")} <= set(run.metrics)
    probabilities = run.predict({m: np.zeros((2, 8), np.float32) for m in ("a", "b")})
    assert set(probabilities) == {"fusion", "a", "b", "inter"}


def test_the_uniform_step_trains_each_expert_on_its_own_loss_too():
    experiment = build_experiment(tiny("mimo"))
    assert experiment.names == ("fusion", "a", "b")


def test_a_saved_product_of_experts_says_the_same(tmp_path):
    run = loop.fit(tiny(), tmp_path)
    test = tiny().data.load().test
    again = mmjax.load(tmp_path)
    assert mmjax.evaluate(again, test)["inter/nll"] == run.metrics["inter/nll"]


def test_mistakes_are_named():
    splits = tiny().data.load()
    cases = {
        "at least two": dataclasses.replace(tiny(), data=Planted(modalities=("a",))),
        "option experts must be one of": dataclasses.replace(
            tiny(),
            model=ExpertsConfig(experts="both"),  # type: ignore[arg-type]
        ),
        "model.inter_encoders.zoom": dataclasses.replace(
            tiny(), model=ExpertsConfig(inter_encoders={"zoom": MLPConfig()})
        ),
        "fuses decisions": dataclasses.replace(tiny(), model=ExpertsConfig(fusion=LateConfig())),
    }
    for message, config in cases.items():
        with pytest.raises(ValueError, match=message):
            build_experiment(config, None if config.data.modalities else splits)
    real = from_arrays({m: np.ones((90, 3), np.float32) for m in ("a", "b")}, np.linspace(0, 1, 90, dtype=np.float32))
    with pytest.raises(ValueError, match="regression"):
        build_experiment(tiny(batch_size=16), real)
    with pytest.raises(ValueError, match="image"):
        ExpertsConfig(encoders={"image": LeNetConfig()}).build(("a", "b"), 3)
