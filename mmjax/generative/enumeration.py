"""Exact values of small MRBMs, by summing over every state of the hidden or of the missing visible units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from mmjax.generative.mrbm import MRBM, MRBMParams
from mmjax.generative.variation_of_information import vi_objective
from mmjax.generative.visible import log_visible_sum

MAX_UNITS = 20
"""Units beyond which a sum over all states is refused."""


def binary_states(num_units: int) -> np.ndarray:
    """Return every state of binary units, float [2^n, n]; unit 0 is the highest digit.

    Raises:
      ValueError: more than 20 units.

    >>> binary_states(2).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    if num_units > MAX_UNITS:
        raise ValueError(f"enumeration of {num_units} units was asked for; at most {MAX_UNITS} are possible")
    return (np.arange(2**num_units)[:, None] >> np.arange(num_units)[::-1] & 1).astype(float)


def visible_states(model: MRBM, params: MRBMParams, modalities: Iterable[str] | None = None) -> dict[str, Array]:
    """Return every joint state of binary modalities (all of the model's if None), {modality: [2^n, D_m]}.

    The first modality by name is the highest digit, so a reshape to [2^D_first, 2^D_second] is the joint table.

    Raises:
      ValueError: more than 20 units, or a modality whose units are not binary.

    >>> model = MRBM({"x": "binary", "y": "binary"}, num_hidden=3)
    >>> params = model.init(jax.random.key(0), {"x": 1, "y": 1})
    >>> {m: states.ravel().tolist() for m, states in visible_states(model, params).items()}
    {'x': [0.0, 0.0, 1.0, 1.0], 'y': [0.0, 1.0, 0.0, 1.0]}
    """
    names = sorted(model.modalities if modalities is None else modalities)
    real = [m for m in names if model.visible[m] != "binary"]
    if real:
        raise ValueError(
            f"the states of {real[0]} cannot be enumerated: its visible units are {model.visible[real[0]]}"
        )
    sizes = [params.visible_bias[m].shape[0] for m in names]
    states = jnp.asarray(binary_states(sum(sizes)), params.hidden_bias.dtype)
    return dict(zip(names, jnp.split(states, np.cumsum(sizes)[:-1], axis=1), strict=True))


def log_unnormalised(model: MRBM, params: MRBMParams, given: Mapping[str, Array]) -> Array:
    """Return log Σ exp(-F) over the modalities that are not given, [B]; a scalar if none is given (log Z).

    given: {modality: [B, D_m]}. Sums over the states of the missing visible units or of the hidden ones, whichever
    are fewer (the hidden ones where a missing modality is gaussian: its integral is known in closed form).

    Raises:
      ValueError: more than 20 units to sum over.

    >>> model = MRBM({"x": "binary", "y": "binary"}, num_hidden=3)
    >>> params = model.init(jax.random.key(0), {"x": 1, "y": 1}, std=0.0)  # all energies are 0
    >>> round(float(jnp.exp(log_unnormalised(model, params, {}))))  # so Z counts the states of 2 + 3 units
    32
    """
    missing = [m for m in model.modalities if m not in given]
    if not missing:
        return -model.free_energy(params, given)
    count = sum(params.visible_bias[m].shape[0] for m in missing)
    binary = all(model.visible[m] == "binary" for m in missing)
    if binary and count < model.num_hidden:
        return _over_visible(model, params, given, missing)
    return _over_hidden(model, params, given, missing)


def _over_visible(model: MRBM, params: MRBMParams, given: Mapping[str, Array], missing: list[str]) -> Array:
    states = visible_states(model, params, missing)
    logits = model.drive(params, states) + params.hidden_bias
    energy = model.visible_energy(params, states)
    if given:
        logits = model.drive(params, given)[:, None] + logits
        energy = model.visible_energy(params, given)[:, None] + energy
    return logsumexp(jnp.sum(jax.nn.softplus(logits), axis=-1) - energy, axis=-1)


def _over_hidden(model: MRBM, params: MRBMParams, given: Mapping[str, Array], missing: list[str]) -> Array:
    h = jnp.asarray(binary_states(model.num_hidden), params.hidden_bias.dtype)
    value = h @ params.hidden_bias
    for m in missing:
        value += log_visible_sum(model.visible[m], model.activation(params, h, m), params.visible_bias[m])
    if given:
        value = value + model.drive(params, given) @ h.T - model.visible_energy(params, given)[:, None]
    return logsumexp(value, axis=-1)


