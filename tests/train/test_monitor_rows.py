"""The trainer's curves are what `monitor` sees from inside the trainer's own step."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax

from mmjax import Config, TrainConfig, fit
from mmjax.data import Planted, batch_indices, gather
from mmjax.optim import MimoConfig, mimo, monitor
from mmjax.train.experiment import build_experiment
from mmjax.train.observer import Observer
from mmjax.train.optimizer import SGDConfig
from mmjax.train.step import train_step

EVERY = 3


class Rows(Observer):
    """Keeps the lines of the gradients."""

    def __init__(self):
        self.gradients = {}

    def row(self, row):
        if row["kind"] == "gradients":
            self.gradients[row["step"]] = row


def test_rows_of_the_gradients_are_the_monitors():
    config = Config(
        data=Planted(),
        method=MimoConfig(),
        optimizer=SGDConfig(learning_rate=0.1),
        train=TrainConfig(epochs=0.05, batch_size=32, monitor_every=EVERY, devices=1),
    )
    rows = Rows()
    fit(config, observer=rows)
    experiment = build_experiment(config)
    names, k = experiment.names, len(experiment.names)
    assert len(rows.gradients) >= 2
    watched = monitor(mimo(config.method.penalty, config.method.smoothing, num_objectives=k), EVERY, num_objectives=k)
    optimizer = config.optimizer.build(experiment.total_steps)
    training = dataclasses.replace(experiment.training, tx=optax.chain(watched, optimizer))
    state = dataclasses.replace(experiment, training=training).initial_state()
    step = jax.jit(lambda state, batch: train_step(training, state, batch))
    train = experiment.splits.train
    for number in range(max(rows.gradients) + 1):
        state, metrics = step(state, gather(train, batch_indices(0, number, len(train), config.train.batch_size)))
        seen = state.opt_state[0]
        np.testing.assert_array_equal(metrics.weights, seen.weights)
        if number % EVERY == 0:
            row = rows.gradients.pop(number)
            for a in range(k):
                np.testing.assert_allclose(row.pop(f"norm/{names[a]}"), seen.norms[a], rtol=1e-4)
                for b in range(a + 1, k):
                    cosine = row.pop(f"cosine/{names[a]}/{names[b]}", np.nan)
                    np.testing.assert_allclose(cosine, seen.cosines[a, b], rtol=1e-3, atol=1e-5)
            assert set(row) == {"step", "kind"}
    assert not rows.gradients
