"""The contract as the training step uses it."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mmjax
from mmjax.data import Batch, Task
from mmjax.models import MLP, ConcatFusion, Head, MultiModal
from mmjax.train.state import create_state
from mmjax.train.step import Inference, Training, _gradients


@pytest.fixture(scope="module")
def small():
    model = MultiModal(
        encoders={"audio": MLP(4), "image": MLP(4)},
        fusion=ConcatFusion(3),
        heads={"audio": Head(3), "image": Head(3)},
    )
    preprocess = {"image": lambda x: 2 * x}
    inference = Inference(model, Task("classification", 3), preprocess)
    training = Training(inference, mmjax.optim.uniform(num_objectives=3), optax.sgd(0.1))
    inputs = {m: jax.random.normal(jax.random.key(i), (8, 5)) for i, m in enumerate(("audio", "image"))}
    state = create_state(model, inputs, training.tx, 3, seed=0)
    return training, state, Batch(inputs, jnp.arange(8) % 3, jnp.linspace(0.5, 2.0, 8))


def test_parts_of_the_step_are_those_of_each_part(small):
    training, state, batch = small

    @jax.jit
    def both(state, batch):
        parts = _gradients(training, state, batch)[1].parts(2)
        cut = lambda i: jax.tree.map(lambda x: x[4 * i : 4 * i + 4], batch)  # noqa: E731
        return parts, [_gradients(training, state, cut(i))[1].pairs() for i in range(2)]

    parts, expected = both(state, batch)
    chex.assert_trees_all_close(parts, jax.tree.map(lambda *g: jnp.stack(g), *expected), rtol=1e-5, atol=1e-6)
    assert all(np.any(leaf["image"] != 0) for leaf in parts["encoders_image"]["dense_0"].values())
