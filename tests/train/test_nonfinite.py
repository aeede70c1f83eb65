"""A step at which something is not finite moves nothing: it is skipped, or halts the run and is named."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax import Config, NonFiniteError, TrainConfig, fit
from mmjax.config import MethodConfig
from mmjax.data import Planted, batch_indices, from_arrays, gather
from mmjax.method import Objectives, plain_losses
from mmjax.optim import uniform
from mmjax.train.experiment import build_experiment
from mmjax.train.journal import read_rows
from mmjax.train.observer import Observer
from mmjax.train.optimizer import SGDConfig
from mmjax.train.state import TrainState, settled

MARK = 3
"""The class of the one example at which things go wrong."""


@dataclass(frozen=True, kw_only=True)
class Trap(MethodConfig):
    """Uniform, until the marked example comes: then the loss or the gradient of "b", or the update, is not finite."""

    name: str = "trap"
    what: str = "gradient"
    axis: str | None = None
    """The devices' axis, under pmap."""

    def build(self, context):
        inner = uniform(num_objectives=len(context.names))

        def update(grads, state, params=None, *, labels, **extra):
            updates, state = inner.update(grads, state, params, **extra)
            wrong = jnp.inf if self.what == "update" else 1.0
            factor = jnp.where(jnp.any(labels == MARK), wrong, 1.0)
            if self.axis:
                factor = jax.lax.pmax(factor, self.axis)
            return jax.tree.map(lambda u: u * factor, updates), state

        return optax.GradientTransformationExtraArgs(inner.init, update)

    def objectives(self, forward):
        losses, extra = plain_losses(forward)
        far = 1.0 - jnp.any(forward.label == MARK)
        if self.what == "loss":
            losses["b"] += 1 / far - 1
        if self.what == "gradient":  # 0 at the mark, with a slope of 0 * inf
            losses["b"] += jnp.sqrt(far * jnp.sum(forward.outputs.features["b"] ** 2))
        return Objectives(losses, extra)


@pytest.fixture(scope="module")
def splits():
    rng = np.random.default_rng(0)
    label = np.arange(120) % 4
    data = from_arrays({m: np.eye(4)[label] + rng.normal(size=(120, 4)) for m in "ab"}, label)
    marked = np.flatnonzero(data.train.label == MARK)
    label = np.where(np.isin(np.arange(len(data.train)), marked[1:]), 0, data.train.label)
    return dataclasses.replace(data, train=dataclasses.replace(data.train, label=label))


def config(what="gradient", **train):
    options = {"epochs": 1.0, "batch_size": 8, "devices": 1, "monitor_every": 0, "log_every": 2}
    return Config(
        data=Planted(),
        method=Trap(what=what, axis="data" if train.get("parallel") == "pmap" else None),
        optimizer=SGDConfig(learning_rate=0.05),
        train=TrainConfig(**(options | train)),
    )


def marked_steps(splits, epochs):
    train = splits.train
    steps = range(int(np.ceil(epochs * len(train) / 8)))
    return [t for t in steps if (train.label[batch_indices(0, t, len(train), 8)] == MARK).any()]


@pytest.mark.parametrize(
    ("what", "objectives", "route"),
    [
        ("loss", ("b",), {}),
        ("gradient", ("b",), {}),
        ("gradient", ("b",), {"parallel": "pmap", "devices": 2}),
        ("update", (), {}),
    ],
)
def test_the_step_that_halts_the_run_says_what_and_whose(splits, tmp_path, what, objectives, route):
    first = marked_steps(splits, 1)[0]
    options = config(what, **route, evaluate_every=100, log_every=max(first - 1, 1))
    with pytest.raises(NonFiniteError, match=f"step {first}; no checkpoint had been saved yet") as error:
        fit(options, tmp_path, splits=splits)
    assert (error.value.step, error.value.quantity, error.value.objectives) == (first, what, objectives)
    assert ("the update is not finite, though every objective's gradient is," in str(error.value)) == (what == "update")


@pytest.mark.parametrize("what", ["loss", "gradient", "update"])
def test_a_skipped_step_moves_nothing(splits, tmp_path, what):
    (marked,) = marked_steps(splits, 1)
    assert marked > 0

    class Notes(Observer):
        def __init__(self):
            self.texts = []

        def note(self, text):
            self.texts.append(text)

    notes = Notes()
    run = fit(config(what, skip_nonfinite=1, evaluate_every=100), tmp_path, splits=splits, observer=notes)
    experiment = build_experiment(config(what), splits)
    state, step = experiment.initial_state(), jax.jit(experiment.step)
    for t in range(experiment.end):
        batch = gather(splits.train, batch_indices(0, t, len(splits.train), 8))
        state = state.replace(step=state.step + 1) if t == marked else step(state, batch)[0]
    chex.assert_trees_all_close(run.params, state.params, rtol=1e-6, atol=1e-7)
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["skipped"] for row in rows] == [int(row["step"] > marked) for row in rows]
    assert all(np.isfinite(value) for row in rows for value in row.values() if not isinstance(value, str))
    assert [text for text in notes.texts if "1 skipped so far" in text]


def test_one_more_than_allowed_halts_the_run_also_a_resumed_one(splits, tmp_path):
    first, second = marked_steps(splits, 2)

    class Interrupt(Observer):
        def row(self, row):
            if row["kind"] == "validation":
                raise KeyboardInterrupt

    options = config(skip_nonfinite=1, epochs=2.0)
    with pytest.raises(NonFiniteError, match=f"the gradient of b is not finite at step {second}, after 1 skipped;"):
        fit(options, tmp_path / "straight", splits=splits)
    late = dataclasses.replace(options, train=dataclasses.replace(options.train, evaluate_every=first + 1))
    with pytest.raises(KeyboardInterrupt):
        fit(late, tmp_path / "resumed", splits=splits, observer=Interrupt())
    with pytest.raises(NonFiniteError, match=f"at step {second}, after 1 skipped; the checkpoint of step"):
        fit(late, tmp_path / "resumed", splits=splits)


def test_out_of_range_is_named(splits):
    with pytest.raises(ValueError, match=r"train\.skip_nonfinite must be at least 0, got -1"):
        fit(config(skip_nonfinite=-1), splits=splits)


@pytest.mark.parametrize("allowed", [0, 1])
def test_nothing_moves_after_the_step_that_halts(allowed):
    def state(value, step):
        tree = {"w": jnp.full(2, value)}
        return TrainState(
            step=jnp.int32(step),
            params=tree,
            model_state={"statistics": tree},
            opt_state=(tree,),
            key=jax.random.key(0),
            first_bad=jnp.full(3, -1, jnp.int32),
            skipped=jnp.int32(0),
            validation_values=jnp.zeros(2),
        )

    now = state(0.0, 5)
    for bad in (False, True, False, True, False, True):
        then, step = now, int(now.step)
        after = state(float(now.params["w"][0]) + 1, step + 1).replace(first_bad=now.first_bad, skipped=now.skipped)
        sound = jnp.array([True, not bad])
        now = settled(then, after, sound, {"w": jnp.zeros(2)}, allowed)
        for tree in (now.params, now.model_state["statistics"], now.opt_state[0]):
            np.testing.assert_array_equal(tree["w"], now.params["w"])
    assert now.params["w"].tolist() == [1 + allowed] * 2 and int(now.skipped) == 1 + allowed
    assert int(now.step) == 6 + 2 * allowed and now.first_bad.tolist() == [-1, 6 + 2 * allowed, -1]
