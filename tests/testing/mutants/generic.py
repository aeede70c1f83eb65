"""Wrong in a way that any combiner could be."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmjax.lazy_gradients import ObjectiveGrads
from mmjax.optim.gradients import stacked, weighted_sum
from testing import known_answers
from testing.mutants.kit import Mutant, breaks, on_rows, weighing
from testing.mutants.plain import make_uniform


def _select(rows, active):
    return jnp.where(jnp.reshape(active, (-1, *[1] * (rows.ndim - 1))), rows, 0)


def _normalised(rows, active):
    """Σ_k g_k/‖g_k‖ of float32 rows: a method that is not linear in the gradients."""
    if active is not None:
        rows = jax.tree.map(lambda g: _select(g, active), rows)
    squares = sum(jnp.sum(g.reshape(g.shape[0], -1) ** 2, axis=1) for g in jax.tree.leaves(rows))
    weights = jnp.where(squares > 0, 1 / jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    return weighted_sum(rows, weights), weights


def normalising(num_objectives: int) -> optax.GradientTransformationExtraArgs:
    """The method whose mutants follow."""

    def update(grads, state, params=None, *, active=None, **extra_args):
        return _normalised(stacked(grads), active)[0], state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _combined_before_reduced(k):
    """Combines on each half of the batch, and averages what comes out."""

    def update(grads, state, params=None, *, active=None, **extra_args):
        if not isinstance(grads, ObjectiveGrads):
            return _normalised(grads, active)[0], state
        parts = grads.parts(2)
        zero = jax.tree.map(lambda p: jnp.zeros((2, *p.shape)), params)
        rows = jax.tree.map(lambda z, leaf: jnp.stack([leaf.get(name, z) for name in grads.names], axis=1), zero, parts)
        halves = [_normalised(jax.tree.map(lambda r, i=i: r[i], rows), active)[0] for i in range(2)]
        return jax.tree.map(lambda a, b: (a + b) / 2, *halves), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _per_parameter(k):
    def update(grads, state, params=None, *, active=None, **extra_args):
        return jax.tree.map(lambda g: _normalised(g, active)[0], stacked(grads)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


class _Growing(NamedTuple):
    history: Any


def _growing_state(k):
    """Sizes its state at the first update."""
    inner = make_uniform(k)

    def update(grads, state, params=None, **extra_args):
        updates, new = inner.update(grads, inner.init(params), params, **extra_args)
        return updates, _Growing(new.weights)

    return optax.GradientTransformationExtraArgs(lambda params: _Growing(jnp.zeros(())), update)


def _weakly_typed_state(k):
    """Starts from a Python number: the first step compiles for it, the second for an array."""
    inner = make_uniform(k)

    def init(params):
        return {"inner": inner.init(params), "decay": jax.jit(lambda: 1.0)()}

    def update(grads, state, params=None, **extra_args):
        updates, new = inner.update(grads, state["inner"], params, **extra_args)
        return updates, {"inner": new, "decay": jnp.float32(0.9) * state["decay"]}

    return optax.GradientTransformationExtraArgs(init, update)


def _state_gains_an_entry(k):
    """Adds to its state what the first step found out."""
    inner = make_uniform(k)

    def init(params):
        return {"inner": inner.init(params)}

    def update(grads, state, params=None, **extra_args):
        updates, new = inner.update(grads, state["inner"], params, **extra_args)
        return updates, {"inner": new, "values": extra_args["values"]}

    return optax.GradientTransformationExtraArgs(init, update)


def _one_array_twice(k):
    """Two counters start from one array."""
    inner = make_uniform(k)

    def init(params):
        zero = jnp.zeros((), jnp.int32)
        return {"inner": inner.init(params), "steps": zero, "epochs": zero}

    def update(grads, state, params=None, **extra_args):
        updates, new = inner.update(grads, state["inner"], params, **extra_args)
        return updates, state | {"inner": new, "steps": state["steps"] + 1}

    return optax.GradientTransformationExtraArgs(init, update)


def _uniform_with(combine):
    """K -> a stateless combiner; combine(rows of a leaf, active or None) -> [...]."""

    def make(k):
        def update(grads, state, params=None, *, active=None, **extra_args):
            return jax.tree.map(lambda g: combine(g, active), stacked(grads)), state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    return make


def _half_precision(rows, active):
    """Adds row to row in the gradients' own type."""
    rows = rows if active is None else _select(rows, active)
    total = rows[0]
    for k in range(1, rows.shape[0]):
        total = total + rows[k]
    return total


def _widening(rows, active):
    rows = rows.astype(jnp.float32)
    return jnp.sum(rows if active is None else _select(rows, active), axis=0)


def _flattening(rows, active):
    rows = rows if active is None else _select(rows, active)
    return jnp.sum(rows.astype(jnp.float32), axis=0).astype(rows.dtype).reshape(-1)


def _with_key(make):
    def noisy(k):
        inner = make(k)

        def update(grads, state, params=None, *, key=None, **extra_args):
            updates, state = inner.update(grads, state, params, **extra_args)
            return jax.tree.map(lambda u: u * (1 + 0.01 * jax.random.normal(key).astype(u.dtype)), updates), state

        return optax.GradientTransformationExtraArgs(inner.init, update)

    return noisy


def random_weights(k):
    """Random weights: the original of the next two."""
    return _random(k, lambda key: key)