def log_joint(model: MRBM, params: MRBMParams, inputs: Mapping[str, Array]) -> Array:
    """Return log p(inputs), [B], of some of the modalities (the others summed out) or of all; exact.

    Raises:
      ValueError: more than 20 units to sum over, no modality.

    >>> model = MRBM({"x": "binary", "y": "binary"}, num_hidden=3)
    >>> params = model.init(jax.random.key(0), {"x": 1, "y": 1}, std=0.0)  # all states are equally likely
    >>> x = jnp.array([[0.0], [1.0]])
    >>> [round(float(p), 3) for p in jnp.exp(log_joint(model, params, {"x": x, "y": x}))]
    [0.25, 0.25]
    >>> [round(float(p), 3) for p in jnp.exp(log_joint(model, params, {"x": x}))]
    [0.5, 0.5]
    """
    model.missing(inputs)
    return log_unnormalised(model, params, inputs) - log_unnormalised(model, params, {})


def log_conditionals(model: MRBM, params: MRBMParams, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return {m: log p(the other modalities | m)}, each [B]; exact. Keys are the modalities that are *given*.

    Raises:
      ValueError: more than 20 units to sum over.

    >>> model = MRBM({"x": "binary", "y": "binary"}, num_hidden=3)
    >>> params = model.init(jax.random.key(0), {"x": 1, "y": 2}, std=0.0)  # all states are equally likely
    >>> found = log_conditionals(model, params, {"x": jnp.ones((1, 1)), "y": jnp.ones((1, 2))})
    >>> {given: round(float(jnp.exp(log_p[0])), 3) for given, log_p in found.items()}
    {'x': 0.25, 'y': 0.5}
    """
    joint = -model.free_energy(params, inputs)
    return {m: joint - log_unnormalised(model, params, {m: inputs[m]}) for m in model.modalities}


def exact_vi_objective(
    model: MRBM,
    params: MRBMParams,
    inputs: Mapping[str, Array],
    *,
    probability: Array | None = None,
    weights: Mapping[str, float] | None = None,
) -> Array:
    """Return L_VI = -E[log p(x|y) + log p(y|x)] in nats, exact and differentiable.

    inputs: {modality: [B, D_m]}, two modalities. probability: of each example, [B]; None: all alike. weights: of the
    directions, {given modality: weight}.

    Raises:
      ValueError: more than 20 units to sum over, not exactly two modalities.

    >>> model = MRBM({"x": "binary", "y": "binary"}, num_hidden=3)
    >>> params = model.init(jax.random.key(0), {"x": 1, "y": 1}, std=0.0)  # all states are equally likely
    >>> round(float(exact_vi_objective(model, params, {"x": jnp.ones((1, 1)), "y": jnp.ones((1, 1))})), 4)  # 2 log 2
    1.3863
    """
    return vi_objective(log_conditionals(model, params, inputs), probability=probability, weights=weights)


def lowest_free_energy(model: MRBM, params: MRBMParams, given: Mapping[str, Array]) -> dict[str, Array]:
    """Return the completion of lowest free energy of {modality: [B, D_m]}, all modalities, among all binary states.

    Raises:
      ValueError: more than 20 missing units, or a missing modality that is not binary.

    >>> model = MRBM({"x": "binary", "y": "binary"}, num_hidden=1)
    >>> params = MRBMParams(
    ...     weights={"x": jnp.zeros((1, 1)), "y": jnp.zeros((2, 1))},
    ...     visible_bias={"x": jnp.zeros(1), "y": jnp.array([3.0, -3.0])},
    ...     hidden_bias=jnp.zeros(1),
    ... )
    >>> {m: x.tolist() for m, x in lowest_free_energy(model, params, {"x": jnp.ones((1, 1))}).items()}
    {'x': [[1.0]], 'y': [[1.0, 0.0]]}
    """
    missing = model.missing(given)
    states = visible_states(model, params, missing)
    count = next(iter(states.values())).shape[0]
    given = dict(given)

    def complete(one: dict[str, Array]) -> dict[str, Array]:
        every = {m: jnp.broadcast_to(x, (count, *x.shape)) for m, x in one.items()} | states
        best = jnp.argmin(model.free_energy(params, every))
        return {m: x[best] for m, x in every.items()}

    return jax.vmap(complete)(given)
