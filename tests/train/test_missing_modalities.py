"""Training with missing modalities: whose losses count, who moves, on which devices, and with every method."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.config import Config, ModelConfig, TrainConfig
from mmjax.data import Batch, Planted, Task, from_arrays
from mmjax.evaluation.metrics import task_metrics
from mmjax.models import ConcatConfig, CustomConfig, GatedConfig, MLPConfig
from mmjax.optim import METHODS, AgmConfig, BogcConfig, UniformConfig
from mmjax.optim.agm import shapley_shares
from mmjax.train.experiment import build_classifier
from mmjax.train.journal import read_rows
from mmjax.train.loop import fit
from mmjax.train.modality_dropout import drop_modalities
from mmjax.train.observer import Observer
from mmjax.train.optimizer import SGDConfig
from mmjax.train.run import evaluate, load
from mmjax.train.step import forward, measure_gradients, prepare, train_step

N, CLASSES = 96, 3


class Normed(nn.Module):
    """A linear layer with batch norm: the statistics must leave out what is absent."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5, axis_name=self.axis_name)(x))


NORMED = CustomConfig(path="train.test_missing_modalities:Normed")


def presence(n=N, seed=0, rate=0.6):
    present = np.random.default_rng(seed).random((n, 3)) < rate
    present[~present.any(axis=1), seed % 3] = True
    return present


def arrays(n=N, seed=0):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % CLASSES
    centres = np.random.default_rng(7).normal(size=(3, CLASSES, 4))
    return {m: 2 * c[label] + rng.normal(size=(n, 4)) for m, c in zip("abc", centres, strict=True)}, label


@pytest.fixture(scope="module")
def splits():
    return from_arrays(*arrays(), present=presence())


def config(method=None, model=None, **train):
    options = {"epochs": 1.0, "batch_size": 16, "devices": 1, "monitor_every": 0, "evaluate_every": 2, "log_every": 1}
    encoders = {m: MLPConfig(width=4, depth=1) for m in "abc"}
    return Config(
        data=Planted(),
        method=method or UniformConfig(),
        model=model or ModelConfig(encoders=encoders, fusion=ConcatConfig(hidden=(4,))),
        optimizer=SGDConfig(learning_rate=0.5, momentum=0.0),
        train=TrainConfig(**(options | train)),
    )


def batch_of(present, seed=0, fill=0.0, n=16):
    inputs, label = arrays(n, seed)
    filled = {
        m: x if present is None else np.where(present[:, i, None], x, fill) for i, (m, x) in enumerate(inputs.items())
    }
    inputs = {m: jnp.asarray(x, jnp.float32) for m, x in filled.items()}
    weight = jnp.linspace(0.5, 1.5, n)
    return Batch(inputs, jnp.asarray(label, jnp.int32), weight, None if present is None else jnp.asarray(present))


def leaves_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def test_each_loss_is_the_mean_over_who_is_there_and_so_is_its_gradient(splits):
    experiment = build_classifier(config(model=ModelConfig(encoders=dict.fromkeys("abc", NORMED))), splits)
    state, batch = experiment.initial_state(), batch_of(presence(16, seed=1))
    model, preprocess = experiment.inference.model, experiment.inference.preprocess
    present = np.asarray(batch.present)

    def losses(params):
        variables = {"params": params, **state.model_state}

        def mean(logits, rows):
            each = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label[rows])
            return jnp.sum(each * batch.weight[rows]) / jnp.sum(batch.weight[rows])

        features, total = {}, 0.0
        for i, m in enumerate("abc"):
            rows = np.flatnonzero(present[:, i])
            there = {k: preprocess[k](x[rows]) for k, x in batch.inputs.items()}  # only this modality's are looked at
            z, _ = model.apply(variables, there, train=True, method="encode", mutable=["batch_stats"])
            alone, _ = model.apply(variables, z, train=True, method="decide", mutable=["batch_stats"])
            total += mean(alone.unimodal_logits[m], rows)
            features[m] = jnp.zeros((16, z[m].shape[1])).at[rows].set(z[m])
        fused, _ = model.apply(variables, features, train=True, method="decide", mutable=["batch_stats"])
        return total + mean(fused.logits, np.arange(16))

    new, metrics = jax.jit(experiment.step)(state, batch)
    total, gradient = jax.jit(jax.value_and_grad(losses))(state.params)
    np.testing.assert_allclose(metrics.values.sum(), total, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, gradient)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), new.params, expected)


