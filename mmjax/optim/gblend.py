"""G-Blend: weigh each objective by how much it generalises for how much it overfits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.optim.options import check_at_least, check_positive
from mmjax.optim.promises import Promise
from mmjax.optim.weighing import Observed, RunningMean, nothing_seen, weighing_method


class GBlendMemory(NamedTuple):
    """What `gblend` remembers between estimations.

    steps: int32 scalar, since the last point; current: training losses since then; train, validation: float32 [K], the
    losses at the last point; known: bool [K], which of them there are; estimate: float32 [K], the weights.
    """

    steps: Array
    current: RunningMean
    train: Array
    validation: Array
    known: Array
    estimate: Array


def gblend_weights(
    train: Array, validation: Array, train_before: Array, validation_before: Array, floor: float, comparable: Array
) -> Array:
    """Return weights [K] ∝ |ΔL_val| / Δ(L_val − L_train)² over the `comparable`, that sum to their number; else 1.

    All arguments [K]: mean losses at two points in time. floor: the smallest |Δ(L_val − L_train)| that counts, as a
    share of the largest among the comparable. No validation loss changed: 1 each.

    >>> now, before = (jnp.array([0.5, 0.2]), jnp.array([0.8, 0.8])), (jnp.array([1.0, 1.0]), jnp.array([1.0, 1.0]))
    >>> weights = gblend_weights(*now, *before, 0.01, jnp.ones(2, bool))  # gaps grew by 0.3 and 0.6
    >>> [round(float(w), 3) for w in weights]
    [1.6, 0.4]
    """
    gained = jnp.where(comparable, jnp.abs(validation - validation_before), 0.0)
    overfitted = jnp.where(comparable, jnp.abs((validation - train) - (validation_before - train_before)), 0.0)
    largest = jnp.max(overfitted, initial=0.0)
    relative = jnp.maximum(overfitted / jnp.where(largest > 0, largest, 1.0), floor)
    share = gained / relative**2
    total = jnp.sum(share)
    scaled = share * jnp.sum(comparable) / jnp.where(total > 0, total, 1.0)
    return jnp.where(comparable & (total > 0), scaled, 1.0)


def gblend(
    every: int, floor: float = 0.01, *, num_objectives: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Weigh by generalisation over overfitting: w_k ∝ |ΔL_val| / Δ(L_val − L_train)², Σ_k w_k = K. One backward pass.

    Δ is between two points in time at least `every` steps apart; L_train is the mean of `values` between them, L_val what
    the validation split said last. The weights are 1 up to the second point. A point is put off until validation losses
    have come that differ from the last point's.

    every: steps between re-estimations, >= 1. floor: > 0, the smallest change of the gap that counts, as a share of the
      largest: a gap that happens to stand still shall not take all the weight.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `values` [K], the losses, and `validation_values` [K], both required; the latter NaN as
      long as that split has not been looked at. `active` bool[K]: K is then the number active.

    Raises:
      ValueError: an option out of range, `values` or `validation_values` missing or of the wrong length, gradients that
        are not one an objective.

    Source: Wang, Tran and Feiszli, "What Makes Training Multi-Modal Classification Networks Hard?" (2020), the online
    form, our reading: there each modality is trained alone for every re-estimation; here the losses come from the
    one model in training.

    >>> tx = gblend(every=1)
    >>> params = {"w": jnp.zeros(1)}
    >>> grads = {"w": jnp.array([[1.0], [1.0]])}
    >>> state = tx.init(params)
    >>> for train, validation in (([1, 1], [jnp.nan, jnp.nan]), ([0.5, 0.2], [1, 1]), ([0.4, 0.1], [0.8, 0.8])):
    ...     _, state = tx.update(
    ...         grads, state, params, values=jnp.array(train), validation_values=jnp.array(validation)
    ...     )
    ...     print([round(float(w), 3) for w in state.weights])
    [1.0, 1.0]
    [1.0, 1.0]
    [1.6, 0.4]
    """
    check_at_least("every", every, 1)
    check_positive("floor", floor)

    def remember(room: int) -> GBlendMemory:
        train, validation = jnp.zeros((2, room), jnp.float32)  # two arrays: one cannot be donated twice
        known, weights = jnp.zeros(room, bool), jnp.ones(room, jnp.float32)
        return GBlendMemory(jnp.zeros((), jnp.int32), nothing_seen(room), train, validation, known, weights)

    def weigh(memory: GBlendMemory, observed: Observed) -> tuple[Array, GBlendMemory]:
        validation = _validation_values(observed)
        told = jnp.isfinite(validation) & (memory.current.count > 0)
        news = jnp.any(told & ~(memory.known & (validation == memory.validation)))
        due = (memory.steps >= every) & news
        comparable = told & memory.known
        train = memory.current.mean
        estimate = gblend_weights(train, validation, memory.train, memory.validation, floor, comparable)
        estimate = jnp.where(due & jnp.any(comparable), estimate, memory.estimate)
        current = memory.current.cleared(due).with_values(observed)
        moved = due & told
        new = GBlendMemory(
            steps=jnp.where(due, 1, memory.steps + 1),
            current=current,
            train=jnp.where(moved, train, memory.train),
            validation=jnp.where(moved, validation, memory.validation),
            known=memory.known | moved,
            estimate=estimate,
        )
        active = jnp.where(observed.active, estimate, 0.0)
        total = jnp.sum(active)
        weights = active * jnp.sum(observed.active) / jnp.where(total > 0, total, 1.0)
        return jnp.where(total > 0, weights, 1.0), new

    return weighing_method("gblend", weigh, remember=remember, num_objectives=num_objectives)


def _validation_values(observed: Observed) -> Array:
    (k,) = observed.values.shape
    given = observed.extra.get("validation_values")
    if given is None:
        raise ValueError(
            "gblend weighs by validation losses: call update(grads, state, params, values=values, "
            "validation_values=validation_values), NaN as long as there are none"
        )
    array = jnp.asarray(given, jnp.float32)
    if array.shape != (k,):
        raise ValueError(f"validation_values must have shape ({k},), one loss an objective; got {array.shape}")
    return array


@dataclass(frozen=True, kw_only=True)
class GBlendConfig(MethodConfig):
    """Weights by how much each objective generalises for how much it overfits, re-estimated every n epochs.

    Example:
    >>> GBlendConfig().name
    'gblend'
    """

    name: str = "gblend"
    every: int = 1
    """Epochs between re-estimations, at least 1; each also waits for the next evaluation on validation."""
    floor: float = 0.01
    """Smallest change of the gap between validation and training loss that counts, as a share of the largest; > 0."""

    source: ClassVar[str] = "Wang et al., What Makes Training Multi-Modal Classification Networks Hard?, 2020"
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
        check_at_least("method.every", self.every, 1)
        check_positive("method.floor", self.floor)

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `gblend` for the context's objectives."""
        return gblend(self.every * context.steps_per_epoch, self.floor, num_objectives=len(context.names))
