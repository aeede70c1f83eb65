"""RecurrentEncoder: present features untouched, missing ones from the present alone, rounds, learning."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.config import Config, ModelConfig, TrainConfig
from mmjax.data import Planted, from_arrays
from mmjax.generative import RecurrentEncoder, filling_loss
from mmjax.models import MLP, ConcatConfig, MLPConfig
from mmjax.optim import UniformConfig
from mmjax.train.loop import fit
from mmjax.train.optimizer import AdamConfig

PRESENT = jnp.array([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
NAMES = ("audio", "image", "text")
SIZES = {"audio": 3, "image": 5, "text": 4}


@pytest.fixture(scope="module")
def features():
    return {m: jax.random.normal(jax.random.key(i), (4, n)) for i, (m, n) in enumerate(SIZES.items())}


@pytest.fixture(scope="module")
def variables(features):
    return RecurrentEncoder(width=6).init(jax.random.key(9), features, PRESENT)


def fill(variables, features, present=PRESENT, **options):
    return RecurrentEncoder(**({"width": 6} | options)).apply(variables, features, present)


def test_present_features_pass_and_missing_ones_have_no_influence(features, variables):
    filled = fill(variables, features)
    garbage = {m: jnp.where(PRESENT[:, i, None], features[m], jnp.nan) for i, m in enumerate(NAMES)}
    again = fill(variables, garbage)
    for i, m in enumerate(NAMES):
        np.testing.assert_array_equal(filled[m][PRESENT[:, i]], features[m][PRESENT[:, i]])
        np.testing.assert_array_equal(again[m], filled[m])
        assert jnp.isfinite(filled[m]).all()

    def loss(features):
        return sum(jnp.sum(x**2) for x in fill(variables, features).values())

    for i, m in enumerate(NAMES):
        grad = jax.grad(loss)(features)[m]
        assert not np.any(grad[~PRESENT[:, i]]) and np.all(np.any(grad[PRESENT[:, i]], axis=1))


def test_rounds_are_the_formula(features, variables):
    params = jax.tree.map(np.asarray, variables["params"])
    there = {m: np.asarray(PRESENT[:, i, None]) for i, m in enumerate(NAMES)}

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def encode(x):
        return {m: np.maximum(dense(params[f"encoder_{m}"]["dense_0"], x[m]), 0) for m in NAMES}

    def decode(drive):
        centred = drive - drive.mean(1, keepdims=True)
        state = centred / np.sqrt(drive.var(1, keepdims=True) + 1e-6)
        state = np.maximum(state * params["norm"]["scale"] + params["norm"]["bias"], 0)
        guess = {m: np.maximum(dense(params[f"decoder_{m}"]["dense_0"], state), 0) for m in NAMES}
        return {m: np.where(there[m], features[m], dense(params[f"to_{m}"], guess[m])) for m in NAMES}

    known = {m: np.where(there[m], features[m], 0) for m in NAMES}
    count = np.maximum(np.asarray(PRESENT).sum(1, keepdims=True), 1)
    expected = decode(sum(there[m] * e for m, e in encode(known).items()) * 3 / count)
    for rounds in range(3):
        filled = fill(variables, features, rounds=rounds)
        for m in NAMES:
            np.testing.assert_allclose(filled[m], expected[m], rtol=2e-4, atol=2e-5)
        expected = decode(sum(encode(expected).values()))


def test_with_everything_present_nothing_changes(features, variables):
    filled = fill(variables, features, jnp.ones((4, 3), bool))
    for m in NAMES:
        np.testing.assert_array_equal(filled[m], features[m])


def test_encoders_of_the_library_serve_and_are_trained():
    """Two modalities that share a hidden cause: what is filled in comes close to what was hidden."""
    rng = np.random.default_rng(0)
    cause = rng.normal(size=(256, 2)).astype(np.float32)
    features = {
        "a": cause @ rng.normal(size=(2, 4)).astype(np.float32),
        "b": cause @ rng.normal(size=(2, 3)).astype(np.float32),
    }
    module = RecurrentEncoder(
        encoders={"a": MLP(16, 2, norm="group"), "b": MLP(16, 1)}, decoders={"b": MLP(8, 2)}, width=16, rounds=1
    )
    present = jnp.ones((256, 2), bool)
    hidden = jnp.asarray(np.arange(256)[:, None] % 2 == np.arange(2))
    params = module.init(jax.random.key(0), features, present & ~hidden)
    tx = optax.adam(1e-2)

    def loss(params):
        return filling_loss(module.apply(params, features, present & ~hidden), features, present, hidden)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=300)[0][0]

    before, after = float(loss(params)), float(loss(train(params)))
    assert after < 0.2 * before
    assert "encoders_a" in params["params"] and "encoder_b" not in params["params"]


def test_filling_loss_judges_what_was_there_and_hidden():
    features = {"a": jnp.zeros((2, 2)), "b": jnp.zeros((2, 1))}
    filled = {"a": jnp.full((2, 2), 2.0), "b": jnp.full((2, 1), 7.0)}
    present = jnp.array([[True, False], [True, True]])
    hidden = jnp.array([[True, True], [False, False]])
    assert filling_loss(filled, features, present, hidden) == 4.0
    assert filling_loss(filled, features, present, jnp.zeros((2, 2), bool)) == 0.0


def test_mistakes_are_named(features):
    def run(present=PRESENT, **options):
        RecurrentEncoder(**options).init(jax.random.key(0), features, present)

    cases = {
        "rounds must be an integer of at least 0, got -1": {"rounds": -1},
        r"present must have shape \(4, 3\), a column a modality; got \(4, 2\)": {"present": PRESENT[:, :2]},
        "present must be bool, got float32": {"present": PRESENT.astype(float)},
        "decoders name 'smell'": {"decoders": {"smell": MLP(3)}},
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=message):
            run(**options)


def test_a_fusion_fills_in_what_is_absent_and_trains_it():
    """Modality b follows from a and decides the label: a model that fills it in can tell where b is missing."""
    rng = np.random.default_rng(0)
    label = np.arange(400) % 4
    centres = rng.normal(size=(4, 5))
    inputs = {
        "a": 3 * centres[label] + rng.normal(size=(400, 5)),
        "b": 3 * np.eye(4)[label] + rng.normal(size=(400, 4)),
    }
    present = np.stack([np.ones(400, bool), rng.random(400) < 0.5], axis=1)
    splits = from_arrays(inputs, label, present=present)

    def run(**fusion):
        encoders = {m: MLPConfig(width=8, depth=1) for m in "ab"}
        model = ModelConfig(encoders=encoders, fusion=ConcatConfig(hidden=(8,), **fusion))
        train = TrainConfig(epochs=10, batch_size=40, devices=1, monitor_every=0)
        optimizer = AdamConfig(learning_rate=0.01)
        return fit(
            Config(data=Planted(), model=model, method=UniformConfig(), optimizer=optimizer, train=train), splits=splits
        )

    found = run(absent="recurrent", rounds=3)
    filler = found.variables["params"]["fusion"]["fill"]["recurrent"]
    assert {"encoder_a", "encoder_b", "decoder_a", "decoder_b", "norm", "to_a", "to_b"} == set(filler)
    start = run(absent="recurrent", rounds=0).variables["params"]["fusion"]["fill"]["recurrent"]
    assert not np.allclose(filler["to_b"]["kernel"], start["to_b"]["kernel"])
    assert found.metrics["fusion/accuracy"] > 0.85
    alone = found.predict(splits.test.inputs, present=np.array([[True, False]] * len(splits.test)))["fusion"]
    assert np.mean(alone.argmax(-1) == splits.test.label) > 0.8
    with pytest.raises(ValueError, match="fusion option rounds must be at least 0, got -1"):
        run(absent="recurrent", rounds=-1)
