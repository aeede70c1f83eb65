"""A step at which something is not finite moves nothing: it is skipped, or halts the run and is named."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax import Config, NonFiniteError, TrainConfig, fit
from mmjax.config import MethodConfig, ModelConfig, StageConfig
from mmjax.data import Planted, batch_indices, from_arrays, gather
from mmjax.method import Objectives, plain_losses
from mmjax.models import CustomConfig, MLPConfig
from mmjax.optim import BogcConfig, bogc
from mmjax.train.experiment import build_experiment
from mmjax.train.journal import read_rows
from mmjax.train.observer import Observer
from mmjax.train.optimizer import SGDConfig
from mmjax.train.state import Moved, TrainState, advanced

MARK = 3
"""The class of the one example at which things go wrong."""


@dataclass(frozen=True, kw_only=True)
class Trap(MethodConfig):
    """BOGC, until the marked example comes: then the loss or gradient of "b" is not finite, or the combined gradient."""

    name: str = "trap"
    what: str = "gradient"
    axis: str | None = None
    """The devices' axis, under pmap."""

    def build(self, context):
        inner = bogc("ema", level="parameters", num_objectives=len(context.names))  # it remembers gradients

        def update(grads, state, params=None, *, labels, **extra):
            updates, state = inner.update(grads, state, params, **extra)
            wrong = jnp.inf if self.what == "combined" else 1.0
            factor = 100.0 if self.what == "overflow" else jnp.where(jnp.any(labels == MARK), wrong, 1.0)
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
            losses["b"] += jnp.mean(jnp.sqrt(far * jnp.sum(forward.outputs.features["b"] ** 2, axis=-1)))
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
        model=ModelConfig(encoders={"a": MLPConfig(width=8, norm="batch")}),
        method=Trap(what=what, axis="data" if train.get("parallel") == "pmap" else None),
        optimizer=SGDConfig(learning_rate=0.05),
        train=TrainConfig(**(options | train)),
    )


def a_state(opt_state):
    return TrainState(
        step=jnp.int32(5),
        params={"w": jnp.zeros(2)},
        model_state={"statistics": jnp.zeros(2)},
        opt_state=opt_state,
        key=jax.random.key(0),
        first_bad=jnp.full(3, -1, jnp.int32),
        skipped=jnp.int32(0),
        validation_values=jnp.zeros(2),
    )


class Notes(Observer):
    """Keeps what a run notes."""

    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def raw(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)


def marked_steps(splits, epochs):
    train = splits.train
    steps = range(int(np.ceil(epochs * len(train) / 8)))
    return [t for t in steps if (train.label[batch_indices(0, t, len(train), 8)] == MARK).any()]


@pytest.mark.parametrize(
    ("what", "names", "options"),
    [
        ("loss", ("b",), {}),
        ("gradient", ("b",), {"monitor_every": 1}),
        ("gradient", ("b",), {"parallel": "pmap", "devices": 2}),
        ("combined", (), {}),
    ],
)
def test_the_step_that_halts_the_run_says_what_and_whose(splits, tmp_path, what, names, options):
    first = marked_steps(splits, 1)[0]
    with pytest.raises(NonFiniteError, match=f"step {first}; no checkpoint had been saved yet") as error:
        fit(config(what, **options, evaluate_every=100, log_every=first - 1), tmp_path, splits=splits)
    quantity = "loss" if what == "loss" else "gradient"
    assert (error.value.step, error.value.quantity, error.value.names) == (first, quantity, names)
    assert ("the combined gradient is not finite, though every objective's is," in str(error.value)) == (not names)
    measured = [row["step"] for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "gradients"]
    assert measured == list(range(first if options.get("monitor_every") else 0))


def test_who_is_not_there_is_not_blamed(splits):
    first = marked_steps(splits, 1)[0]
    present = np.ones((len(splits.train), 2), bool)
    present[batch_indices(0, first, len(splits.train), 8), 0] = False
    partial = dataclasses.replace(splits, train=dataclasses.replace(splits.train, present=present))
    with pytest.raises(NonFiniteError, match=f"the gradient of b is not finite at step {first}"):
        fit(config(evaluate_every=100), splits=partial)


