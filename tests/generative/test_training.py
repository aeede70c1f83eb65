"""Generative models through the common loop: resume bit for bit, devices, work folders, methods, bad input; MDRNN."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import Config, ModelConfig, TrainConfig
from mmjax.config_file import load_config
from mmjax.data import ImageTags, MnistHalves, Planted, Splits, Task, from_arrays, gather
from mmjax.evaluation.linear import fit_linear
from mmjax.generative import (
    MDRNN,
    MRBM,
    CDPercLossConfig,
    HybridConfig,
    MDRNNConfig,
    MRBMConfig,
    MRBMParams,
    MultiPredictionConfig,
    PCDConfig,
    RBMParams,
    RecurrentConfig,
    infer,
    multi_prediction,
)
from mmjax.optim import UniformConfig
from mmjax.train.experiment import build_experiment
from mmjax.train.journal import read_rows
from mmjax.train.loop import fit
from mmjax.train.missing import scores_by_rounds
from mmjax.train.observer import Observer
from mmjax.train.optimizer import InverseConfig, SGDConfig
from mmjax.train.run import load


def digits(n=96, seed=0):
    """Four classes; each half shows noisy bits of the class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, n)
    codes = np.random.default_rng(9).random((4, 12)) < 0.5

    def half(columns):
        bits = codes[label][:, columns] ^ (rng.random((n, 6)) < 0.1)
        return bits.astype(np.float32)

    return {"left": half(slice(0, 6)), "right": half(slice(6, 12)).reshape(n, 2, 3)}, label.astype(np.int32)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return from_arrays(*digits(), standardize=False)


def config(method=None, model=None, **train) -> Config:
    options = {"epochs": 3.0, "batch_size": 16, "devices": 1, "monitor_every": 0, "checkpoint_every": 5, "log_every": 4}
    return Config(
        data=Planted(),
        model=model or MRBMConfig(hidden=8, rounds=3),
        method=method or MultiPredictionConfig(n_steps=2),
        optimizer=SGDConfig(learning_rate=0.05, schedule=InverseConfig(decay=0.1, every=4)),
        train=TrainConfig(**(options | train)),
    )


METHODS = {
    "pcd": PCDConfig(steps=2, chains=8, sparsity=0.1),
    "cd_percloss": CDPercLossConfig(steps=2),
    "multi_prediction": MultiPredictionConfig(n_steps=2, backprop_steps=1),
    "hybrid": HybridConfig(n_steps=1, steps=1, chains=4),
    "recurrent": RecurrentConfig(pretrain_steps=3, n_steps=2),
}
DEEP = MDRNNConfig(hidden=5, stacks={"left": (4, 3), "right": (4,)}, rounds=2)


class _Interrupt(Observer):
    def __init__(self, at):
        self.at = at

    def row(self, row):
        if row["step"] >= self.at:
            raise KeyboardInterrupt


def digest(tree):
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(tree))).hexdigest()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_loads_and_resumes_bit_for_bit(name, splits, tmp_path):
    options = config(METHODS[name], DEEP if name == "recurrent" else None, monitor_every=5 if name == "hybrid" else 0)
    straight = fit(options, tmp_path / "straight", splits=splits)
    if name in ("hybrid", "recurrent"):  # the others are parts of these
        with pytest.raises(KeyboardInterrupt):
            fit(options, tmp_path / "resumed", splits=splits, observer=_Interrupt(9))
        resumed = fit(options, tmp_path / "resumed", splits=splits)
        assert digest(resumed.variables) == digest(straight.variables)
    rows = read_rows(tmp_path / "straight" / "metrics.jsonl")
    names = {"pcd": {"fusion"}, "hybrid": {"fusion", "left", "right"}, "recurrent": {"fusion", "left", "right"}}
    train = next(row for row in rows if row["kind"] == "train")
    assert {k for k in train if k.startswith("loss/")} == {f"loss/{n}" for n in names.get(name, {"left", "right"})}
    assert {"fusion/accuracy", "left/accuracy", "right/nll"} <= set(rows[-1])
    assert ("cosine/left/right" in {k for row in rows for k in row}) == (name == "hybrid")
    inputs, _ = digits(5, seed=3)
    with pytest.raises(ValueError, match=r"left has binary visible units, which stand for values in \[0, 1\]"):
        straight.predict({m: 255 * x for m, x in inputs.items()})
    loaded = load(tmp_path / "straight").predict(inputs)
    for expert, values in straight.predict(inputs).items():
        np.testing.assert_allclose(loaded[expert], values, rtol=1e-5)