QUICK = {"joint", "mimo", "ogm_ge", "agm", "mgda-features", "bogc-features-laplace"}
"""One of each way to the update; the others are compiled in the long proofs."""


def variants():
    for name, method in METHODS.items():
        made = method()
        if name == "bogc":
            several = [BogcConfig(), BogcConfig(moments="ema"), BogcConfig(moments="microbatch", level="parameters")]
        elif hasattr(made, "level"):
            several = [replace(made, level=level) for level in ("features", "parameters")]
        else:
            several = [made]
        for one in several:
            label = "-".join(getattr(one, what) for what in ("name", "level", "moments") if hasattr(one, what))
            yield pytest.param(one, id=label, marks=() if label in QUICK else pytest.mark.soak)


@pytest.mark.parametrize("method", list(variants()))
def test_every_method_survives_and_what_is_absent_neither_moves_nor_matters(method, splits):
    """Three steps: some lack some; nobody has c; everybody has b alone."""
    experiment = build_classifier(config(method), splits)
    step = jax.jit(experiment.step)
    nobody = presence(16, seed=2)
    nobody[:, 2] = False
    nobody[~nobody.any(axis=1), 0] = True
    course = (presence(16, seed=1), nobody, np.tile([False, True, False], (16, 1)))
    ends = []
    for fill in (0.0, np.nan, 1e30):
        state = experiment.initial_state()
        for t, present in enumerate(course):
            before, (state, metrics) = state, step(state, batch_of(present, seed=t, fill=fill))
            there = present.any(axis=0)
            np.testing.assert_array_equal(np.isfinite(metrics.values), [True, *there])
            assert np.isfinite(metrics.weights).all()
            assert not metrics.weights[1:][~there].any()
            for m in np.array(list("abc"))[~there]:
                for group in (f"encoders_{m}", f"heads_{m}"):
                    leaves_equal(state.params[group], before.params[group])
            if t == 0:
                moved = jax.tree.map(lambda x, y: np.any(x != y), state.params, before.params)
                assert all(any(jax.tree.leaves(moved[f"encoders_{m}"])) for m in "abc")
        assert np.all(state.first_bad == -1)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
        ends.append(state.params)
    leaves_equal(ends[1], ends[0])
    leaves_equal(ends[2], ends[0])


class Overheard(NamedTuple):
    weights: jax.Array
    losses: jax.Array


def test_methods_hear_the_loss_of_each_objective_and_who_is_active(splits):
    def update(grads, state, params, *, values, active, present, logit_loss, last_layer, **rest):
        logits = {n: inputs @ kernel + bias for n, (inputs, kernel, bias) in last_layer.items()}
        heard = jnp.stack([logit_loss[n](logits[n]) for n in grads.names])
        return grads.weighted(jnp.ones(4), active), Overheard(1.0 * active * present.shape[1], heard)

    init = lambda params: Overheard(jnp.ones(4), jnp.ones(4))  # noqa: E731
    experiment = build_classifier(config(), splits)
    training = replace(experiment.training, combiner=optax.GradientTransformationExtraArgs(init, update))
    state = experiment.initial_state()
    state = state.replace(opt_state=training.tx.init(state.params))
    present = presence(16, seed=1) & [True, True, False] | [False, True, False]
    new, metrics = jax.jit(partial(train_step, training))(state, batch_of(present))
    assert metrics.weights.tolist() == [3, 3, 3, 0]
    np.testing.assert_allclose(new.opt_state[0].inner.losses[:3], metrics.values[:3], rtol=1e-5)
    assert new.opt_state[0].inner.losses[3] == 0 and np.isnan(metrics.values[3])


