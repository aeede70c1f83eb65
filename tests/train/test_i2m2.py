"""Products of experts in whole runs: what each kind can learn, and with modalities missing."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mmjax.config import Config, TrainConfig
from mmjax.data import Planted, from_arrays
from mmjax.models import ConcatConfig, ExpertsConfig, MLPConfig
from mmjax.optim import JointConfig, UniformConfig
from mmjax.train.loop import fit
from mmjax.train.optimizer import AdamConfig
from mmjax.train.run import evaluate

WORLDS = {
    # unique and synergistic bits; the label has 2 to the power of their number classes
    "single modalities": ({"a": 1.0, "b": 1.0}, {}),
    "their interaction": ({}, {"a+b": 1.0}),
    "both": ({"a": 1.0}, {"a+b": 1.0}),
}
MISSED = 0.03  # of accuracy, from few steps on few examples; the study itself allows 0.01


@pytest.fixture(scope="module", params=WORLDS)
def study(request):
    """The small version of benchmarks/i2m2.py: the test accuracy of every kind in one world."""
    unique, synergistic = WORLDS[request.param]
    data = Planted(
        unique=unique, redundant={}, synergistic=synergistic, depth={"a": 0, "b": 0}, width=4,
        train_examples=1024, validation_examples=64, test_examples=1000,
    )  # fmt: skip
    splits = data.load()

    def accuracy(kind):
        model = ExpertsConfig(
            experts=kind, encoders={m: MLPConfig(width=16, depth=1) for m in "ab"}, fusion=ConcatConfig(hidden=(16,))
        )
        train = TrainConfig(epochs=15, batch_size=32, devices=1, monitor_every=0, evaluate_every=480)
        options = Config(
            data=data, model=model, method=JointConfig(), optimizer=AdamConfig(learning_rate=0.01), train=train
        )
        return fit(options, splits=splits).metrics["fusion/accuracy"]

    return request.param, {kind: accuracy(kind) for kind in ("intra", "inter", "i2m2")}


def test_what_each_kind_of_experts_can_learn(study):
    world, accuracy = study
    best = max(accuracy.values())
    assert best > 0.95, accuracy
    assert accuracy["i2m2"] >= best - MISSED, accuracy
    assert accuracy["inter"] >= best - MISSED, accuracy
    if world == "single modalities":
        assert accuracy["intra"] >= best - MISSED, accuracy
    else:  # an xor, of which either modality says nothing: that bit is a guess
        assert abs(accuracy["intra"] - 0.5) < 0.06, accuracy


def test_experts_train_and_answer_with_modalities_missing():
    rng = np.random.default_rng(0)
    label = np.arange(240) % 3
    inputs = {m: (3 * c[label] + rng.normal(size=(240, 4))).astype(np.float32)
              for m, c in zip("abc", rng.normal(size=(3, 3, 4)), strict=True)}  # fmt: skip
    present = rng.random((240, 3)) < 0.6
    present[~present.any(axis=1), 1] = True
    garbage = {m: np.where(present[:, i : i + 1], x, 1e6).astype(np.float32) for i, (m, x) in enumerate(inputs.items())}
    model = ExpertsConfig(encoders={m: MLPConfig(width=8, depth=1) for m in "abc"}, fusion=ConcatConfig(hidden=(8,)))
    train = TrainConfig(epochs=20, batch_size=24, devices=1, monitor_every=0, modality_dropout=0.2)
    options = Config(
        data=Planted(), model=model, method=UniformConfig(), optimizer=AdamConfig(learning_rate=0.01), train=train
    )
    runs = []
    for filled in (inputs, garbage):
        splits = from_arrays(filled, label, present=present)
        runs.append((fit(options, splits=splits), splits.test))
    (run, test), (other, filled_test) = runs
    jax.tree.map(np.testing.assert_array_equal, run.variables, other.variables)  # what is absent was never looked at
    metrics = evaluate(run, test)
    assert metrics == evaluate(other, filled_test)
    assert metrics["fusion/accuracy"] > 0.8
    # the product leaves out the expert of what is absent: with all of c gone, c's weights no longer matter
    answers = run.predict(test.inputs, present=np.array([[True, True, False]] * len(test)))
    for name in ("a", "b"):
        assert np.mean(answers[name].argmax(-1) == test.label) > 0.5, name
    without = np.mean(answers["fusion"].argmax(-1) == test.label)
    assert without > 0.6
