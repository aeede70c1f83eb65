"""joint, uniform and mimo, each with one thing wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mmjax.optim import joint, mimo, uniform
from mmjax.optim.gradients import stacked, weighted_sum
from mmjax.optim.uniform import UniformState
from testing import known_answers
from testing.mutants.kit import Mutant, after, before, breaks, on_rows, weighing, with_options


def make_uniform(k):
    return uniform(num_objectives=k)


def make_joint(k):
    return joint(num_objectives=k)


def make_mimo(k):
    return mimo(2.0, 0.1, num_objectives=k)


def make_balanced_mimo(k):
    return mimo(float(max(k - 1, 1)), num_objectives=k)


def make_doubling_mimo(k):
    return mimo(lambda count: 2.0**count, num_objectives=k)


def _mimo_like(share, fusion=1.0):
    """λ = 2, μ = 0.1; share(losses [K], active [K]) -> [K], of which the modalities' entries are taken."""

    def weigh(values, active):
        weights = 2.0 * share(values, active)
        return (weights.at[0].set(fusion) * active).astype(jnp.float32)

    return weighing(weigh)


def _softmax(exponents, active):
    return jax.nn.softmax(jnp.where(active.at[0].set(False), exponents, -jnp.inf))


def _joint_by_position(k):
    """Takes the fusion where a sorted dict has it, behind "audio"."""

    def update(grads, state, params=None, **extra_args):
        rows = stacked(grads)
        return jax.tree.map(lambda g: g[min(1, k - 1)], rows), state

    return optax.GradientTransformationExtraArgs(joint(num_objectives=k).init, update)


def _joint_with_frozen_probes(k):
    inner = joint(num_objectives=k)

    def update(grads, state, params=None, **extra_args):
        _, new = inner.update(grads, state, params, **extra_args)
        return weighted_sum(grads, new.weights, new.weights > 0), new

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _joint_with_steering_heads(k):
    """Where the fusion reaches, the others are added all the same."""
    return weighing(lambda values, active: active.astype(jnp.float32))(k)


def _counting_twice(k):
    inner = make_doubling_mimo(k)

    def update(grads, state, params=None, **extra_args):
        updates, new = inner.update(grads, state, params, **extra_args)
        return updates, new._replace(count=new.count + 1)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _drop_last(rows):
    return rows.at[-1].set(0) if rows.shape[0] > 1 else rows


MUTANTS = {
    # uniform
    "uniform: mean for sum": Mutant(
        weighing(lambda values, active: active / jnp.sum(active)), breaks("uniform_when_balanced"), make_uniform
    ),
    "uniform: gradients accumulated between backward calls": Mutant(
        on_rows(make_uniform, lambda rows: jnp.cumsum(rows, axis=0)), breaks("permutation_equivariant"), make_uniform
    ),
    "uniform: the last modality forgotten": Mutant(
        on_rows(make_uniform, _drop_last), breaks("permutation_equivariant"), make_uniform
    ),
    "uniform: ascends": Mutant(
        after(make_uniform, lambda u, s: (jax.tree.map(jnp.negative, u), s)),
        breaks("identity_for_one", num_objectives=(1,)),
        make_uniform,
    ),
    "uniform: gradients made of one length": Mutant(
        before(
            make_uniform,
            lambda rows, extra: (
                jax.tree.map(
                    lambda g: g / jnp.linalg.norm(g.reshape(g.shape[0], -1), axis=1).reshape(-1, *[1] * (g.ndim - 1)),
                    rows,
                ),
                extra,
            ),
        ),
        breaks("linear_under_scaling"),
        make_uniform,
    ),
    "uniform: the weights of another step": Mutant(
        after(make_uniform, lambda u, s: (u, UniformState(s.record._replace(padded=0 * s.record.padded)))),
        known_answers.uniform_is_the_sum,
        make_uniform,
    ),
    "uniform: absent objectives counted": Mutant(
        with_options(lambda extra: extra | {"active": None}, make_uniform), breaks("absent_objectives"), make_uniform
    ),
    # joint
    "joint: fusion by position, not by name": Mutant(_joint_by_position, breaks("permutation_equivariant"), make_joint),
    "joint: fusion by position, seen on the gradients": Mutant(
        _joint_by_position, known_answers.joint_follows_the_fusion, make_joint
    ),
    "joint: probes do not learn": Mutant(_joint_with_frozen_probes, known_answers.joint_follows_the_fusion, make_joint),
    "joint: heads steer the encoders": Mutant(
        _joint_with_steering_heads, known_answers.joint_follows_the_fusion, make_joint
    ),
    "joint: `touching` ignored": Mutant(
        with_options(lambda extra: extra | {"touching": None}, make_joint),
        breaks("lazy_as_stacked"),
        make_joint,
    ),
    # mimo
    "mimo: favours the best": Mutant(
        _mimo_like(lambda v, a: _softmax(-v / 0.1, a)), known_answers.mimo_follows_its_formula(), make_mimo
    ),
    "mimo: smoothing multiplies": Mutant(
        _mimo_like(lambda v, a: _softmax(v * 0.1, a)), known_answers.mimo_follows_its_formula(), make_mimo
    ),
    "mimo: the fusion takes part in the maximum": Mutant(
        _mimo_like(lambda v, a: jax.nn.softmax(jnp.where(a, v / 0.1, -jnp.inf))),
        known_answers.mimo_follows_its_formula(),
        make_mimo,
    ),
    "mimo: mean of the shares": Mutant(
        _mimo_like(lambda v, a: _softmax(v / 0.1, a) / jnp.sum(a[1:])),
        known_answers.mimo_follows_its_formula(),
        make_mimo,
    ),
    "mimo: the fusion forgotten": Mutant(
        _mimo_like(lambda v, a: _softmax(v / 0.1, a), fusion=0.0), breaks("identity_for_one"), make_mimo
    ),
    "mimo: penalty on the fusion": Mutant(
        _mimo_like(lambda v, a: _softmax(v / 0.1, a), fusion=2.0), breaks("identity_for_one"), make_mimo
    ),
    "mimo: exponentials not centred": Mutant(
        _mimo_like(lambda v, a: (e := jnp.where(a, jnp.exp(v / 0.1), 0.0).at[0].set(0.0)) / jnp.sum(e)),
        breaks("finite"),
        make_mimo,
    ),
    "mimo: the losses of the neighbours": Mutant(
        with_options(lambda extra: extra | {"values": jnp.roll(extra["values"], 1)}, make_mimo),
        known_answers.mimo_follows_its_formula(),
        make_mimo,
    ),
    "mimo: absent modalities in the maximum": Mutant(
        _mimo_like(lambda v, a: _softmax(jnp.nan_to_num(v, nan=3.0) / 0.1, jnp.ones_like(a))),
        breaks("absent_objectives"),
        make_mimo,
    ),
    "mimo: λ without M": Mutant(
        lambda k: mimo(1.0, num_objectives=k), breaks("uniform_when_balanced"), make_balanced_mimo
    ),
    "mimo: the schedule stands still": Mutant(
        after(make_doubling_mimo, lambda u, s: (u, s._replace(count=0 * s.count))),
        known_answers.mimo_counts_its_steps,
        make_doubling_mimo,
    ),
    "mimo: the schedule runs double": Mutant(_counting_twice, known_answers.mimo_counts_its_steps, make_doubling_mimo),
}
