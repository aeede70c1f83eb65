"""What a method may bring besides its combiner: objectives of its own, and a pass over the training split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from mmjax.config import Config, MethodConfig, TrainConfig
from mmjax.data import Planted, batch_indices, from_arrays, gather
from mmjax.method import Objectives, Refresh
from mmjax.optim.gradients import weighted_sum
from mmjax.train.experiment import build_experiment
from mmjax.train.loop import fit
from mmjax.train.observer import Observer
from mmjax.train.optimizer import SGDConfig
from mmjax.train.step import prepare


class CountingState(NamedTuple):
    """weights [K]; examples and correct: what the last pass over the training split counted; told: from the rule."""

    weights: Array
    examples: Array
    correct: Array
    passes: Array
    told: Array
    validation: Array


@dataclass(frozen=True, kw_only=True)
class Counting(MethodConfig):
    """The fusion without one modality as a further term of the fusion loss; a pass that counts."""

    name: str = "counting"
    every: int = 3

    def build(self, context):
        k = len(context.names)

        def init(params):
            zero = jnp.zeros(())
            return CountingState(jnp.ones(k), zero, zero, zero, zero, jnp.full(k, jnp.nan))

        def update(grads, state, params=None, *, told, values, validation_values, **extra):
            new = state._replace(told=told, validation=validation_values)
            return weighted_sum(grads, jnp.ones(k)), new

        return optax.GradientTransformationExtraArgs(init, update)

    def objectives(self, forward):
        without = forward.decide({m: z * (m != "b") for m, z in forward.outputs.features.items()})
        losses = {name: forward.loss(logits) for name, logits in forward.outputs.by_objective.items()}
        blind = forward.loss(without.logits)
        scale = 1.0 + forward.state.passes  # what the state says reaches the objectives
        return Objectives(
            losses | {"fusion": losses["fusion"] + scale * blind}, {"told": forward.mean_over_devices(blind)}
        )

    def refresh(self, context):
        def add(carry, outputs, label, weight):
            examples, correct = carry
            right = (jnp.argmax(outputs.logits, axis=-1) == label) * weight
            return examples + jnp.sum(weight), correct + jnp.sum(right)

        return Refresh(
            every=self.every,
            start=lambda state: (jnp.zeros(()), jnp.zeros(())),
            add=add,
            finish=lambda carry, state: state._replace(examples=carry[0], correct=carry[1], passes=state.passes + 1),
        )


@pytest.fixture(scope="module")
def splits():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 90)
    return from_arrays({m: np.eye(3)[label] + rng.normal(size=(90, 3)) for m in "ab"}, label)


def config(**train):
    options = {"epochs": 1.0, "batch_size": 8, "devices": 1, "monitor_every": 0, "evaluate_every": 4}
    return Config(
        data=Planted(),
        method=Counting(),
        optimizer=SGDConfig(learning_rate=0.1),
        train=TrainConfig(**(options | train)),
    )


class Interrupted(Observer):
    def row(self, row):
        if row["kind"] == "validation" and row["step"] == 4:
            raise KeyboardInterrupt


class States:
    """Keeps the last state that a run saved."""

    def __init__(self, monkeypatch):
        from mmjax.train import loop

        def keep(loop_self, local):
            self.last = jax.device_get(local)
            save(loop_self, local)

        save = loop._Loop._save
        monkeypatch.setattr(loop._Loop, "_save", keep)


def test_the_rule_and_the_pass_reach_the_combiner(splits, monkeypatch):
    seen = States(monkeypatch)
    results = {}
    for route in ({"devices": 1}, {"devices": 8}, {"devices": 8, "parallel": "pmap"}):
        run = fit(config(**route), splits=splits)
        results[str(route)] = (run.params, seen.last.opt_state[0].inner)
    (params, state), *others = results.values()
    steps = -(-len(splits.train) // 8)
    assert state.examples == len(splits.train)
    assert state.passes == -(-steps // 3)
    assert 0 < state.correct <= len(splits.train)
    assert np.isfinite(state.validation).all()  # evaluated before the last step
    for other_params, other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), other_params, params)
        np.testing.assert_allclose(other.told, state.told, rtol=1e-5)


def test_a_run_with_passes_resumes_bit_for_bit(splits, tmp_path):
    straight = fit(config(), splits=splits)
    with pytest.raises(KeyboardInterrupt):
        fit(config(), tmp_path, splits=splits, observer=Interrupted())
    resumed = fit(config(), tmp_path, splits=splits)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)


def test_the_gradient_is_that_of_the_methods_own_objectives(splits):
    experiment = build_experiment(replace(config(), optimizer=SGDConfig(learning_rate=1.0, momentum=0.0)), splits)
    state = experiment.initial_state()
    batch = jax.tree.map(jnp.asarray, gather(splits.train, batch_indices(0, 0, len(splits.train), 8)))
    model = experiment.inference.model

    def losses(params):
        outputs = model.apply({"params": params}, prepare(experiment.inference, batch.inputs), train=True)
        blind = model.apply({"params": params}, outputs.features | {"b": 0 * outputs.features["b"]}, method="decide")
        loss = lambda x: optax.softmax_cross_entropy_with_integer_labels(x, batch.label).mean()  # noqa: E731
        return sum(map(loss, outputs.by_objective.values())) + loss(blind.logits), loss(blind.logits)

    new, _ = jax.jit(experiment.step)(state, batch)
    gradient, blind = jax.grad(losses, has_aux=True)(state.params)
    expected = jax.tree.map(lambda p, g: p - g, state.params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new.params, expected)
    np.testing.assert_allclose(new.opt_state[0].inner.told, blind, rtol=1e-6)


@pytest.mark.parametrize(
    "change", [lambda losses: losses | {"more": losses["a"]}, lambda losses: {"fusion": losses["a"]}]
)
def test_objectives_other_than_the_models_are_refused(splits, change):
    class Other(Counting):
        def objectives(self, forward):
            losses, extra = super().objectives(forward)
            return Objectives(change(losses), extra)

    with pytest.raises(ValueError, match=r"must be those of the model, \['a', 'b', 'fusion'\]; its rule returned"):
        fit(replace(config(), method=Other()), splits=splits)