def test_agm_measures_a_share_on_who_has_the_modality(splits):
    experiment = build_classifier(config(AgmConfig()), splits)
    state, batch = experiment.initial_state(), batch_of(presence(16, seed=1))
    new, _ = jax.jit(experiment.step)(state, batch)
    model, inputs = experiment.inference.model, prepare(experiment.inference, batch.inputs)
    variables = {"params": state.params, **state.model_state}
    features = model.apply(variables, inputs, train=True, present=batch.present, method="encode")

    def worth(coalition):
        kept = {m: z * (m in coalition) for m, z in features.items()}
        return model.apply(variables, kept, train=True, present=batch.present, method="decide").logits

    shares = shapley_shares(worth, "abc")
    for i, m in enumerate("abc"):
        rows = np.flatnonzero(batch.present[:, i])
        each = optax.softmax_cross_entropy_with_integer_labels(shares[m], batch.label)
        expected = np.average(each[rows], weights=batch.weight[rows])
        np.testing.assert_allclose(new.opt_state[0].inner.losses[i], expected, rtol=1e-4)
        others = np.flatnonzero(~batch.present[:, i])
        np.testing.assert_allclose(shares[m][others], 0, atol=1e-6)  # who lacks it owes it nothing


def test_bogc_compares_precisions_among_who_has_the_modality(splits):
    """Examples without c, and without weight, must not show in what becomes of c's encoder."""
    experiment = build_classifier(config(BogcConfig()), splits)
    state, batch = experiment.initial_state(), batch_of(None)
    present = np.arange(16)[:, None] < [16, 16, 8]
    mixed = batch._replace(present=jnp.asarray(present), weight=jnp.asarray(present[:, 2], jnp.float32))
    alone = jax.tree.map(lambda x: x[:8], mixed)
    with_others, without = (jax.jit(experiment.step)(state, b)[0].params["encoders_c"] for b in (mixed, alone))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), with_others, without)


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
@pytest.mark.parametrize("fusion", [ConcatConfig(hidden=(4,), absent="token"), GatedConfig(width=4)])
def test_with_everything_present_all_that_is_said_is_the_same(fusion, norm, splits):
    """Answers bit for bit; losses to an ulp or two, where a compiler fuses their sums otherwise; the update to rounding."""
    encoders = {m: MLPConfig(width=4, depth=1, norm=norm) for m in "abc"}
    experiment = build_classifier(config(model=ModelConfig(encoders=encoders, fusion=fusion)), splits)
    state = experiment.initial_state()
    without, everything = batch_of(None), batch_of(np.ones((16, 3), bool))
    plain, told = jax.jit(experiment.step)(state, without)
    masked, also = jax.jit(experiment.step)(state, everything)
    near = partial(jax.tree.map, lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6))
    if norm == "batch":  # statistics are summed in another order
        near(told, also)
        near(masked.model_state, plain.model_state)
    else:
        jax.tree.map(lambda x, y: np.testing.assert_array_max_ulp(x, y, 2), told, also)
        leaves_equal(masked.model_state, plain.model_state)
    near(masked.params, plain.params)
    answer = jax.jit(partial(forward, experiment.inference))
    variables = {"params": plain.params, **plain.model_state}
    leaves_equal(answer(variables, without.inputs), answer(variables, everything.inputs, everything.present))


def test_a_data_set_that_lacks_nothing_trains_the_same_bit_for_bit():
    inputs, label = arrays()
    everything = from_arrays(inputs, label, present=np.ones((N, 3), bool))
    assert all(part.present is None for part in (everything.train, everything.validation, everything.test))
    leaves_equal(fit(config(), splits=everything).params, fit(config(), splits=from_arrays(inputs, label)).params)


