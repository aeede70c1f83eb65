"""AGM: the fused logits split among the modalities, and each share's gradient scaled by how far ahead it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.method import Forward, Objectives
from mmjax.objectives import FUSION, objective_of
from mmjax.optim.gradients import check_like_params, count_objectives, weighted_sum
from mmjax.optim.options import check_active, check_at_least, check_num_objectives, check_positive
from mmjax.optim.promises import Promise
from mmjax.optim.record import WeightRecord, check_room, empty_record, recorded, room_for

EXACT_UP_TO = 4
"""Modalities up to which every coalition is evaluated: 15 of them for four."""
LARGEST_EXPONENT = 10.0
"""Bound on the exponents of r and κ: e^±10 is all or nothing, and finite."""


def shapley_shares(worth: Callable[[frozenset[str]], Array], modalities: Sequence[str]) -> dict[str, Array]:
    """Return each modality's Shapley share of worth(all), {m: array}; the shares sum to it. 2^M − 1 evaluations.

    worth: coalition -> array; the empty coalition is worth 0 and not asked for.

    >>> weights = {"a": 1.0, "b": 2.0}
    >>> shares = shapley_shares(lambda s: jnp.array(sum(weights[m] for m in s) + 3.0 * (len(s) == 2)), ["a", "b"])
    >>> {m: float(share) for m, share in shares.items()}  # what only both together are worth is halved
    {'a': 2.5, 'b': 3.5}
    """
    count = len(modalities)
    coalitions = [frozenset(s) for size in range(1, count + 1) for s in combinations(sorted(modalities), size)]
    shares: dict[str, Any] = dict.fromkeys(modalities, 0.0)
    for coalition in coalitions:
        value, size = worth(coalition), len(coalition)
        for m in modalities:
            # as the coalition that m has joined, or as the one that it could join
            before = size - 1 if m in coalition else size
            weight = factorial(before) * factorial(count - before - 1) / factorial(count)
            shares[m] = shares[m] + (weight if m in coalition else -weight) * value
    return shares


def sampled_shares(
    worth: Callable[[Mapping[str, Array]], Array],
    whole: Array,
    modalities: Sequence[str],
    key: Array,
    permutations: int,
) -> dict[str, Array]:
    """Return an unbiased estimate of the Shapley shares from so many random orders; the shares sum to `whole` in each.

    worth: {m: bool scalar, whether it is in the coalition} -> array; whole: worth of all. permutations x (M − 1)
    evaluations.

    >>> weights = {"a": 1.0, "b": 2.0}
    >>> worth = lambda present: sum(weights[m] * present[m] for m in weights)
    >>> {m: float(x) for m, x in sampled_shares(worth, jnp.array(3.0), ["a", "b"], jax.random.key(0), 1).items()}
    {'a': 1.0, 'b': 2.0}
    """
    count = len(modalities)
    shares: dict[str, Any] = dict.fromkeys(modalities, 0.0)
    for order_key in jax.random.split(key, permutations):
        rank = jax.random.permutation(order_key, count)
        previous = jnp.zeros_like(whole)
        for joined in range(count):
            last = joined == count - 1
            value = whole if last else worth({m: rank[i] <= joined for i, m in enumerate(modalities)})
            for i, m in enumerate(modalities):
                shares[m] = shares[m] + jnp.where(rank[i] == joined, value - previous, 0.0) / permutations
            previous = value
    return shares


def leads(losses: Array, active: Array | None = None) -> Array:
    """Return r [M] = exp(M/(M−1) (mean_j c_j − c_m)) of losses c [M], the exponent clipped to ±10; 1 for one modality.

    active: bool [M], the modalities that are there: M counts them, the mean runs over them, and the others have r = 1.

    >>> [round(float(r), 4) for r in leads(jnp.array([1.0, 1.0, 4.0]))]
    [4.4817, 4.4817, 0.0498]
    """
    (count,) = losses.shape
    if count == 1:
        return jnp.ones(1)
    if active is None:
        exponents = count / (count - 1) * (jnp.mean(losses) - losses)
        return jnp.exp(jnp.clip(exponents, -LARGEST_EXPONENT, LARGEST_EXPONENT))
    there = jnp.sum(active).astype(losses.dtype)
    mean = jnp.sum(jnp.where(active, losses, 0)) / jnp.maximum(there, 1)
    exponents = there / jnp.maximum(there - 1, 1) * (mean - losses)
    return jnp.where(active, jnp.exp(jnp.clip(exponents, -LARGEST_EXPONENT, LARGEST_EXPONENT)), 1.0)


def modulation(losses: Array, reference: Array, alpha: float, active: Array | None = None) -> Array:
    """Return κ [M] = exp(α (r̂_m − r_m)), clipped to e^±10: r from `losses` [M], r̂ from their running means.

    A modality further ahead than usual (r above r̂) is slowed down, κ < 1. Losses that are not finite give 1. active: bool
    [M], the modalities that are there; the others have no say, and κ = 1.

    >>> modulation(jnp.array([1.0, 2.0]), jnp.array([1.5, 1.5]), 1.0).tolist()  # the first is ahead
    [0.17937..., 1.88...]
    """
    behind = alpha * (leads(reference, active) - leads(losses, active))
    kappa = jnp.exp(jnp.clip(behind, -LARGEST_EXPONENT, LARGEST_EXPONENT))
    finite = jnp.isfinite(losses) if active is None else jnp.isfinite(losses) | ~active
    return jnp.where(jnp.all(finite), kappa, 1.0)


class AgmState(NamedTuple):
    """State of `agm`: seen, int32 [M], steps in which each modality was there; losses, float32 [M], mean c over them.

    As for the weights, there is room for 16 objectives where K was not told.

    >>> combiner = agm(num_objectives=3)
    >>> params = {"w": jnp.zeros(1)}
    >>> told = {"shapley_losses": jnp.array([1.0, 3.0]), "kappa": jnp.array([0.5, 1.5])}  # of `agm_objectives`
    >>> _, state = combiner.update({"w": jnp.ones((3, 1))}, combiner.init(params), params, **told)
    >>> state.weights.tolist(), state.losses.tolist(), state.seen.tolist()
    ([1.0, 0.5, 1.5], [1.0, 3.0], [1, 1])
    """

    seen: Array
    losses: Array
    record: WeightRecord

    @property
    def weights(self) -> Array:
        """The last factors, [K]: 1 for the fusion loss, then κ_m of each modality's share of the logits."""
        return self.record.weights