def test_multi_prediction_learns_and_devices_agree(splits):
    options = config(MultiPredictionConfig(n_steps=3), epochs=60.0, select="score", evaluate_every=120, log_every=40)
    rows = []

    class Watch(Observer):
        def row(self, row):
            rows.append(row)

    run = fit(options, splits=splits, observer=Watch())
    losses = [row["loss/left"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    assert run.metrics["left/accuracy"] > 0.6 and run.metrics["fusion/accuracy"] > 0.6
    few = dataclasses.replace(options, train=dataclasses.replace(options.train, epochs=2.0))
    one = fit(few, splits=splits)
    many = fit(dataclasses.replace(few, train=dataclasses.replace(few.train, devices=8)), splits=splits)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), many.params, one.params)


def test_inverse_schedule():
    rate = InverseConfig(decay=0.5, every=4, warmup_steps=2).build(0.1, total_steps=100)
    np.testing.assert_allclose([rate(0), rate(1), rate(2), rate(10)], [0.05, 0.1, 0.1, 0.1 / (1 + 0.5 * 2)], rtol=1e-6)
    for wrong in (InverseConfig(decay=-1.0), InverseConfig(every=0)):
        with pytest.raises(ValueError, match="schedule"):
            wrong.validate()


# -- the classifier ----------------------------------------------------------------------------------------------------


def test_linear_classifier_is_at_the_bottom():
    rng = np.random.default_rng(0)
    features, label = rng.normal(2.0, [1.0, 5.0, 0.0], size=(60, 3)), rng.integers(0, 3, 60)
    task = Task("classification", 3)
    kernel, bias = (np.asarray(x, np.float64) for x in fit_linear(features, label, task, l2=0.01, tolerance=1e-5))
    p = np.exp(features @ kernel + bias)
    residual = (p / p.sum(1, keepdims=True) - np.eye(3)[label]) / 60
    np.testing.assert_allclose(features.T @ residual + 0.01 * kernel, 0, atol=2e-3)
    np.testing.assert_allclose(residual.sum(0), 0, atol=1e-3)
    with pytest.raises(ValueError, match="l2 must be at least 0"):
        fit_linear(features, label, task, l2=-1.0)
    with pytest.raises(ValueError, match="differ in length: 60 and 59"):
        fit_linear(features, label[:-1], task)


# -- MDRNN -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep():
    model = MDRNN({"left": "binary", "right": "gaussian"}, {"left": (5, 3), "right": (4,)}, num_hidden=6)
    return model, model.init(jax.random.key(0), {"left": 6, "right": 7}, std=0.7)


def sigmoid(a):
    return 1 / (1 + np.exp(-np.asarray(a)))


def test_unrolled_network_is_the_formula(deep):
    model, params = deep
    left = jax.random.bernoulli(jax.random.key(1), 0.5, (4, 6)).astype(float)
    z = left
    for layer in params.stacks["left"]:
        z = sigmoid(z @ layer.weights + layer.hidden_bias)
    joint, (below,) = params.joint, params.stacks["right"]
    drive = z @ joint.weights["left"]
    h = sigmoid(joint.hidden_bias + 7 / 3 * drive)  # 3 + 4 units at the tops, 3 of them seen
    for n in range(3):
        top = sigmoid(h @ joint.weights["right"].T + joint.visible_bias["right"])
        right = top @ below.weights.T + below.visible_bias
        found = infer(model, params, {"left": left}, n)
        np.testing.assert_allclose(found.hidden, h, rtol=2e-5)
        np.testing.assert_allclose(found.inputs["right"], right, rtol=2e-4, atol=1e-5)
        again = sigmoid(right @ below.weights + below.hidden_bias)
        h = sigmoid(drive + again @ joint.weights["right"] + joint.hidden_bias)
    found = infer(model, params, {"left": left}, 300, tolerance=1e-5)
    assert found.rounds < 300