def test_one_and_eight_devices_and_pmap_agree(splits):
    """Uneven presence on each device, batch statistics, the mean of those present as stand-in, dropout of modalities."""
    model = ModelConfig(
        encoders={"a": NORMED, "b": MLPConfig(width=4, depth=1)}, fusion=ConcatConfig(hidden=(4,), absent="mean")
    )

    def train(**route):
        experiment = build_classifier(config(model=model, modality_dropout=0.3, **route), splits)
        batches = [batch_of(presence(16, seed=t, rate=0.3), seed=t) for t in range(3)]
        state = experiment.route.place_state(experiment.initial_state())
        place = experiment.route.place_batch
        program = experiment.route.compile(experiment.step, state, place(batches[0]), donate=True)
        for batch in batches:
            state, metrics = program(state, place(batch))
        local = experiment.route.local_state(state)
        return local.params, local.model_state, experiment.route.read(metrics).values

    one = train(devices=1)
    for route in ({"devices": 8}, {"devices": 8, "parallel": "pmap"}):
        many = train(**route)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), many, one)


class Interrupted(Observer):
    def row(self, row):
        if row["kind"] == "train" and row["step"] == 3:
            raise KeyboardInterrupt


def test_resumed_bit_for_bit(splits, tmp_path):
    options = config(modality_dropout=0.3, checkpoint_every=2)
    straight = fit(options, splits=splits)
    with pytest.raises(KeyboardInterrupt):
        fit(options, tmp_path, splits=splits, observer=Interrupted())
    leaves_equal(fit(options, tmp_path, splits=splits).variables, straight.variables)


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """A run in which most batches lack modality c, and the validation split too."""
    present = presence()
    split = np.arange(N) // 3 % 4
    split = np.where(split == 3, 0, split)
    present[:, 2] = False
    present[np.flatnonzero(split == 0)[:2], 2] = True
    present[split == 2, 2] = True
    present[~present.any(axis=1), 0] = True
    folder = tmp_path_factory.mktemp("rare")
    splits = from_arrays(*arrays(), present=present, split=split)
    return fit(config(monitor_every=1, batch_size=8), folder, splits=splits), folder, splits


def test_what_a_batch_lacks_is_left_out_of_the_rows(rare):
    run, folder, splits = rare
    rows = read_rows(folder / "metrics.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    with_c = [row for row in train if "loss/c" in row]
    assert 1 <= len(with_c) <= 2 < len(train)
    assert all(np.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))
    gradients = [row for row in rows if row["kind"] == "gradients"]
    assert sum("norm/c" in row for row in gradients) == len(with_c)
    validation = [row for row in rows if row["kind"] == "validation"]
    assert all("c/accuracy" not in row and "a/accuracy" in row for row in validation)
    assert "c/accuracy" in run.metrics


def test_a_modality_is_measured_on_who_has_it_and_garbage_changes_no_answer(rare):
    run, _, splits = rare
    test = splits.test
    measured = evaluate(run, test)
    answers = run.predict(test.inputs, test.present)
    for i, m in enumerate("abc"):
        rows = test.present[:, i]
        assert np.isnan(answers[m][~rows]).all() and np.isfinite(answers[m][rows]).all()
        expected = task_metrics(test.task, np.log(answers[m][rows]), test.label[rows])
        for name, value in expected.items():
            np.testing.assert_allclose(measured[f"{m}/{name}"], value, rtol=1e-5, atol=1e-7, err_msg=name)
    late = np.nanmean(np.stack([np.log(answers[m]) for m in "abc"]), axis=0)
    np.testing.assert_allclose(measured["late_fusion/accuracy"], np.mean(late.argmax(1) == test.label))
    garbage = {m: np.where(test.has(m)[:, None], x, np.nan) for m, x in test.inputs.items()}
    leaves_equal(run.predict(garbage, test.present), answers)
    order = np.random.default_rng(3).permutation(len(test))
    leaves_equal(
        run.predict({m: x[order] for m, x in test.inputs.items()}, test.present[order]),
        {name: x[order] for name, x in answers.items()},
    )