def agm_objectives(forward: Forward, alpha: float = 1.0, permutations: int = 4) -> Objectives:
    """Return AGM's objectives: the fusion loss, its gradient through each share φ_m of the logits times κ_m; probes.

    The value of the fusion loss is the plain one. `extra` holds `shapley_losses` c [M] and `kappa` [M], over all devices,
    for `agm`, whose state `forward.state` must be. permutations: random orders that estimate φ above four modalities.

    >>> from mmjax.method import Forward
    >>> from mmjax.models import Outputs
    >>> import optax
    >>> features, label = {"a": jnp.array([[2.0, 0.0]]), "b": jnp.array([[0.0, 1.0]])}, jnp.array([0])
    >>> def decide(z):  # this fusion adds up, so each modality's share of the logits is its own features
    ...     return Outputs(dict(z), dict(z), z["a"] + z["b"], {})
    >>> forward = Forward(
    ...     outputs=decide(features), label=label, decide=decide, mean_over_devices=lambda x: x, key=jax.random.key(0),
    ...     loss=lambda logits, of=None: optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(),
    ...     state=agm(num_objectives=3).init({}),
    ... )
    >>> losses, extra = agm_objectives(forward)
    >>> {name: round(float(loss), 3) for name, loss in losses.items()}
    {'fusion': 0.313, 'a': 0.127, 'b': 1.313}
    >>> [round(float(c), 3) for c in extra["shapley_losses"]], extra["kappa"].tolist()  # κ is 1 at first
    ([0.127, 1.313], [1.0, 1.0])
    """
    features, whole = forward.outputs.features, forward.outputs.logits
    modalities = sorted({objective_of(name) for name in features})
    if not forward.outputs.unimodal_logits:  # nobody to modulate
        nothing = jnp.zeros(0, jnp.float32)
        return Objectives({FUSION: forward.loss(whole)}, {"shapley_losses": nothing, "kappa": nothing})

    def worth(present: Mapping[str, Any]) -> Array:
        absent = {name: jnp.where(present[objective_of(name)], z, jnp.zeros_like(z)) for name, z in features.items()}
        return forward.decide(absent).logits

    def of_coalition(coalition: frozenset[str]) -> Array:
        return whole if len(coalition) == len(modalities) else worth({m: m in coalition for m in modalities})

    if len(modalities) <= EXACT_UP_TO:
        shares = shapley_shares(of_coalition, modalities)
    else:
        shares = sampled_shares(worth, whole, modalities, forward.key, permutations)
    of_share = jnp.stack([forward.loss(shares[m], m) for m in modalities])
    losses = forward.mean_over_devices(jax.lax.stop_gradient(of_share)).astype(jnp.float32)
    state, count = forward.state, len(modalities)
    active = None if forward.active is None else forward.active[1:]
    kappa = modulation(losses, state.losses[:count], alpha, active)
    seen = state.seen[:count] > 0
    kappa = jnp.where(jnp.all(seen if active is None else seen | ~active), kappa, 1.0)
    scaled = sum(kappa[i].astype(whole.dtype) * shares[m] for i, m in enumerate(modalities))
    # The value of the logits, and the derivative of the scaled shares.
    logits = jax.lax.stop_gradient(whole) + scaled - jax.lax.stop_gradient(scaled)
    probes = {m: forward.loss(logits, m) for m, logits in forward.outputs.unimodal_logits.items()}
    return Objectives({FUSION: forward.loss(logits)} | probes, {"shapley_losses": losses, "kappa": kappa})