def _random(k, use):
    def update(grads, state, params=None, *, key=None, active=None, **extra_args):
        here = jnp.ones(k, bool) if active is None else active
        logits = jax.random.normal(use(key), (k,))
        return weighted_sum(grads, jax.nn.softmax(jnp.where(here, logits, -jnp.inf)), active), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _biased(k):
    """The last modality is drawn from another distribution."""

    def update(grads, state, params=None, *, key=None, active=None, **extra_args):
        here = jnp.ones(k, bool) if active is None else active
        logits = jax.random.normal(key, (k,)) + 0.5 * (jnp.arange(k) == k - 1)
        return weighted_sum(grads, jax.nn.softmax(jnp.where(here, logits, -jnp.inf)), active), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _strict_about_arguments(k):
    """Reads any other argument as one of its own."""
    inner = make_uniform(k)

    def update(grads, state, params=None, **extra_args):
        updates, state = inner.update(grads, state, params, **extra_args)
        factor = 1.0 + len(
            set(extra_args) - {"values", "groups", "labels", "unimodal_logits", "key", "last_layer", "touching"}
        )
        return jax.tree.map(lambda u: u * factor, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


class _Remembering(NamedTuple):
    mean: Any
    rate: Any


def _remembering(k):
    """The running mean over steps, free of bias, of the sum of gradients: unseen while the gradients stay the same."""

    def update(grads, state, params=None, *, active=None, **extra_args):
        here = jnp.ones(k, bool) if active is None else active
        sums = jax.tree.map(lambda g: jnp.sum(_select(g, here), axis=0), stacked(grads))
        mean = jax.tree.map(lambda m, s: m + state.rate * (s - m), state.mean, sums)
        return mean, _Remembering(mean, state.rate / (1 + state.rate))

    def init(params):
        return _Remembering(jax.tree.map(jnp.zeros_like, params), jnp.ones(()))

    return optax.GradientTransformationExtraArgs(init, update)


def _loss_memory(k, *, absent_too=False):
    """Weights by the losses of the step before, 1 where there was none: the original of the next one."""

    def update(grads, state, params=None, *, values=None, active=None, **extra_args):
        here = jnp.ones(k, bool) if active is None else active
        known = here & (state > 0)
        weights = jnp.where(known, state, 1.0)
        keep = jnp.isfinite(values) if absent_too else here
        return weighted_sum(grads, weights, here), jnp.where(keep, values, state)

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(k), update)


MUTANTS = {
    "remembers the losses of absent objectives": Mutant(
        partial(_loss_memory, absent_too=True), breaks("absent_objectives"), _loss_memory
    ),
    "remembers gradients": Mutant(_remembering, breaks("uniform_when_balanced"), make_uniform),
    "K gradients reduced after combining": Mutant(_combined_before_reduced, breaks("lazy_as_stacked"), normalising),
    "normalised per parameter": Mutant(_per_parameter, known_answers.normalised_sum, normalising),
    "gradients accumulated, seen by a nonlinear method": Mutant(
        on_rows(normalising, lambda rows: jnp.cumsum(rows, axis=0)), known_answers.normalised_sum, normalising
    ),
    "state sized at the first update": Mutant(_growing_state, breaks("one_compilation"), make_uniform),
    "state weakly typed at init": Mutant(_weakly_typed_state, breaks("one_compilation"), make_uniform),
    "state of another structure": Mutant(_state_gains_an_entry, breaks("one_compilation"), make_uniform),
    "one array twice in the state": Mutant(_one_array_twice, breaks("donatable"), make_uniform),
    "bfloat16 arithmetic": Mutant(_uniform_with(_half_precision), breaks("bfloat16"), make_uniform),
    "bfloat16 comes back as float32": Mutant(_uniform_with(_widening), breaks("bfloat16"), make_uniform),
    "flat update": Mutant(_uniform_with(_flattening), breaks("finite"), make_uniform),
    "absent objectives multiplied by zero": Mutant(
        weighing(lambda values, active: active.astype(jnp.float32), masked=False),
        breaks("absent_objectives"),
        make_uniform,
    ),
    "absent objectives counted in the mean": Mutant(
        weighing(lambda values, active: active / active.size),
        breaks("absent_objectives"),
        weighing(lambda values, active: active / jnp.sum(active)),
    ),
    "weights of absent objectives kept": Mutant(
        weighing(lambda values, active: jnp.ones(active.shape)), breaks("absent_objectives"), make_uniform
    ),
    "overflows at large scales": Mutant(
        weighing(lambda values, active: jnp.where(active, values**5, 0) / jnp.sum(jnp.where(active, values**5, 0))),
        breaks("finite"),
        weighing(lambda values, active: jnp.where(active, values, 0) / jnp.sum(jnp.where(active, values, 0))),
    ),
    "vanishes at small scales": Mutant(
        weighing(lambda values, active: values**6 / jnp.sum(values**6)),
        breaks("finite"),
        weighing(lambda values, active: values / jnp.sum(values)),
    ),
    "draws without being asked": Mutant(_with_key(make_uniform), breaks("randomness"), make_uniform),
    "random, but one key for all steps": Mutant(
        lambda k: _random(k, lambda key: jax.random.key(0)), breaks("randomness", random=True), random_weights
    ),
    "random, one modality favoured": Mutant(_biased, breaks("permutation_equivariant", random=True), random_weights),
    "takes others' arguments for its own": Mutant(_strict_about_arguments, breaks("extra_arguments"), make_uniform),
}