def test_wrong_presence_is_an_error_that_names_modalities_and_shapes(rare):
    run, folder, splits = rare
    inputs = {m: np.ones((4, 4)) for m in "abc"}
    for wrong, message in (
        (np.ones((4, 2), bool), r"present has shape \(4, 2\); expected \(4, 3\), .* each of a, b, c"),
        (np.ones((4, 3)), "present has type float64; it must be bool"),
        (np.arange(12).reshape(4, 3) > 5, "present: rows 0, 1 have no modality"),
    ):
        with pytest.raises(ValueError, match=message):
            load(folder).predict(inputs, wrong)
    with pytest.raises(ValueError, match="b has a NaN or infinite value, first in example 1"):
        bad = np.where(np.arange(4)[:, None] == 1, np.nan, 1.0)
        run.predict(inputs | {"b": np.tile(bad, (1, 4))}, np.arange(12).reshape(4, 3) != 1)
    with pytest.raises(ValueError, match=r"train.modality_dropout must be in \[0, 1\), got 1.0"):
        fit(config(modality_dropout=1.0), splits=splits)


def test_geometry_of_what_is_absent_is_not_a_number(splits):
    experiment = build_classifier(config(), splits)
    present = np.tile([True, True, False], (16, 1))
    measure = jax.jit(partial(measure_gradients, experiment.training))
    told = measure(experiment.initial_state(), batch_of(present))
    assert np.isnan(told["norm/c"]) and np.isnan(told["cosine/fusion/c"])
    assert all(np.isfinite(told[name]) for name in ("norm/fusion", "norm/a", "cosine/fusion/b"))


def test_dropout_of_modalities():
    key = jax.random.key(0)
    rate, n = 0.6, 4000
    free = np.asarray(drop_modalities(None, (n, 3), rate, key))
    assert free.any(axis=1).all() and free.dtype == bool
    # all three at once with .216; then one of them stays
    np.testing.assert_allclose(free.mean(axis=0), 1 - rate + rate**3 / 3, atol=0.03)
    present = presence(n, seed=4)
    kept = np.asarray(drop_modalities(jnp.asarray(present), (n, 3), rate, key))
    assert kept.any(axis=1).all() and not (kept & ~present).any()
    single = present.sum(axis=1) == 1
    np.testing.assert_array_equal(kept[single], present[single])
    spread = jax.pmap(
        lambda p: drop_modalities(p, (n // 8, 3), rate, key, "devices"), axis_name="devices", devices=jax.devices()[:8]
    )
    np.testing.assert_array_equal(spread(present.reshape(8, -1, 3)).reshape(n, 3), kept)
    assert np.any(kept != np.asarray(drop_modalities(jnp.asarray(present), (n, 3), rate, jax.random.key(1))))


def test_dropout_is_drawn_anew_at_every_step_and_is_that_of_the_measurement(splits):
    experiment = build_classifier(config(modality_dropout=0.5), splits)
    state, batch = experiment.initial_state(), batch_of(None)
    step = jax.jit(partial(train_step, experiment.training))
    _, first = step(state, batch)
    _, again = step(state, batch)
    _, later = step(state.replace(step=state.step + 1), batch)
    leaves_equal(first, again)
    assert np.any(first.values != later.values)


def test_other_tasks_train_too():
    inputs, label = arrays()
    data = from_arrays(inputs, inputs["a"][:, :2] * 0.1 + label[:, None], present=presence())
    assert data.train.task == Task("regression", 2)
    run = fit(config(modality_dropout=0.2), splits=data)
    assert all(np.isfinite(v) for v in run.metrics.values())
    assert "late_fusion/r2" in run.metrics
