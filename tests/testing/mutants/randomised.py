"""rlw and graddrop, each with one thing wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mmjax.optim import graddrop, rlw
from mmjax.optim.gradients import stacked, weighted_sum
from testing import known_answers
from testing.mutants.kit import Mutant, breaks, on_rows


def make_rlw(k):
    return rlw(num_objectives=k)


def make_graddrop(k):
    return graddrop(num_objectives=k)


def _drawing(logits):
    """logits(key, k) -> the logits of random weights."""

    def make(k):
        inner = make_rlw(k)

        def update(grads, state, params=None, *, key=None, active=None, **extra_args):
            here = jnp.ones(k, bool) if active is None else active
            weights = jax.nn.softmax(jnp.where(here, logits(key, k), -jnp.inf))
            record = state.record._replace(padded=weights, size=jnp.full_like(state.record.size, k))
            return weighted_sum(grads, weights, active), state._replace(record=record)

        return optax.GradientTransformationExtraArgs(inner.init, update)

    return make


def _dropping(keep):
    """keep(rows [K, ...], key) -> bool [...], whether the positive sign stays."""

    def make(k):
        inner = make_graddrop(k)

        def update(grads, state, params=None, *, key=None, active=None, **extra_args):
            def combine(rows):
                rows = rows if active is None else jnp.where(active.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)
                positive = keep(rows, key)
                return jnp.sum(jnp.where(jnp.where(positive, rows > 0, rows < 0), rows, 0), axis=0)

            return jax.tree.map(combine, stacked(grads)), state

        return optax.GradientTransformationExtraArgs(inner.init, update)

    return make


def _share(rows):
    size = jnp.sum(jnp.abs(rows), axis=0)
    return 0.5 * (1 + jnp.sum(rows, axis=0) / jnp.where(size > 0, size, 1))


MUTANTS = {
    "rlw: the same draw at every step": Mutant(
        _drawing(lambda key, k: jax.random.normal(jax.random.key(1), (k,))),
        breaks("randomness", random=True),
        make_rlw,
    ),
    "rlw: logits of half the spread": Mutant(
        _drawing(lambda key, k: 0.5 * jax.random.normal(key, (k,))), known_answers.rlw_draws_normal_logits, make_rlw
    ),
    "rlw: uniform logits": Mutant(
        _drawing(lambda key, k: jax.random.uniform(key, (k,))), known_answers.rlw_draws_normal_logits, make_rlw
    ),
    "rlw: the fusion preferred": Mutant(
        _drawing(lambda key, k: jax.random.normal(key, (k,)) + (jnp.arange(k) == 0)),
        known_answers.rlw_draws_normal_logits,
        make_rlw,
    ),
    "graddrop: a fair coin": Mutant(
        _dropping(lambda rows, key: jax.random.uniform(key, rows.shape[1:]) < 0.5),
        known_answers.graddrop_draws_one_sign_an_entry,
        make_graddrop,
    ),
    "graddrop: one draw for all entries": Mutant(
        _dropping(lambda rows, key: jax.random.uniform(key) < _share(rows)),
        known_answers.graddrop_draws_one_sign_an_entry,
        make_graddrop,
    ),
    "graddrop: the sign that was drawn is dropped": Mutant(
        _dropping(lambda rows, key: jax.random.uniform(key, rows.shape[1:]) >= _share(rows)),
        known_answers.graddrop_draws_one_sign_an_entry,
        make_graddrop,
    ),
    "graddrop: the larger sign always": Mutant(
        _dropping(lambda rows, key: _share(rows) > 0.5), breaks("randomness", random=True), make_graddrop
    ),
    "graddrop: gradients accumulated": Mutant(
        on_rows(make_graddrop, lambda rows: jnp.cumsum(rows, axis=0)),
        known_answers.graddrop_draws_one_sign_an_entry,
        make_graddrop,
    ),
}
