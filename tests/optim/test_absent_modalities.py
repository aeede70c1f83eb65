"""What methods make of `present` and `active` besides leaving an absent objective out: known answers."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.losses import weighted_mean
from mmjax.optim.agm import leads, modulation
from mmjax.optim.ogm import _scores

RNG = np.random.default_rng(0)
PRESENT = RNG.random((16, 3)) < 0.6
LOGITS = {m: jnp.asarray(RNG.normal(size=(16, 4)), jnp.float32) for m in "abc"}
LABELS = jnp.asarray(RNG.integers(0, 4, 16))


def test_ogm_compares_mean_scores_of_who_is_there_on_any_number_of_devices():
    right = np.stack([np.asarray(jax.nn.softmax(LOGITS[m]))[np.arange(16), LABELS] for m in "abc"], axis=1)
    expected = 16 * np.array([right[PRESENT[:, i], i].mean() for i in range(3)])
    poisoned = {m: jnp.where(PRESENT[:, i, None], LOGITS[m], jnp.nan) for i, m in enumerate("abc")}
    np.testing.assert_allclose(_scores(poisoned, LABELS, jnp.asarray(PRESENT), None), expected, rtol=1e-5)
    everybody = _scores(LOGITS, LABELS, jnp.ones((16, 3), bool), None)
    np.testing.assert_array_equal(everybody, _scores(LOGITS, LABELS, None, None))
    spread = partial(jax.tree.map, lambda x: x.reshape(8, 2, *x.shape[1:]))
    each = jax.pmap(lambda *args: _scores(*args, "devices"), axis_name="devices", devices=jax.devices()[:8])(
        *spread((poisoned, LABELS, jnp.asarray(PRESENT)))
    )
    np.testing.assert_allclose(each, np.tile(expected, (8, 1)), rtol=1e-5)
    nobody = _scores(LOGITS, LABELS, jnp.asarray(PRESENT).at[:, 1].set(False), None)
    assert nobody[1] == 0 and np.isfinite(nobody).all()


def test_agm_measures_leads_among_who_is_there():
    losses, reference = jnp.array([0.4, 99.0, 1.1]), jnp.array([0.7, 5.0, 0.9])
    active = jnp.array([True, False, True])
    here = np.array([0, 2])
    np.testing.assert_allclose(leads(losses, active)[here], leads(losses[here]), rtol=1e-6)
    np.testing.assert_allclose(
        modulation(losses, reference, 0.8, active)[here], modulation(losses[here], reference[here], 0.8), rtol=1e-6
    )
    assert modulation(losses.at[1].set(jnp.nan), reference, 0.8, active)[1] == 1.0
    np.testing.assert_allclose(leads(losses, jnp.ones(3, bool)), leads(losses), rtol=1e-6)
    assert leads(losses, jnp.array([True, False, False])).tolist() == [1, 1, 1]  # alone, ahead of nobody


def test_a_mean_over_who_is_there_is_a_sum_over_devices_by_a_count_over_devices():
    losses, weight = jnp.asarray(RNG.random(16)), jnp.asarray(RNG.random(16))
    here = jnp.arange(16) < 5  # three of eight devices have any
    expected = float(jnp.sum(losses[:5] * weight[:5]) / jnp.sum(weight[:5]))
    poisoned = jnp.where(here, losses, jnp.nan)
    np.testing.assert_allclose(weighted_mean(poisoned, weight, here=here), expected, rtol=1e-6)

    def share(losses, weight, here):
        value, gradient = jax.value_and_grad(lambda x: weighted_mean(x, weight, "devices", here=here))(losses)
        return jax.lax.pmean(value, "devices"), gradient / 8

    each = [x.reshape(8, 2) for x in (poisoned, weight, here)]
    value, gradient = jax.pmap(share, axis_name="devices", devices=jax.devices()[:8])(*each)
    np.testing.assert_allclose(value, [expected] * 8, rtol=1e-6)
    np.testing.assert_allclose(gradient.ravel(), jnp.where(here, weight / weight[:5].sum(), 0), rtol=1e-5)
    assert weighted_mean(poisoned, weight, here=jnp.zeros(16, bool)) == 0