@pytest.mark.parametrize(
    ("what", "route"),
    [("loss", {}), ("gradient", {}), ("combined", {}), ("gradient", {"parallel": "pmap", "devices": 2})],
)
def test_a_skipped_step_moves_nothing(splits, tmp_path, what, route):
    (marked,) = marked_steps(splits, 1)
    assert marked > 0

    notes = Notes()
    run = fit(config(what, **route, skip_nonfinite=1, evaluate_every=100), tmp_path, splits=splits, observer=notes)
    experiment = build_experiment(config(what, skip_nonfinite=1), splits)
    state, step = experiment.initial_state(), jax.jit(experiment.step)
    for t in range(experiment.end):
        before, batch = state, gather(splits.train, batch_indices(0, t, len(splits.train), 8))
        state, _ = step(before, batch)
        if t == marked:
            same = before.replace(step=before.step + 1, skipped=before.skipped + 1)
            assert len(jax.tree.leaves(same.opt_state)) > 20
            for old, new in zip(jax.tree.leaves(same), jax.tree.leaves(state), strict=True):
                np.testing.assert_array_equal(raw(old), raw(new))
    assert state.model_state
    close = {"rtol": 1e-4, "atol": 1e-5} if route else {"rtol": 1e-6, "atol": 1e-7}
    chex.assert_trees_all_close(run.variables, {"params": state.params, **state.model_state}, **close)
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["skipped"] for row in rows] == [int(row["step"] > marked) for row in rows]
    assert all(np.isfinite(value) for row in rows for value in row.values() if not isinstance(value, str))
    assert len([text for text in notes.texts if "1 skipped so far" in text]) == 1


def test_each_stage_may_skip_as_many(splits, tmp_path):
    stages = tuple(StageConfig(title=title, epochs=1.0) for title in ("one", "two"))
    options = config(skip_nonfinite=1, evaluate_every=100, log_every=100)
    fit(dataclasses.replace(options, stages=stages), tmp_path, splits=splits)
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["skipped"] for row in rows] == [1, 1]


@pytest.mark.parametrize("options", [{"evaluate_every": 1}, {"evaluate_every": 100, "skip_nonfinite": 3}])
def test_a_state_that_overflows_is_neither_evaluated_nor_saved(splits, tmp_path, options):
    wild = dataclasses.replace(config("overflow", **options), optimizer=SGDConfig(learning_rate=3e38))
    step = 1 + options.get("skip_nonfinite", 0)
    with pytest.raises(
        NonFiniteError, match=rf"params/encoders_a/.* \(and \d+ more\) is not finite at step {step}"
    ) as error:
        fit(wild, tmp_path, splits=splits)
    assert error.value.quantity == "state" and "params/encoders_b/dense_0/kernel" in error.value.names
    assert not [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "validation"]


class Lowest(nn.Module):
    """Keeps the lowest input of every four steps, infinite at first and when they begin anew."""

    dtype: Any = jnp.float32
    broken: bool = False

    @nn.compact
    def __call__(self, x, train):
        low = self.variable("batch_stats", "low", lambda: jnp.array(jnp.inf))
        count = self.variable("batch_stats", "count", lambda: jnp.array(0))
        if train and not self.is_initializing():
            low.value = jnp.where(count.value % 4 == 3, jnp.inf, jnp.minimum(low.value, x.min()))
            low.value = jnp.where(self.broken, jnp.nan, low.value)
            count.value += 1
        return nn.Dense(4, dtype=self.dtype)(x)


def test_what_may_be_infinite_may_be_so_again_but_not_nan(splits, tmp_path):
    def with_(broken):
        own = CustomConfig(path="train.test_nonfinite:Lowest", options={"broken": broken})
        return dataclasses.replace(config("none", evaluate_every=2), model=ModelConfig(encoders={"a": own}))

    class Interrupt(Observer):
        def row(self, row):
            if row["kind"] == "validation" and row["step"] == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(with_(False), tmp_path, splits=splits, observer=Interrupt())
    fit(with_(False), tmp_path, splits=splits)
    with pytest.raises(NonFiniteError, match=r"batch_stats/encoders_a/low is not finite at step 2"):
        fit(with_(True), splits=splits)


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


