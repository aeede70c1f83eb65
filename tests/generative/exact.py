"""Small models whose every state can be listed, and minimisation to the bottom, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmjax.generative import MRBM, MRBMParams, log_joint, visible_states


def random_params(key, model, sizes, std=1.0, dtype=jnp.float64):
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda k: model.init(k, sizes), key))
    rng = np.random.default_rng(jax.random.key_data(key).tolist())  # no program to compile for every shape
    return jax.tree.unflatten(tree, [jnp.asarray(std * rng.normal(size=leaf.shape), dtype) for leaf in leaves])


def joint_table(model: MRBM, params: MRBMParams):
    """The model's exact p(x, y), [2^n_x, 2^n_y], modalities in order of their names."""
    rows = 2 ** params.visible_bias[model.modalities[0]].shape[0]
    return jnp.exp(jax.jit(lambda p: log_joint(model, p, visible_states(model, p)))(params)).reshape(rows, -1)


def minimiser(loss, steps=3000, rate=0.05):
    """Adam down to the bottom, its rate falling to 0, as one compiled function of the start: (parameters, value)."""
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        return params, loss(params)

    return run


def finite_difference(f, params, direction, eps=1e-5):
    def along(t):
        return f(jax.tree.map(lambda p, d: p + t * d, params, direction))

    along = jax.jit(along)
    return (along(eps) - along(-eps)) / (2 * eps)


def directional(grad, direction):
    pairs = zip(jax.tree.leaves(grad), jax.tree.leaves(direction), strict=True)
    return sum(np.vdot(g, d) for g, d in pairs)