def agm(*, num_objectives: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Sum the gradients of `agm_objectives` and keep the running means that its factors are measured against.

    The two belong together: the rule reads this state and hands over the losses c_m of the modalities' shares of the
    logits. One backward pass, and a forward and backward of the fusion head for each coalition.

    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `shapley_losses` [M] and `kappa` [M], from the rule, required; `active` bool[K]: the mean
      of an absent modality stands.

    Raises:
      ValueError: `shapley_losses` or `kappa` missing or of the wrong length, gradients that are not one an objective.

    Source: Li et al., "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation" (2023); an absent
    modality is zero features, the empty coalition is worth 0, and all exponents are clipped: our reading.

    >>> tx = agm()
    >>> params = {"w": jnp.zeros(1)}
    >>> grads = {"w": jnp.array([[1.0], [2.0], [3.0]])}
    >>> state = tx.init(params)
    >>> for losses in ([1.0, 3.0], [2.0, 1.0]):
    ...     updates, state = tx.update(
    ...         grads, state, params, shapley_losses=jnp.array(losses), kappa=jnp.array([0.5, 1.5])
    ...     )
    >>> updates["w"].tolist(), state.losses[:2].tolist(), state.weights.tolist()
    ([6.0], [1.5, 2.0], [1.0, 0.5, 1.5])
    """
    check_num_objectives(num_objectives)

    def init(params: Any) -> AgmState:
        del params
        room = room_for(num_objectives) - 1
        return AgmState(jnp.zeros(room, jnp.int32), jnp.zeros(room, jnp.float32), empty_record(num_objectives))

    def update(
        grads: Any,
        state: AgmState,
        params: Any = None,
        *,
        shapley_losses: Any = None,
        kappa: Any = None,
        active: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, AgmState]:
        del extra_args
        check_like_params(grads, params)
        k = count_objectives(grads)
        check_room(state.record, k)
        losses = _of_modalities("shapley_losses", shapley_losses, k)
        kappa = _of_modalities("kappa", kappa, k)
        active = check_active(active, k)
        here = jnp.ones(k, bool) if active is None else active
        seen, means = state.seen[: k - 1], state.losses[: k - 1]
        counts = here[1:] & jnp.isfinite(losses)
        seen = seen + counts
        means = means + jnp.where(counts, losses - means, 0.0) / jnp.maximum(seen, 1)
        factors = jnp.where(here, jnp.concatenate([jnp.ones(1), kappa]), 0.0)
        new_state = AgmState(
            state.seen.at[: k - 1].set(seen),
            state.losses.at[: k - 1].set(means),
            recorded(state.record, factors),
        )
        return weighted_sum(grads, here.astype(jnp.float32), active), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _of_modalities(name: str, given: Any, k: int) -> Array:
    if given is None:
        raise ValueError(f"agm needs {name} from its objective rule (agm_objectives): call update(..., {name}={name})")
    array = jnp.asarray(given, jnp.float32)
    if array.shape != (k - 1,):
        raise ValueError(f"{name} must have shape ({k - 1},), one number a modality; got {array.shape}")
    return array


@dataclass(frozen=True, kw_only=True)
class AgmConfig(MethodConfig):
    """Joint training that scales each modality's share of the logits by how far ahead it is.

    Example:
    >>> AgmConfig().name
    'agm'
    """

    name: str = "agm"
    alpha: float = 1.0
    """Strength α > 0 of the modulation (1.5 on CREMA-D, 2.5 on AV-MNIST in the paper)."""
    permutations: int = 4
    """Random orders that estimate the shares where there are more than four modalities."""

    probe_heads: ClassVar[bool] = True
    kind: ClassVar[Literal["value", "gradient", "balance"]] = "balance"
    backward_passes: ClassVar[str] = "1, up to 2^M − 1 fusion heads"
    source: ClassVar[str] = "Li et al., Boosting Multi-modal Model Performance with Adaptive Gradient Modulation, 2023"
    reading: ClassVar[Literal["paper", "our reading"]] = "our reading"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {
            Promise.IDENTITY_FOR_ONE,
            Promise.PERMUTATION_EQUIVARIANT,
            Promise.UNIFORM_WHEN_BALANCED,
            Promise.LINEAR_UNDER_SCALING,
        }
    )

    def validate(self) -> None:
        """Raise ValueError for an option out of range."""
        check_positive("method.alpha", self.alpha)
        check_at_least("method.permutations", self.permutations, 1)

    def objectives(self, forward: Forward) -> Objectives:
        """Return the losses whose gradients carry AGM's factors."""
        return agm_objectives(forward, self.alpha, self.permutations)

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `agm` for the context's objectives. Raises ValueError for regression, whose outputs are no logits."""
        if context.task.kind == "regression":
            raise ValueError(f"method.name {self.name!r} splits logits; the task is {context.task.kind}")
        return agm(num_objectives=len(context.names))
