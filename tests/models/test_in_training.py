"""Every fusion head in the trainer's step, traced and not run; heads meant for other tasks."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mmjax
from mmjax.config import Config, ModelConfig, TrainConfig
from mmjax.data import Batch, Dataset, Splits, Task
from mmjax.models import (
    FUSIONS,
    ConcatConfig,
    EvidentialConfig,
    TransformerConfig,
    UncertaintyWeightedConfig,
    build_model,
)
from mmjax.optim import JointConfig
from mmjax.train.experiment import build_experiment
from mmjax.train.optimizer import SGDConfig
from mmjax.train.state import create_state
from mmjax.train.step import Inference, Training, train_step

BATCH = Batch(
    {"tokens": jnp.array([[1, 2, 0], [3, 0, 0]], jnp.int32), "vector": jnp.ones((2, 4))},
    jnp.array([0, 1], jnp.int32),
    jnp.ones(2),
)
TOKENS = TransformerConfig(width=8, heads=2, layers=1, vocabulary=4, features="tokens", dropout=0.1)


def step_shapes(fusion, batch=BATCH, **options):
    config = ModelConfig(encoders={"tokens": TOKENS}, fusion=fusion, **options)
    model = build_model(config, ("tokens", "vector"), 3, probe_heads=True)
    inference = Inference(model, Task("classification", 3))
    training = Training(inference, mmjax.optim.joint(num_objectives=3), optax.sgd(0.1))
    state = jax.eval_shape(lambda: create_state(model, BATCH.inputs, training.tx, 3, seed=0))
    after, metrics = jax.eval_shape(partial(train_step, training), state, batch)
    return state, after, metrics


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_step_keeps_the_shapes_of_its_state(kind):
    state, after, metrics = step_shapes(FUSIONS[kind]())
    assert jax.tree.structure(state) == jax.tree.structure(after) and metrics.values.shape == (3,)
    assert jax.tree.leaves(state.params) == jax.tree.leaves(after.params)


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_step_takes_missing_modalities(kind):
    missing = BATCH._replace(present=jnp.array([[True, False], [True, True]]))
    state, after, metrics = step_shapes(FUSIONS[kind](), missing)
    assert jax.tree.structure(state) == jax.tree.structure(after) and metrics.values.shape == (3,)
    assert jax.tree.leaves(state.params) == jax.tree.leaves(after.params)


def test_the_training_mean_of_absent_features_is_part_of_the_state_and_bfloat16_ends_at_the_logits():
    state, after, metrics = step_shapes(ConcatConfig(absent="mean"), dtype="bfloat16")
    assert after.model_state["batch_stats"]["fusion"]["fill"]["mean_vector"].shape == (128,)
    assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    assert metrics.values.dtype == jnp.float32


@pytest.mark.parametrize("fusion", [EvidentialConfig(), UncertaintyWeightedConfig()])
def test_a_head_for_classification_refuses_other_tasks(fusion):
    inputs = {m: np.ones((4, 2), np.float32) for m in "ab"}
    data = Dataset(inputs, np.ones((4, 2), np.float32), Task("multilabel", 2))
    config = Config(
        data=None,  # given below
        method=JointConfig(),
        optimizer=SGDConfig(learning_rate=0.1),
        model=ModelConfig(fusion=fusion),
        train=TrainConfig(batch_size=4, devices=1),
    )
    with pytest.raises(
        ValueError, match=f"model.fusion '{fusion.name}' is for classification; the task here is multilabel"
    ):
        build_experiment(config, Splits(data, data, data))