@pytest.fixture(scope="module")
def with_a_hole(splits):
    """One training example's input is NaN: a pass over the training split meets it, and few batches do."""
    inputs = dict(splits.train.inputs)
    inputs["b"] = np.where((splits.train.label == MARK)[:, None], np.nan, inputs["b"])
    return dataclasses.replace(splits, train=dataclasses.replace(splits.train, inputs=inputs))


def laplace(**train):
    return dataclasses.replace(config(evaluate_every=100, **train), method=BogcConfig(moments="laplace", samples=16))


def test_a_pass_that_is_not_finite_halts_the_run_before_its_step(with_a_hole):
    with pytest.raises(
        NonFiniteError, match=r"method/moments/posteriors/b/root \(and \d more\) is not finite at step 0"
    ) as error:
        fit(laplace(), splits=with_a_hole)
    assert error.value.quantity == "state" and "method/moments/posteriors/fusion/root" in error.value.names
    assert not any("/a/" in name for name in error.value.names)


def test_a_pass_that_is_not_finite_counts_among_what_may_be_skipped(splits, with_a_hole, tmp_path):
    notes = Notes()
    run = fit(laplace(skip_nonfinite=2), tmp_path / "two", splits=with_a_hole, observer=notes)
    rows = [row for row in read_rows(tmp_path / "two" / "metrics.jsonl") if row["kind"] == "train"]
    assert len(marked_steps(splits, 1)) == 1 and rows[0]["skipped"] == 1 and rows[-1]["skipped"] == 2
    assert np.isfinite(run.metrics["fusion/nll"])
    (told,) = [text for text in notes.texts if "pass" in text]
    assert told.startswith("step 0: after a pass over the training split method/moments/posteriors/b/root would not be")


def test_a_later_pass_halts_the_run_and_what_came_before_is_told(splits, with_a_hole, tmp_path):
    marked = marked_steps(splits, 1)[0]
    often = laplace(skip_nonfinite=1, log_every=4)
    often = dataclasses.replace(often, method=dataclasses.replace(often.method, refresh_epochs=3 / 11))
    second = build_experiment(often, with_a_hole).refresh.every
    assert 1 < second < marked
    with pytest.raises(NonFiniteError, match=rf"method/.* is not finite at step {second}, after 1 skipped"):
        fit(often, tmp_path, splits=with_a_hole)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [second]


def test_out_of_range_is_named(splits):
    with pytest.raises(ValueError, match=r"train\.skip_nonfinite must be at least 0, got -1"):
        fit(config(skip_nonfinite=-1), splits=splits)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (jnp.zeros(3, jnp.int32), r"state\.opt_state\[0\]\['weights'\] is float32\[3\], would be int32\[3\]"),
        (jnp.zeros(2), r"state\.opt_state\[0\]\['weights'\] is float32\[3\], would be float32\[2\]"),
        (None, r"state\.opt_state\[0\]\['weights'\] is float32\[3\], would be nothing"),
    ],
)
def test_a_state_that_changes_its_arrays_is_named(weights, message):
    before = a_state(opt_state=({"weights": jnp.zeros(3)},))
    moved = Moved(before.params, before.model_state, ({"weights": weights},))
    with pytest.raises(ValueError, match=message):
        advanced(before, jnp.array([True]), before.params, lambda: moved, 0)


@pytest.mark.parametrize("allowed", [0, 1])
def test_nothing_moves_after_the_step_that_halts(allowed):
    now = a_state(opt_state=(jnp.zeros(2),))
    for bad in ("nothing", "loss", "nothing", "gradient", "nothing", "loss"):
        before = now
        moved = jax.tree.map(lambda x: x + 1, Moved(before.params, before.model_state, before.opt_state))
        gradient = {"w": jnp.array([0.0, jnp.inf if bad == "gradient" else 0.0])}
        now = advanced(before, jnp.array([True, bad != "loss"]), gradient, lambda moved=moved: moved, allowed)
        for leaf in jax.tree.leaves((now.model_state, now.opt_state)):
            np.testing.assert_array_equal(leaf, now.params["w"])
    assert now.params["w"].tolist() == [1 + allowed] * 2 and int(now.skipped) == 1 + allowed
    assert int(now.step) == 6 + 2 * allowed
    assert now.first_bad.tolist() == ([-1, -1, 8] if allowed else [-1, 6, -1])