def test_without_stacks_it_is_an_mrbm():
    kinds = {"left": "binary", "right": "gaussian"}
    deep, flat = MDRNN(kinds, {"left": (), "right": ()}, 6), MRBM(kinds, 6)
    params = deep.init(jax.random.key(0), {"left": 6, "right": 7}, std=0.5)
    inputs = {"left": jnp.ones((3, 6)), "right": jax.random.normal(jax.random.key(1), (3, 7))}
    key = jax.random.key(2)
    for options in ({"keep_max": 0.0}, {"keep_max": 0.0, "directions": ("right",)}):
        ours = multi_prediction(deep, params, inputs, key, **options)
        theirs = multi_prediction(flat, params.joint, inputs, key, **options)
        assert ours.keys() == theirs.keys() == set(options.get("directions", kinds))
        for m in ours:
            np.testing.assert_allclose(ours[m], theirs[m], rtol=1e-6)
    with pytest.raises(ValueError, match="keep_max must be 0"):
        multi_prediction(deep, params, inputs, key, keep_max=0.5)
    with pytest.raises(ValueError, match="level must be in 0..0"):
        deep.layerwise_divergence(params, inputs, key, 1)


def test_a_start_scaled_to_inputs(deep):
    """Logits of mean 0 and spread 1 at every level; units as frequent as their inputs while the hidden ones are at 1/2."""
    model, params = deep
    left = jax.random.bernoulli(jax.random.key(1), jnp.array([0.02, 0.1, 0.3, 0.5, 0.9, 0.0]), (400, 6)).astype(float)
    inputs = {"left": left, "right": 2 + jax.random.normal(jax.random.key(2), (400, 7))}
    scaled = model.scaled_to(params, inputs)
    joint = 0.0
    for m, x in inputs.items():
        kinds = [*(rbm.visible for rbm in model.layers(m)), "binary"]
        layers = [*scaled.stacks[m], None]
        for kind, layer in zip(kinds, layers, strict=True):
            weights = scaled.joint.weights[m] if layer is None else layer.weights
            bias = scaled.joint.visible_bias[m] if layer is None else layer.visible_bias
            at_half = bias + weights.sum(axis=1) / 2
            expected = x.mean(axis=0) if kind == "gaussian" else np.clip(x.mean(axis=0), 1 / 800, 1)
            np.testing.assert_allclose(at_half if kind == "gaussian" else sigmoid(at_half), expected, rtol=1e-3)
            if layer is None:
                part = x @ weights
                np.testing.assert_allclose(part.std(axis=0), 0.5**0.5, rtol=1e-3)
                joint += part
                continue
            logits = x @ layer.weights + layer.hidden_bias
            np.testing.assert_allclose(logits.mean(axis=0), 0, atol=1e-3)
            np.testing.assert_allclose(logits.std(axis=0), 1, rtol=1e-3)
            x = jax.nn.sigmoid(logits)
    np.testing.assert_allclose((joint + scaled.joint.hidden_bias).mean(axis=0), 0, atol=1e-3)
    still = model.scaled_to(params, {m: jnp.zeros_like(x) for m, x in inputs.items()})  # nothing varies
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(still))
    with pytest.raises(ValueError, match=r"inputs are of modalities \['left'\]"):
        model.scaled_to(params, {"left": left})


def test_a_run_starts_where_its_configuration_says(splits):
    small, scaled = (
        build_experiment(
            config(RecurrentConfig(pretrain_steps=1), dataclasses.replace(DEEP, start=start)), splits
        ).initial_state()
        for start in ("small", "scaled")
    )
    train = splits.train
    logits = [
        train.inputs["left"].reshape(len(train), -1) @ state.params["core"].stacks["left"][0].weights
        for state in (small, scaled)
    ]
    assert logits[0].std(axis=0).max() < 0.1
    np.testing.assert_allclose(logits[1].std(axis=0), 1, rtol=1e-3)
    with pytest.raises(ValueError, match="model.start must be small or scaled, got 'large'"):
        dataclasses.replace(DEEP, start="large").validate()


def test_upper_levels_see_draws_and_not_means():
    """Coins have no structure, so nothing pulls at small weights; their means, all 1/2, would shrink them to 0."""
    model = MDRNN({"left": "binary", "right": "binary"}, {"left": (8, 4), "right": (8, 4)}, num_hidden=4)
    params = model.init(jax.random.key(0), {"left": 3, "right": 3}, std=0.0)
    # biases that hold all units at 1/2, else they pull, too
    weights = {m: 0.1 * jax.random.normal(jax.random.key(i), (8, 4)) for i, m in enumerate(model.modalities)}
    stacks = {
        m: (params.stacks[m][0], RBMParams(w, -w.sum(axis=1) / 2, -w.sum(axis=0) / 2)) for m, w in weights.items()
    }
    tops = {m: w[:4] for m, w in weights.items()}
    joint = MRBMParams(tops, {m: -w.sum(axis=1) / 2 for m, w in tops.items()}, -sum(tops.values()).sum(axis=0) / 2)
    params = params.replace(stacks=stacks, joint=joint)
    inputs = {m: jnp.zeros((100_000, 3)) for m in stacks}
    for level in (1, 2):
        gradient = jax.grad(lambda p, level=level: model.layerwise_divergence(p, inputs, jax.random.key(3), level)[0])
        grads = gradient(params)
        for m in stacks:
            w, g = (x.joint.weights[m] if level == 2 else x.stacks[m][1].weights for x in (params, grads))
            pull = jnp.sum(w * g) / jnp.sum(w * w)  # of means: 1/16
            assert abs(pull) < 0.03, (level, m)


