"""Events read back by TensorBoard's own reader."""

from __future__ import annotations

import builtins
import dataclasses
import io
import math
import re

import numpy as np
import pytest
from rich.console import Console

from mmjax.config import Config, TrainConfig
from mmjax.data import Planted, from_arrays
from mmjax.optim import UniformConfig
from mmjax.report import EventsObserver, Observers, ProgressObserver, events_observer
from mmjax.train.journal import read_rows
from mmjax.train.loop import fit
from mmjax.train.observer import Observer
from mmjax.train.optimizer import SGDConfig
from report.rows import NAMES, run_rows

pytest.importorskip("tensorboard", reason="the extra [tensorboard] is not installed")


def read(workdir) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(workdir / "events"), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(e.step, float(np.asarray(e.tensor_proto.float_val or [np.nan])[0])) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def told(rows):
    """What the events of `rows` should be, in float32."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("step", "kind"):
                found.setdefault(f"{row['kind']}/{key}", []).append((row["step"], float(np.float32(value))))
    return found


def test_every_number_of_every_row_is_there(tmp_path):
    rows = run_rows()
    with EventsObserver(tmp_path) as events:
        events.started(NAMES, 40, 0)
        for row in rows:
            events.row(row)
    found = read(tmp_path)
    assert found == told(rows)
    assert {"train/loss/audio", "validation/fusion/accuracy", "gradients/norm/image", "test/best_step"} <= set(found)


def test_rows_are_on_disk_after_each_validation(tmp_path):
    rows = [row for row in run_rows() if row["kind"] != "test" and row["step"] <= 20][:-1]
    assert rows[-1]["kind"] == "validation"
    events = EventsObserver(tmp_path)
    events.started(NAMES, 40, 0)
    for row in rows:
        events.row(row)
    assert read(tmp_path) == told(rows)  # before it is closed: a kill would lose nothing of this
    events.close()


def test_values_that_are_not_finite_can_be_written(tmp_path):
    with EventsObserver(tmp_path) as events:
        events.started(NAMES, 40, 0)
        events.row({"step": 3, "kind": "gradients", "norm/audio": math.nan})
    ((step, value),) = read(tmp_path)["gradients/norm/audio"]
    assert step == 3 and math.isnan(value)


@pytest.mark.parametrize("first", [0, 6])
def test_steps_taken_again_are_told_once(tmp_path, first):
    """A run is killed at step 8, its checkpoint being of step 6 (or none), and goes on."""

    class Killing(Observer):
        def row(self, row):
            if row["step"] >= (8 if first else 4):
                raise KeyboardInterrupt

    train = TrainConfig(epochs=1, batch_size=8, devices=1, monitor_every=2, log_every=2)
    train = dataclasses.replace(train, evaluate_every=6, checkpoint_every=6)
    config = Config(data=Planted(), method=UniformConfig(), optimizer=SGDConfig(), train=train)
    rng = np.random.default_rng([0, 1])
    label = rng.integers(0, 2, 120)
    splits = from_arrays({"audio": rng.normal(size=(120, 3)).astype(np.float32)}, label)
    with pytest.raises(KeyboardInterrupt), Observers(events_observer(tmp_path), Killing()) as observer:
        fit(config, tmp_path, splits=splits, observer=observer)
    assert max(step for values in read(tmp_path).values() for step, _ in values) >= 4
    file = io.StringIO()
    watching = ProgressObserver(Console(file=file, width=60))
    with Observers(watching, EventsObserver(tmp_path)) as observer:
        fit(config, tmp_path, splits=splits, observer=observer)
    found = read(tmp_path)
    assert found == told(read_rows(tmp_path / "metrics.jsonl"))
    assert [step for step, _ in found["train/loss/audio"]] == [2, 4, 6, 8, 10, 11]
    said = re.findall("resuming at step [0-9]+|compiled in|step [0-9]+/11", file.getvalue())
    assert said == (
        ["resuming at step 6", "compiled in", "step 11/11"] if first else ["compiled in", "step 6/11", "step 11/11"]
    )
    with EventsObserver(tmp_path) as observer:  # there is nothing left to do
        fit(config, tmp_path, splits=splits, observer=observer)
    assert read(tmp_path) == found


def test_events_of_a_folder_without_metrics_are_left_alone(tmp_path):
    for value in (1.0, 2.0):
        with EventsObserver(tmp_path) as events:
            events.started(NAMES, 40, 0)
            events.row({"step": int(value), "kind": "train", "loss/fusion": value})
    assert sorted(read(tmp_path)["train/loss/fusion"]) == [(1, 1.0), (2, 2.0)]


def test_a_folder_that_is_another_runs_is_not_touched(tmp_path):
    EventsObserver(tmp_path / "run")
    events_observer(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_tensorboard_nothing_happens(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "tensorboard":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    observer = events_observer(tmp_path)
    assert type(observer) is Observer
    observer.row(run_rows()[0])
    assert not list(tmp_path.iterdir())


def test_with_tensorboard_it_is_used(tmp_path):
    assert isinstance(events_observer(tmp_path), EventsObserver)
