"""Optimizers and schedules by configuration: the numbers that come out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.train.optimizer import AdamWConfig, ConstantConfig, CosineConfig, LinearConfig, SGDConfig

PARAMS = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}
GRADS = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 4.0)}


def first_update(config, steps=1):
    tx = config.build(total_steps=10)
    state = tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, PARAMS)
    return jax.device_get(updates)


def test_weight_decay_is_added_to_the_gradient_of_kernels_alone():
    updates = first_update(SGDConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.5))
    np.testing.assert_allclose(updates["kernel"], -0.1 * (3.0 + 0.5 * 2.0), rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.1 * 4.0, rtol=1e-6)


def test_decoupled_weight_decay_stands_beside_adams_step():
    updates = first_update(AdamWConfig(learning_rate=0.1, weight_decay=0.5))
    np.testing.assert_allclose(updates["kernel"], -0.1 * (1.0 + 0.5 * 2.0), rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -0.1, rtol=1e-5)


def test_clipping_is_by_the_norm_of_all_parameters_and_comes_before_weight_decay():
    length = np.sqrt(4 * 3.0**2 + 2 * 4.0**2)
    updates = first_update(SGDConfig(learning_rate=1.0, momentum=0.0, clip_norm=1.0, weight_decay=0.5))
    np.testing.assert_allclose(updates["kernel"], -(3.0 / length + 0.5 * 2.0), rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -4.0 / length, rtol=1e-6)
    untouched = first_update(SGDConfig(learning_rate=1.0, momentum=0.0, clip_norm=100.0))
    np.testing.assert_allclose(untouched["bias"], -4.0, rtol=1e-6)


def test_momentum():
    updates = first_update(SGDConfig(learning_rate=1.0, momentum=0.5), steps=2)
    np.testing.assert_allclose(updates["bias"], -(4.0 + 0.5 * 4.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "end"),
    [(ConstantConfig(warmup_steps=4), 2.0), (LinearConfig(warmup_steps=4), 0.0), (CosineConfig(warmup_steps=4), 0.0)],
)
def test_warm_up_rises_in_equal_steps_and_is_never_zero(schedule, end):
    rate = schedule.build(2.0, total_steps=20)
    np.testing.assert_allclose([rate(t) for t in range(4)], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(rate(4), 2.0, rtol=1e-6)
    np.testing.assert_allclose(rate(20), end, atol=1e-6)


def test_half_a_cosine_and_a_line_have_their_middles():
    np.testing.assert_allclose(CosineConfig(end=0.1).build(2.0, 10)(5), 2.0 * (0.1 + 0.9 / 2), rtol=1e-6)
    np.testing.assert_allclose(LinearConfig(end=0.5).build(2.0, 10)(5), 1.5, rtol=1e-6)
