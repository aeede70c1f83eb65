"""The training losses of an MRBM, ordinary functions of its parameters; any Optax chain minimises them.

A *direction* is named by the modality that is given: everything else is predicted from it. So losses by direction,
{given modality: scalar}, stand beside the evaluation with that modality alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from mmjax.generative.inference import Recurrent, Visibility
from mmjax.generative.mrbm import MRBM, MRBMParams
from mmjax.generative.visible import reconstruction_loss


def check_unit_interval(name: str, value: float, *, open_ends: bool = False) -> None:
    """Raise ValueError unless `value` is in [0, 1], or in (0, 1).

    >>> check_unit_interval("keep_max", 1.5)
    Traceback (most recent call last):
    ...
    ValueError: keep_max must be in [0, 1], got 1.5
    """
    if not (0 < value < 1 if open_ends else 0 <= value <= 1):
        raise ValueError(f"{name} must be in {'(0, 1)' if open_ends else '[0, 1]'}, got {value}")


def persistent_contrastive_divergence(
    model: MRBM,
    params: MRBMParams,
    inputs: Mapping[str, Array],
    chains: Mapping[str, Array],
    key: Array,
    *,
    steps: int = 10,
) -> tuple[Array, dict[str, Array]]:
    """Return the maximum-likelihood loss mean F(inputs) - mean F(chains), and the chains moved on.

    inputs: {modality: [B, D_m]}; chains: {modality: [C, D_m]}, moved on by `steps` Gibbs steps and held constant. The
    gradient estimates that of the negative log-likelihood (Tieleman's PCD); the value is no likelihood.

    Raises:
      ValueError: steps < 1.

    >>> mrbm = MRBM({"x": "binary", "y": "binary"}, num_hidden=4)
    >>> params = mrbm.init(jax.random.key(0), {"x": 3, "y": 2})
    >>> batch, chains = ({"x": jnp.ones((n, 3)), "y": jnp.ones((n, 2))} for n in (5, 7))
    >>> loss, chains = persistent_contrastive_divergence(mrbm, params, batch, chains, jax.random.key(1), steps=1)
    >>> loss.shape, chains["x"].shape
    ((), (7, 3))
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    moved = jax.lax.stop_gradient(model.gibbs(jax.lax.stop_gradient(params), key, chains, steps))
    return jnp.mean(model.free_energy(params, inputs)) - jnp.mean(model.free_energy(params, moved)), moved


def lowest_seen(
    model: MRBM, params: MRBMParams, inputs: Mapping[str, Array], key: Array, given: str, *, steps: int
) -> dict[str, Array]:
    """Return, per example, the completion of `given` of lowest free energy among the inputs and `steps` Gibbs samples.

    The chain starts at the inputs, with `given` clamped. All modalities are returned, {modality: [B, D_m]}.
    """

    def step(
        carry: tuple[dict[str, Array], dict[str, Array], Array], key: Array
    ) -> tuple[tuple[dict[str, Array], dict[str, Array], Array], None]:
        state, best, lowest = carry
        state = model.gibbs_step(params, key, state, (given,))
        energy = model.free_energy(params, state)
        better = energy < lowest
        best = {m: jnp.where(better[:, None], x, best[m]) for m, x in state.items()}
        return (state, best, jnp.where(better, energy, lowest)), None

    start = dict(inputs)
    carry = (start, start, model.free_energy(params, start))
    return jax.lax.scan(step, carry, jax.random.split(key, steps))[0][1]


def perceptron_losses(
    model: MRBM, params: MRBMParams, inputs: Mapping[str, Array], lowest: Mapping[str, Mapping[str, Array]]
) -> dict[str, Array]:
    """Return {given: ½ mean[F(inputs) - F(lowest[given])]}; `lowest`, the completions by direction, are held constant.

    At least 0 where each completion's free energy is at most the inputs'.

    >>> mrbm = MRBM({"x": "binary", "y": "binary"}, num_hidden=4)
    >>> params = mrbm.init(jax.random.key(0), {"x": 3, "y": 2})
    >>> batch = {"x": jnp.ones((5, 3)), "y": jnp.ones((5, 2))}
    >>> losses = perceptron_losses(mrbm, params, batch, {"x": batch, "y": batch})  # nothing lower than the data was found
    >>> {given: float(loss) for given, loss in losses.items()}
    {'x': 0.0, 'y': 0.0}
    """
    energy = model.free_energy(params, inputs)
    return {
        given: 0.5 * jnp.mean(energy - model.free_energy(params, jax.lax.stop_gradient(dict(completion))))
        for given, completion in lowest.items()
    }


def cd_percloss(
    model: MRBM, params: MRBMParams, inputs: Mapping[str, Array], key: Array, *, steps: int = 10
) -> dict[str, Array]:
    """Return the CD-PercLoss by direction, {given: scalar >= 0}; their sum is ½ mean[2F(x,y) - F(x,y*) - F(x*,y)].

    y* is the completion of x of lowest free energy that `steps` Gibbs steps with x clamped have seen, y itself among
    the candidates; constant in the gradient.

    Raises:
      ValueError: steps < 1.

    >>> mrbm = MRBM({"x": "binary", "y": "binary"}, num_hidden=4)
    >>> params = mrbm.init(jax.random.key(0), {"x": 3, "y": 2})
    >>> losses = cd_percloss(mrbm, params, {"x": jnp.ones((5, 3)), "y": jnp.ones((5, 2))}, jax.random.key(1), steps=2)
    >>> sorted(losses), all(float(loss) >= 0 for loss in losses.values())
    (['x', 'y'], True)
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    fixed = jax.lax.stop_gradient(params)
    keys = jax.random.split(key, len(model.modalities))
    lowest = {
        m: lowest_seen(model, fixed, inputs, k, m, steps=steps) for m, k in zip(model.modalities, keys, strict=True)
    }
    return perceptron_losses(model, params, inputs, lowest)


def multi_prediction(
    model: Recurrent,
    params: Any,
    inputs: Mapping[str, Array],
    key: Array,
    *,
    n_steps: int = 5,
    keep_max: float = 0.25,
    backprop_steps: int | None = None,
    directions: Iterable[str] = (),
) -> dict[str, Array]:
    """Return the multi-prediction loss by direction, {given: scalar}: what recurrent inference makes of the hidden entries.

    In each direction entries of the other modalities stay visible with probability keep_max·U, U uniform and drawn once
    a batch; `n_steps` rounds of inference (see `Rounds`) predict the rest. The loss is the cross-entropy (½ squared
    error for gaussian units) summed over the entries that were hidden, mean over examples, in nats.

    Its floor is Σ_j H(Y_j | X, kept) over hidden entries j: it is no variation of information. Differentiable in reverse.
    model: an `MRBM`, or an `MDRNN` with keep_max 0. backprop_steps: truncated backpropagation, see `iterate`.
    directions: given modalities, if not each in turn.

    Raises:
      ValueError: n_steps < 0, keep_max outside [0, 1], backprop_steps < 1, an unknown direction, inputs of other
        modalities.

    >>> mrbm = MRBM({"x": "binary", "y": "binary"}, num_hidden=4)
    >>> params = mrbm.init(jax.random.key(0), {"x": 3, "y": 2})
    >>> losses = multi_prediction(mrbm, params, {"x": jnp.ones((5, 3)), "y": jnp.ones((5, 2))}, jax.random.key(1))
    >>> sorted(losses)
    ['x', 'y']
    """
    check_unit_interval("keep_max", keep_max)
    directions = tuple(directions) or model.modalities
    keys = dict(zip(model.modalities, jax.random.split(key, len(model.modalities)), strict=True))
    model.missing(directions)
    if set(inputs) != set(model.modalities):
        raise ValueError(f"inputs are of modalities {sorted(inputs)}; the model has {list(model.modalities)}")
    return {
        given: _direction(model, params, inputs, keys[given], given, n_steps, keep_max, backprop_steps)
        for given in directions
    }


def _direction(
    model: Recurrent,
    params: Any,
    inputs: Mapping[str, Array],
    key: Array,
    given: str,
    n_steps: int,
    keep_max: float,
    backprop_steps: int | None,
) -> Array:
    values = {m: inputs[m] for m in model.missing((given,))}
    visibility = Visibility(draw_mask(key, values, keep_max), values) if keep_max else None
    rounds = model.rounds(params, {given: inputs[given]}, visibility)
    activation = rounds.activation(rounds.run(n_steps, backprop_steps=backprop_steps))
    losses = {m: reconstruction_loss(model.visible[m], activation[m], v) for m, v in values.items()}
    if visibility is not None:
        losses = {m: jnp.where(visibility.mask[m], 0.0, loss) for m, loss in losses.items()}
    return jnp.mean(jnp.sum(jnp.concatenate(list(losses.values()), axis=-1), axis=-1))


def draw_mask(key: Array, inputs: Mapping[str, Array], keep_max: float) -> dict[str, Array]:
    """Return {modality: bool [B, D_m]}, each entry True with probability keep_max·U; U is one uniform number."""
    share_key, *keys = jax.random.split(key, 1 + len(inputs))
    share = keep_max * jax.random.uniform(share_key)
    return {m: jax.random.bernoulli(k, share, inputs[m].shape) for k, m in zip(keys, sorted(inputs), strict=True)}


def hybrid(
    model: MRBM,
    params: MRBMParams,
    inputs: Mapping[str, Array],
    chains: Mapping[str, Array],
    key: Array,
    *,
    alpha: float = 0.5,
    n_steps: int = 5,
    keep_max: float = 0.1,
    backprop_steps: int | None = None,
    steps: int = 10,
) -> tuple[Array, dict[str, Array]]:
    """Return α · multi-prediction (both directions summed) + (1 - α) · PCD, and the chains moved on.

    Raises:
      ValueError: alpha outside [0, 1], or as the two parts.

    >>> mrbm = MRBM({"x": "binary", "y": "binary"}, num_hidden=4)
    >>> params = mrbm.init(jax.random.key(0), {"x": 3, "y": 2})
    >>> batch, chains = ({"x": jnp.ones((n, 3)), "y": jnp.ones((n, 2))} for n in (5, 7))
    >>> loss, chains = hybrid(mrbm, params, batch, chains, jax.random.key(1), n_steps=1, steps=1)
    >>> loss.shape, chains["y"].shape
    ((), (7, 2))
    """
    check_unit_interval("alpha", alpha)
    predict_key, chain_key = jax.random.split(key)
    predicted = multi_prediction(
        model, params, inputs, predict_key, n_steps=n_steps, keep_max=keep_max, backprop_steps=backprop_steps
    )
    likelihood, chains = persistent_contrastive_divergence(model, params, inputs, chains, chain_key, steps=steps)
    return alpha * sum(predicted.values(), jnp.zeros(())) + (1 - alpha) * likelihood, chains


def sparsity_penalty(hidden_logits: Array, target: float) -> Array:
    """Return Σ_j KL(target ‖ q_j), q_j the mean over the batch of hidden unit j; a scalar in nats.

    hidden_logits: [B, H]. Computed from logits, so that a unit that is off (or on) for the whole batch has a finite
    value and a gradient.

    Raises:
      ValueError: target outside (0, 1).

    >>> sparsity_penalty(jnp.zeros((3, 2)), 0.5).round(6).tolist()
    0.0
    """
    check_unit_interval("target", target, open_ends=True)
    log_batch = math.log(hidden_logits.shape[0])
    log_on = logsumexp(jax.nn.log_sigmoid(hidden_logits), axis=0) - log_batch
    log_off = logsumexp(jax.nn.log_sigmoid(-hidden_logits), axis=0) - log_batch
    return jnp.sum(target * (math.log(target) - log_on) + (1 - target) * (math.log(1 - target) - log_off))