def test_each_level_is_trained_alone_and_then_all(splits):
    """After pretrain_steps steps of a level the others have not moved; fine-tuning moves everything."""
    experiment = build_experiment(config(RecurrentConfig(pretrain_steps=2, n_steps=2, sparsity=0.1), DEEP), splits)
    from mmjax.data import batch_indices, gather

    state = experiment.initial_state()
    step = jax.jit(experiment.step)
    levels = experiment.core.levels(state.params["core"])
    for t in range(8):
        before = state.params["core"]
        batch = gather(splits.train, batch_indices(0, t, len(splits.train), 16))
        state, told = step(state, batch)
        moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.params["core"], before)
        expected = jax.tree.map(lambda level, t=t: level == t // 2 or t >= 6, levels)
        assert jax.tree.all(jax.tree.map(lambda m, e: m == e, moved, expected))
        active = {0: ("left", "right"), 1: ("left",), 2: ("fusion",), 3: ("left", "right")}[t // 2]
        assert told.weights.tolist() == [float(n in active) for n in experiment.names]


def test_a_run_that_ends_before_fine_tuning_is_warned_of(splits):
    short = config(RecurrentConfig(pretrain_steps=100), DEEP)
    with pytest.warns(UserWarning, match=r"end before fine-tuning begins: pretraining 3 levels takes 300"):
        build_experiment(short, splits)


@pytest.mark.soak
def test_a_deep_network_learns_and_rounds_help():
    """The quick experiment of configs/image_tags_mdrnn.py: fine-tuning lifts what pretraining left; rounds help."""
    path = Path(__file__).resolve().parents[2] / "configs" / "image_tags_mdrnn.py"
    experiment = load_config(f"{path}:get_quick_config")
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, devices=1))
    splits, rows = experiment.data.load(), []

    class Keep(Observer):
        def row(self, row):
            if row["kind"] == "validation":
                rows.append(row)

    run = fit(experiment, splits=splits, observer=Keep())
    assert [row["step"] for row in rows] == [1500, 3000, 4000]
    for m, lift in (("fusion", 0.1), ("image", 0.08), ("tags", 0.08)):
        assert rows[-1][f"{m}/map"] > rows[0][f"{m}/map"] + lift
    assert run.metrics["fusion/map"] > 0.75 > 8 * splits.test.label.mean()  # far from what the labels' frequencies give
    by_rounds = scores_by_rounds(run, splits.test)
    assert by_rounds[2]["tags/map"] > by_rounds[0]["tags/map"] + 0.03
    assert by_rounds[2]["image/map"] > by_rounds[0]["image/map"]


# -- data --------------------------------------------------------------------------------------------------------------


def test_image_tags_have_the_published_shape():
    made = ImageTags(train_examples=400, validation_examples=5, test_examples=5).load()
    assert made.train.inputs["image"].shape == (400, 3857) and made.train.inputs["tags"].shape == (400, 2000)
    assert made.train.task == Task("multilabel", 38)
    assert set(np.unique(made.train.inputs["tags"])) == {0.0, 1.0}
    assert 0.003 < made.train.inputs["tags"].mean() < 0.05
    again = ImageTags(train_examples=400, validation_examples=5, test_examples=5).load()
    np.testing.assert_array_equal(again.test.inputs["image"], made.test.inputs["image"])
    assert not np.array_equal(made.test.label, made.validation.label)
    with pytest.raises(ValueError, match="data.tags must be at least 1"):
        ImageTags(tags=0).load()


