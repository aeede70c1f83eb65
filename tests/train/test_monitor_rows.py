"""The trainer's curves, which come from `monitor`, against plain losses and gradients."""

from __future__ import annotations

import collections
import itertools

import jax
import numpy as np
import optax

from mmjax import Config, TrainConfig, fit
from mmjax.data import Planted, batch_indices, gather
from mmjax.optim import MimoConfig
from mmjax.train.experiment import build_experiment
from mmjax.train.observer import Observer
from mmjax.train.optimizer import SGDConfig
from mmjax.train.step import forward

EVERY = 3


class Rows(Observer):
    """Keeps the lines of each kind."""

    def __init__(self):
        self.of = collections.defaultdict(dict)

    def row(self, row):
        self.of[row["kind"]][row["step"]] = row


def test_rows_are_of_plain_gradients_at_each_state():
    config = Config(
        data=Planted(),
        method=MimoConfig(),
        optimizer=SGDConfig(learning_rate=0.1),
        train=TrainConfig(epochs=0.05, batch_size=32, monitor_every=EVERY, log_every=1, devices=1),
    )
    rows = Rows()
    fit(config, observer=rows)
    experiment = build_experiment(config)
    names, inference, train = experiment.names, experiment.inference, experiment.splits.train
    state, step = experiment.initial_state(), jax.jit(experiment.step)
    assert len(rows.of["gradients"]) >= 2

    @jax.jit
    def plain(params, batch):
        def loss(params, name):
            logits = forward(inference, {"params": params}, batch.inputs)[name]
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch.label).mean()

        return {name: jax.value_and_grad(loss)(params, name) for name in names}

    for number in range(max(rows.of["gradients"]) + 1):
        batch = gather(train, batch_indices(0, number, len(train), config.train.batch_size))
        told = plain(state.params, batch)
        state, _ = step(state, batch)
        watched = state.opt_state[0]
        curve = rows.of["train"][number + 1]
        for k, name in enumerate(names):
            np.testing.assert_allclose(curve[f"loss/{name}"], told[name][0], rtol=1e-5)
            np.testing.assert_allclose(curve[f"weight/{name}"], watched.inner.weights[k], rtol=1e-5)
        if number % EVERY == 0:
            row = rows.of["gradients"].pop(number)
            flat = {name: jax.tree.map(np.ravel, gradient) for name, (_, gradient) in told.items()}
            for a, b in itertools.combinations(names, 2):
                met = [x for x in zip(*map(jax.tree.leaves, (flat[a], flat[b])), strict=True) if all(map(np.any, x))]
                if not met:
                    assert f"cosine/{a}/{b}" not in row
                    continue
                x, y = (np.concatenate(leaves) for leaves in zip(*met, strict=True))
                cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
                np.testing.assert_allclose(row.pop(f"cosine/{a}/{b}"), cosine, rtol=1e-3, atol=1e-5)
            for name in names:
                wanted = np.linalg.norm(np.concatenate(jax.tree.leaves(flat[name])))
                np.testing.assert_allclose(row.pop(f"norm/{name}"), wanted, rtol=1e-4)
            assert set(row) == {"step", "kind"}
    assert not rows.of["gradients"]
