"""The loop: resume bit for bit, devices, non-finite losses, predictions, work folders."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import Config, ModelConfig, TrainConfig
from mmjax.data import Planted, Splits, Task, batch_indices, from_arrays, gather
from mmjax.models import LeNetConfig, MLPConfig, build_model
from mmjax.optim import JointConfig, MimoConfig, UniformConfig
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.experiment import build_experiment
from mmjax.train.journal import MetricsFile, read_rows
from mmjax.train.loop import fit
from mmjax.train.nonfinite import NonFiniteError
from mmjax.train.observer import Observer
from mmjax.train.optimizer import AdamConfig, CosineConfig, SGDConfig
from mmjax.train.run import evaluate, load
from mmjax.train.step import train_step


def arrays(n=96, seed=0, task="classification"):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    inputs = {
        "zoom": (np.eye(3)[label] + rng.normal(size=(n, 3))).astype(np.float32),
        "audio": (np.eye(3)[label] + 2 * rng.normal(size=(n, 3))).astype(np.float32),
    }
    if task == "multilabel":
        return inputs, np.stack([label > 0, label > 1], 1).astype(np.float32)
    if task == "regression":
        return inputs, (label + rng.normal(size=n)).astype(np.float32)
    return inputs, label


@pytest.fixture(scope="module")
def splits() -> Splits:
    return from_arrays(*arrays())


def config(**train) -> Config:
    options = {"epochs": 4.0, "batch_size": 16, "devices": 1, "monitor_every": 5, "checkpoint_every": 6, "log_every": 4}
    return Config(
        data=Planted(),
        model=ModelConfig(encoders={"audio": MLPConfig(width=8, norm="batch", dropout=0.2)}),
        method=MimoConfig(),
        optimizer=SGDConfig(learning_rate=0.05, schedule=CosineConfig(warmup_steps=3)),
        train=TrainConfig(**(options | train)),
    )


def digest(tree) -> str:
    leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def comparable(rows):
    timing = ("steps_per_second", "wall_seconds", "compile_seconds")
    return [{k: v for k, v in row.items() if k not in timing} for row in rows]


class _Interrupt(Observer):
    def __init__(self, at):
        self.at = at

    def row(self, row):
        if row["step"] >= self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [3, 13])
def test_interrupted_and_resumed_is_the_straight_run_bit_for_bit(splits, tmp_path, at):
    straight = fit(config(), tmp_path / "straight", splits=splits)
    with pytest.raises(KeyboardInterrupt):
        fit(config(), tmp_path / "resumed", splits=splits, observer=_Interrupt(at))
    resumed = fit(config(), tmp_path / "resumed", splits=splits)
    assert digest(resumed.variables) == digest(straight.variables)
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("straight", "resumed")]
    assert comparable(rows[1]) == comparable(rows[0])
    again = fit(config(), tmp_path / "resumed", splits=splits)  # finished: nothing is done again
    assert again.metrics == resumed.metrics
    assert read_rows(tmp_path / "resumed" / "metrics.jsonl") == rows[1]


def test_the_best_model_that_a_checkpoint_names_outlives_the_better_ones_after_it(splits, tmp_path):
    small = ModelConfig(encoders={m: MLPConfig(width=4, depth=1) for m in splits.train.modalities})
    often = config(evaluate_every=1, checkpoint_every=4, epochs=2.5, monitor_every=0)
    often = dataclasses.replace(often, model=small, method=UniformConfig(), optimizer=SGDConfig(learning_rate=0.01))
    straight = fit(often, splits=splits)
    with pytest.raises(KeyboardInterrupt):
        fit(often, tmp_path, splits=splits, observer=_Interrupt(8))
    saved = sorted(int(p.name) for p in (tmp_path / "checkpoints" / "best").iterdir())
    assert 4 in saved and len([step for step in saved if step > 4]) >= 2  # else this shows nothing
    resumed = fit(often, tmp_path, splits=splits)
    assert digest(resumed.variables) == digest(straight.variables)
    assert len(list((tmp_path / "checkpoints" / "best").iterdir())) <= 4  # they do not pile up


def test_best_models_after_the_checkpoint_that_a_run_goes_on_from_are_forgotten(tmp_path):
    """On other devices the numbers part: what was the best at a later step there must not be taken for the best here."""
    checkpoints = Checkpoints(tmp_path)
    try:
        for step in (4, 7):
            checkpoints.save_best(step, {"w": jnp.full(2, float(step))})
        checkpoints.forget_best_after(4)
        assert checkpoints.best_step() == 4
        checkpoints.save_best(7, {"w": jnp.zeros(2)})  # the same step again, with other numbers
        assert not np.asarray(checkpoints.restore_best({"w": jnp.ones(2)})["w"]).any()
    finally:
        checkpoints.close()


def test_a_run_that_goes_on_keeps_no_best_model_from_after_its_checkpoint(splits, tmp_path):
    class Look(Observer):
        def compiled(self, seconds):
            assert max(int(p.name) for p in (tmp_path / "checkpoints" / "best").iterdir()) <= 4

    small = ModelConfig(encoders={m: MLPConfig(width=4, depth=1) for m in splits.train.modalities})
    often = config(evaluate_every=1, checkpoint_every=4, epochs=2.0, monitor_every=0)
    often = dataclasses.replace(often, model=small, method=UniformConfig(), optimizer=SGDConfig(learning_rate=0.01))
    with pytest.raises(KeyboardInterrupt):
        fit(often, tmp_path, splits=splits, observer=_Interrupt(7))
    assert max(int(p.name) for p in (tmp_path / "checkpoints" / "best").iterdir()) > 4  # else this shows nothing
    fit(often, tmp_path, splits=splits, observer=Look())


def test_a_modality_called_type_is_loaded_again(tmp_path):
    inputs, label = arrays()
    splits = from_arrays({"type": inputs["zoom"], "audio": inputs["audio"]}, label)
    small = MLPConfig(width=4, depth=1)
    named = dataclasses.replace(config(epochs=1.0), model=ModelConfig(encoders={"type": small, "audio": small}))
    run = fit(named, tmp_path, splits=splits)
    assert digest(load(tmp_path).variables) == digest(run.variables)
    relabelled = Splits(
        dataclasses.replace(splits.train, label=(splits.train.label + 1) % 3), splits.validation, splits.test
    )
    with pytest.raises(ValueError, match=r"holds a run on other data: labels\.train is \d+ there"):
        fit(named, tmp_path, splits=relabelled)


def test_one_and_eight_devices_and_pmap_agree(splits):
    """DESIGN: SGD in float32 to 1e-5; the trajectory includes batch norm, dropout and validation."""
    one = fit(config(), splits=splits)
    for options in ({"devices": 8}, {"devices": 8, "parallel": "pmap"}):
        many = fit(config(**options), splits=splits)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), many.variables, one.variables)


def widen(tree):
    return jax.tree.map(lambda x: x.astype("float64") if x.dtype == "float32" else x, tree)


def test_adam_on_eight_devices_in_float64(splits):
    """Float32 rounding, amplified by Adam, hides mistakes; in float64 eight devices are one to 1e-9."""

    def train(devices, parallel):
        with jax.enable_x64(True):
            options = config(devices=devices, parallel=parallel, batch_size=32)
            adam = dataclasses.replace(
                options, model=ModelConfig(), method=UniformConfig(), optimizer=AdamConfig(learning_rate=0.01)
            )
            experiment = build_experiment(adam, splits)
            training = experiment.training
            wide = build_model(
                ModelConfig(dtype="float64"),
                splits.train.modalities,
                3,
                axis_name=training.axis_name,
            )
            training = dataclasses.replace(training, inference=dataclasses.replace(training.inference, model=wide))
            state = experiment.initial_state()
            combiner, optimizer = state.opt_state  # the combiner's record stays in float32
            state = state.replace(params=widen(state.params), opt_state=(combiner, widen(optimizer)))
            route = experiment.route
            state = route.place_state(state)

            def place(t):
                return route.place_batch(widen(gather(splits.train, batch_indices(0, t, len(splits.train), 32))))

            program = route.compile(partial(train_step, training), state, place(0), donate=True)
            for t in range(20):
                state, _ = program(state, place(t))
            return jax.device_get(route.local_state(state).params)

    one = train(1, "jit")
    assert jax.tree.leaves(one)[0].dtype == np.float64
    for devices, parallel in ((8, "jit"), (8, "pmap")):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), train(devices, parallel), one)


def test_metrics_rows_are_whole_and_the_test_split_is_looked_at_once(splits, tmp_path):
    run = fit(config(), tmp_path, splits=splits)
    rows = read_rows(tmp_path / "metrics.jsonl")
    kinds = [row["kind"] for row in rows]
    assert kinds.count("test") == 1 and kinds[-1] == "test"
    assert {row["step"] for row in rows if row["kind"] == "gradients"} == set(range(0, rows[-1]["step"], 5))
    assert {"weight/fusion", "weight/audio", "loss/zoom"} <= set(rows[1])
    assert run.metrics["fusion/accuracy"] == rows[-1]["fusion/accuracy"]
    assert {"config.json", "environment.json", "metrics.jsonl", "checkpoints"} <= {p.name for p in tmp_path.iterdir()}
    assert json.loads((tmp_path / "environment.json").read_text())["versions"]["jax"] == jax.__version__


def test_loaded_model_predicts_as_the_trained_one(splits, tmp_path):
    run = fit(config(), tmp_path, splits=splits)
    loaded = load(tmp_path)
    inputs, _ = arrays(n=9, seed=1)
    ours, theirs = run.predict(inputs), loaded.predict(inputs)
    assert set(ours) == {"fusion", "audio", "zoom"} and ours["fusion"].shape == (9, 3)
    np.testing.assert_allclose(ours["zoom"].sum(axis=1), 1, rtol=1e-6)
    for name in ours:
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-6)
    assert loaded.metrics == run.metrics
    measured = evaluate(loaded, splits.test)
    np.testing.assert_allclose(measured["fusion/nll"], run.metrics["fusion/nll"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"zoom has shape \(9, 2\); expected \[N, 3\]"):
        run.predict(inputs | {"zoom": inputs["zoom"][:, :2]})
    with pytest.raises(ValueError, match="modalities"):
        run.predict({"zoom": inputs["zoom"]})
    with pytest.raises(ValueError, match="audio has a NaN or infinite value, first in example 4"):
        bad = inputs["audio"].copy()
        bad[4, 1] = np.nan
        run.predict(inputs | {"audio": bad})


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks_train(task, tmp_path):
    other = from_arrays(*arrays(task=task))
    assert other.train.task.kind == task
    run = fit(config(epochs=2), tmp_path, splits=other)
    score = {"multilabel": "map", "regression": "r2"}[task]
    assert np.isfinite(run.metrics[f"fusion/{score}"])
    assert load(tmp_path).predict(arrays(n=4)[0])["fusion"].shape == (4, 2 if task == "multilabel" else 1)
    with pytest.raises(ValueError, match="label_smoothing is for classification"):
        fit(config(label_smoothing=0.1), splits=other)


def test_one_modality_trains(splits):
    one = from_arrays({"only": arrays()[0]["zoom"]}, arrays()[1])
    run = fit(dataclasses.replace(config(), model=ModelConfig(), method=JointConfig()), splits=one)
    assert run.metrics["fusion/accuracy"] > 0.4


def test_smoothing_weights_and_early_stopping(splits, tmp_path):
    options = config(label_smoothing=0.1, class_weights="balanced", early_stopping=1, epochs=50.0, log_every=50)
    run = fit(dataclasses.replace(options, method=UniformConfig()), tmp_path, splits=splits)
    rows = read_rows(tmp_path / "metrics.jsonl")
    validation = [row for row in rows if row["kind"] == "validation"]
    best = min(validation, key=lambda row: row["fusion/nll"])
    assert validation[-1]["step"] < 50 * len(splits.train) / 16 - 6  # it did stop early
    assert rows[-1]["best_step"] == best["step"]
    measured = evaluate(run, splits.validation)
    np.testing.assert_allclose(measured["fusion/nll"], best["fusion/nll"], rtol=1e-5)  # the best, not the last
    resumed = fit(dataclasses.replace(options, method=UniformConfig()), tmp_path, splits=splits)
    assert resumed.metrics == run.metrics


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_a_non_finite_loss_stops_the_run_and_keeps_the_good_checkpoint(tmp_path, parallel):
    inputs, label = arrays()
    data = from_arrays(inputs, label)
    poisoned = {m: np.array(data.train.inputs[m]) for m in data.train.modalities}
    steps = config(parallel=parallel, batch_size=8, devices=8 if parallel == "pmap" else 1, monitor_every=1)
    seen = np.concatenate([batch_indices(0, t, len(data.train), 8) for t in range(8)])
    late = np.setdiff1d(np.arange(len(data.train)), seen)
    if not len(late):
        late = batch_indices(0, 8, len(data.train), 8)
    first = min(t for t in range(40) if np.isin(batch_indices(0, t, len(data.train), 8), late[:1]).any())
    poisoned["audio"][late[0]] = np.inf  # after loading, so that no check of the data sees it
    bad = dataclasses.replace(data, train=dataclasses.replace(data.train, inputs=poisoned))
    with pytest.raises(NonFiniteError, match=f"not finite at step {first}") as error:
        fit(steps, tmp_path, splits=bad)
    assert error.value.step == first and error.value.quantity == "loss"
    assert error.value.names == ("fusion", "audio")
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints" / "last").iterdir() if p.name.isdigit())
    assert kept == [] or kept[-1] <= first
    assert not any("NaN" in line for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    measured = [row["step"] for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "gradients"]
    assert measured == list(range(first))


def test_the_hot_loop_transfers_nothing_unasked(splits):
    class Guard(Observer):
        def compiled(self, seconds):
            jax.config.update("jax_transfer_guard", "disallow")

    try:
        run = fit(config(epochs=1), splits=splits, observer=Guard())
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert run.metrics


def test_nothing_is_compiled_after_the_first_evaluation(splits):
    """Steps, measurements, evaluations: each program once, before or at its first use."""
    compiled: list[float] = []

    class Count(Observer):
        def row(self, row):
            if row["kind"] == "validation" and row["step"] > 8:
                late.append(len(compiled))

    late: list[int] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if "backend_compile" in event else None
    )
    try:
        fit(config(monitor_every=2), splits=splits, observer=Count())
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled and len(late) >= 2  # else this shows nothing
    assert late[0] == late[-1]


def test_mistakes_are_named_before_anything_is_compiled(splits, tmp_path, monkeypatch):
    monkeypatch.setattr("mmjax.train.parallel.Route.compile", lambda *a, **k: pytest.fail("compiled"))
    cases = {
        "larger than the training split": config(batch_size=1000),
        "does not divide evenly over 8 devices": config(batch_size=12, devices=8),
        "there are only": config(devices=99),
        "train.epochs must be finite and above 0": config(epochs=0),
        "train.epochs must be finite": config(epochs=float("inf")),
        "train.seed must be at least 0 and below": config(seed=10**30),
        "model.encoders.sound": dataclasses.replace(config(), model=ModelConfig(encoders={"sound": MLPConfig()})),
        "LeNet": dataclasses.replace(config(), model=ModelConfig(encoders={"zoom": LeNetConfig()})),
        "method.penalty must be": dataclasses.replace(config(), method=MimoConfig(penalty=-1.0)),
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=message):
            fit(wrong, splits=splits)


def test_a_work_folder_of_another_run_is_refused(splits, tmp_path):
    fit(config(epochs=1), tmp_path, splits=splits)
    with pytest.raises(ValueError, match="train.seed is 0 there and 1 here"):
        fit(config(epochs=1, seed=1), tmp_path, splits=splits)
    with pytest.raises(FileNotFoundError, match="not a work folder"):
        load(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        fit(config(), tmp_path / "file" / "below", splits=splits)


def test_a_full_disk_is_told_as_such(splits, tmp_path, monkeypatch):
    """Orbax says it in a ValueError, from the thread that writes; so it may come with a later call."""
    told = "RESOURCE_EXHAUSTED: Error writing ...: No space left on device [os_error_code='28'] [source locations='a.cc:1']"

    def full(*args, **options):
        raise ValueError(told)

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*checkpoints'") as error:
        fit(config(epochs=1), tmp_path, splits=splits)
    assert error.value.errno == errno.ENOSPC
    told = "something else"
    with pytest.raises(ValueError, match="something else"):
        fit(config(epochs=1), tmp_path / "again", splits=splits)


def test_what_closing_meets_does_not_hide_why_a_run_ended(splits, tmp_path, monkeypatch):
    def full(*args, **options):
        raise ValueError("No space left on device [os_error_code='28']")

    class Interrupt(Observer):
        def row(self, row):
            raise KeyboardInterrupt

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.close", full)
    with pytest.raises(KeyboardInterrupt) as cut:
        fit(config(epochs=1), tmp_path / "cut", splits=splits, observer=Interrupt())
    assert ["No space left" in note for note in cut.value.__notes__] == [True]
    with pytest.raises(OSError, match="No space left") as error:
        fit(config(epochs=1), tmp_path / "whole", splits=splits)
    assert isinstance(error.value.__cause__, ValueError)


def test_checkpoints_are_closed_also_where_the_metrics_file_fails(splits, tmp_path, monkeypatch):
    closed, close_file = [], MetricsFile.close

    def fail(self):
        close_file(self)
        raise OSError("metrics")

    monkeypatch.setattr(MetricsFile, "close", fail)
    close = Checkpoints.close
    monkeypatch.setattr(Checkpoints, "close", lambda self: (close(self), closed.append(self)))
    with pytest.raises(OSError, match="metrics"):
        fit(config(epochs=1), tmp_path, splits=splits)
    assert len(closed) == 1


def test_a_run_is_shown_without_its_arrays(splits):
    shown = repr(fit(config(epochs=1), splits=splits))
    assert "fusion/accuracy" in shown and "Array" not in shown and len(shown) < 5000


def test_a_work_folder_of_other_data_is_refused_and_left_as_it_is(splits, tmp_path):
    fit(config(epochs=1), tmp_path, splits=splits)
    before = load(tmp_path).predict(arrays(n=3)[0])["fusion"]
    with pytest.raises(
        ValueError, match=r"holds a run on other data: inputs\.audio\.shape is \[3\] there and \[2\] here"
    ):
        inputs, label = arrays()
        fit(config(epochs=1), tmp_path, splits=from_arrays(inputs | {"audio": inputs["audio"][:, :2]}, label))
    with pytest.raises(ValueError, match=r"holds a run on other data: inputs\.audio\.preprocess\.mean"):
        fit(config(epochs=1), tmp_path, splits=from_arrays(*arrays(seed=1)))
    np.testing.assert_array_equal(load(tmp_path).predict(arrays(n=3)[0])["fusion"], before)


def test_without_a_work_folder_a_run_that_breaks_off_says_that_nothing_is_kept():
    inputs, label = arrays(n=32)
    data = from_arrays(inputs, label)
    wild = dataclasses.replace(config(epochs=3), optimizer=SGDConfig(learning_rate=1e30))
    with pytest.raises(NonFiniteError, match="nothing is kept, as the run has no work folder"):
        fit(wild, splits=data)


def test_task_is_kept(tmp_path, splits):
    fit(config(epochs=1), tmp_path, splits=splits)
    assert load(tmp_path).inference.task == Task("classification", 3, splits.train.task.label_names)