def test_mnist_halves(data_root):
    source = MnistHalves(path=str(data_root / "mnist"), num_train=20, num_validation=10, num_test=10)
    made = source.load()
    assert made.train.inputs["left"].shape == (20, 28, 14) and made.train.inputs["left"].dtype == np.uint8
    assert float(made.train.preprocess["left"](made.train.inputs["left"].astype(np.float32)).max()) == 1.0
    assert made.train.label[:5].tolist() == [5, 0, 4, 1, 9] and made.test.label[:3].tolist() == [7, 2, 1]
    with pytest.raises(ValueError, match=r"data.num_train must be in 1..50000, got 60000"):
        dataclasses.replace(source, num_train=60_000).load()
    with pytest.raises(FileNotFoundError):
        dataclasses.replace(source, path=str(data_root / "fsdd")).load()


# -- bad input ---------------------------------------------------------------------------------------------------------


def scaled(part):  # as images of 0 to 255
    return dataclasses.replace(part, inputs={m: 255 * x for m, x in part.inputs.items()})


def test_mistakes_are_named_before_anything_is_compiled(splits, monkeypatch):
    monkeypatch.setattr("mmjax.train.parallel.Route.compile", lambda *a, **k: pytest.fail("compiled"))
    big = {m: 2 * x for m, x in digits()[0].items()}
    cases = {
        "left has binary visible units": (config(), from_arrays(big, digits()[1], standardize=False)),
        "left has binary visible units, which": (config(), Splits(splits.train, splits.validation, scaled(splits.test))),
        "left has binary visible units, ": (config(), Splits(splits.train, scaled(splits.validation), splits.test)),
        "method uniform balances a MultiModal": (config(UniformConfig()), splits),
        "method recurrent trains an MDRNN; the model is an MRBM": (config(RecurrentConfig()), splits),
        "method pcd trains an MRBM; the model is an MDRNN": (config(PCDConfig(), MDRNNConfig()), splits),
        "method pcd trains a generative model": (config(PCDConfig(), ModelConfig()), splits),
        "model.visible.top: the data have no such modality": (config(model=MRBMConfig(visible={"top": "binary"})), splits),
        "visible units of model.visible.left must be one of": (config(model=MRBMConfig(visible={"left": "count"})), splits),
        "model.stacks.top": (config(RecurrentConfig(), MDRNNConfig(stacks={"top": (3,)})), splits),
        "method.directions names 'top'": (config(RecurrentConfig(directions=("top",)), DEEP), splits),
        "model.head_hidden is no option": (config(model=MRBMConfig(head_hidden=(3,))), splits),
        "model.rounds must be at least 0": (config(model=MRBMConfig(rounds=-1)), splits),
        "method.n_steps must be at least 0, got -1": (config(MultiPredictionConfig(n_steps=-1)), splits),
        r"method.keep_max must be in \[0, 1\], got 2": (config(MultiPredictionConfig(keep_max=2)), splits),
        r"method.sparsity_target must be in \(0, 1\)": (config(PCDConfig(sparsity_target=1.0)), splits),
        "train.label_smoothing is not for generative": (config(label_smoothing=0.1), splits),
        "train.parallel is not for generative": (config(parallel="pmap"), splits),
    }  # fmt: skip
    for message, (wrong, data) in cases.items():
        with pytest.raises(ValueError, match=message):
            fit(wrong, splits=data)


def test_unstandardised_real_inputs_are_warned_of(splits):
    real = from_arrays(
        {"left": 50 + digits()[0]["left"], "right": digits()[0]["right"]}, digits()[1], standardize=False
    )
    with pytest.warns(UserWarning, match=r"left has gaussian visible units.*mean 50(\.\d+)? and standard deviation \d"):
        build_experiment(config(model=MRBMConfig(visible={"left": "gaussian"})), real)


def test_a_batch_that_is_not_finite_is_skipped(splits):
    experiment = build_experiment(config(METHODS["pcd"], skip_nonfinite=1), splits)
    state, step = experiment.initial_state(), jax.jit(experiment.step)
    batch = gather(splits.train, np.arange(16))
    wrong = batch._replace(inputs={m: np.full_like(x, np.nan) for m, x in batch.inputs.items()})
    state, _ = step(state, batch)
    for halted in (False, True):
        after, _ = step(state, wrong)
        for part in ("params", "model_state", "opt_state"):
            jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(state, part))
        assert int(after.step) == (2 if not halted else int(state.step)) and int(after.skipped) == 1 + halted
        state = after
    assert state.model_state["chains"] and (state.first_bad == 2).any()
