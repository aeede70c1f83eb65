"""AGM, OGM and G-Blend in the trainer: their objectives against autodiff, devices, resuming."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.config import Config, ModelConfig, TrainConfig
from mmjax.data import Planted, batch_indices, from_arrays, gather
from mmjax.models import MLPConfig
from mmjax.optim import AgmConfig, GBlendConfig, JointConfig, OgmConfig, OgmGeConfig, StchConfig
from mmjax.optim.agm import modulation, shapley_shares
from mmjax.train.experiment import build_experiment
from mmjax.train.loop import fit
from mmjax.train.observer import Observer
from mmjax.train.optimizer import SGDConfig
from mmjax.train.step import prepare, train_step


def make_splits(names):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 64)
    return from_arrays({m: (1 + i) * np.eye(3)[label] + rng.normal(size=(64, 3)) for i, m in enumerate(names)}, label)


@pytest.fixture(scope="module")
def splits():
    return make_splits("ab")


def config(method, modalities="ab", **train):
    options = {"epochs": 1.0, "batch_size": 8, "devices": 1, "monitor_every": 0, "evaluate_every": 2}
    return Config(
        data=Planted(),
        method=method,
        model=ModelConfig(encoders={m: MLPConfig(width=4, depth=1) for m in modalities}),
        optimizer=SGDConfig(learning_rate=0.5, momentum=0.0),
        train=TrainConfig(**(options | train)),
    )


def first_step(method, splits, change=lambda state: state, modalities="ab"):
    experiment = build_experiment(config(method, modalities), splits)
    state = change(experiment.initial_state())
    batch = jax.tree.map(jnp.asarray, gather(splits.train, batch_indices(0, 0, len(splits.train), 8)))
    new, metrics = jax.jit(lambda s, b: train_step(experiment.training, s, b))(state, batch)
    return experiment, state, batch, new, metrics


def close(a, b, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def test_agm_begins_as_joint(splits):
    joint = first_step(JointConfig(), splits)[3]
    *_, new, metrics = first_step(AgmConfig(), splits)
    close(new.params, joint.params)
    assert metrics.weights.tolist() == [1, 1, 1]


def test_agm_scales_the_gradient_of_each_share(splits):
    reference = jnp.array([1.6, 0.7])

    def later(state):
        watched = state.opt_state[0]
        combiner = watched.inner._replace(seen=jnp.array([3, 3]), losses=reference)
        return state.replace(opt_state=(watched._replace(inner=combiner), *state.opt_state[1:]))

    experiment, state, batch, new, metrics = first_step(AgmConfig(alpha=0.7), splits, later)
    model = experiment.training.inference.model
    cross_entropy = lambda x: optax.softmax_cross_entropy_with_integer_labels(x, batch.label).mean()  # noqa: E731

    def shares(params):
        features = model.apply(
            {"params": params}, prepare(experiment.training.inference, batch.inputs), train=True, method="encode"
        )

        def worth(coalition):
            kept = {m: z * (m in coalition) for m, z in features.items()}
            return model.apply({"params": params}, kept, train=True, method="decide").logits

        return shapley_shares(worth, "ab"), worth({"a", "b"})

    phi, whole = shares(state.params)
    losses = jnp.stack([cross_entropy(phi[m]) for m in "ab"])
    kappa = modulation(losses, reference, 0.7)
    at_logits = jax.grad(cross_entropy)(whole)
    gradient = jax.grad(
        lambda p: sum(k * jnp.vdot(at_logits, shares(p)[0][m]) for k, m in zip(kappa, "ab", strict=True))
    )(state.params)
    groups = ("encoders_a", "encoders_b", "fusion")
    expected = {g: jax.tree.map(lambda p, d: p - 0.5 * d, state.params[g], gradient[g]) for g in groups}
    close({g: new.params[g] for g in groups}, expected)
    np.testing.assert_allclose(metrics.weights, [1, *kappa], rtol=1e-4)
    np.testing.assert_allclose(metrics.values[0], cross_entropy(whole), rtol=1e-5)  # the value is the plain one
    np.testing.assert_allclose(new.opt_state[0].inner.losses, reference + (losses - reference) / 4, rtol=1e-5)


@pytest.mark.parametrize("names", ["a", "abcde"])
def test_agm_with_one_modality_and_with_more_than_are_enumerated(names):
    splits = make_splits(names)
    joint = first_step(JointConfig(), splits, modalities=names)[3]
    *_, new, metrics = first_step(AgmConfig(permutations=1), splits, modalities=names)
    close(new.params, joint.params)
    assert metrics.weights.tolist() == [1] * (len(names) + 1)


class States:
    """Keeps the last state that a run saved."""

    def __init__(self, monkeypatch):
        from mmjax.train import loop

        save = loop._Loop._save

        def keep(loop_self, local):
            self.last = jax.device_get(local)
            save(loop_self, local)

        monkeypatch.setattr(loop._Loop, "_save", keep)


@pytest.mark.parametrize("method", [AgmConfig(), OgmGeConfig(alpha=0.8)])
def test_one_device_and_eight_by_both_routes_agree(splits, method, monkeypatch):
    seen = States(monkeypatch)
    results = []
    for route in ({"devices": 1}, {"devices": 8}, {"devices": 8, "parallel": "pmap"}):
        run = fit(config(method, epochs=0.5, **route), splits=splits)
        results.append((run.params, seen.last.opt_state[0].inner))
    assert min(results[0][1].weights) < 1
    for other in results[1:]:
        close(other, results[0])


class Interrupted(Observer):
    def row(self, row):
        if row["kind"] == "validation" and row["step"] == 4:
            raise KeyboardInterrupt


def test_gblend_resumes_bit_for_bit_with_weights_of_its_own(splits, tmp_path, monkeypatch):
    method = GBlendConfig()
    seen = States(monkeypatch)
    short = {"epochs": 3.0, "batch_size": 16}
    straight = fit(config(method, **short), splits=splits)
    weights = seen.last.opt_state[0].weights
    np.testing.assert_allclose(weights.sum(), 3.0, rtol=1e-5)
    assert np.ptp(weights) > 1e-3
    with pytest.raises(KeyboardInterrupt):
        fit(config(method, **short), tmp_path, splits=splits, observer=Interrupted())
    resumed = fit(config(method, **short), tmp_path, splits=splits)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)
    np.testing.assert_array_equal(seen.last.opt_state[0].weights, weights)


def test_what_cannot_work_is_said_before_compilation(splits):
    rng = np.random.default_rng(1)
    regression = from_arrays({m: rng.normal(size=(64, 3)) for m in "ab"}, rng.normal(size=(64, 2)))
    for method in (OgmConfig(), AgmConfig()):
        with pytest.raises(ValueError, match="the task is regression"):
            build_experiment(config(method), regression)
    with pytest.raises(ValueError, match=r"method.preference: .*did you mean fusion"):
        build_experiment(config(StchConfig(preference={"fusoin": 2.0})), splits)
    with pytest.raises(ValueError, match="method.stop_epoch"):
        build_experiment(replace(config(OgmConfig(stop_epoch=-1.0))), splits)
