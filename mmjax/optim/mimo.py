"""MIMO: the fusion loss plus a smoothed penalty on the worst uni-modal loss, in one backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext, ScheduleConfig
from mmjax.optim.gradients import check_like_params, count_objectives, weighted_sum
from mmjax.optim.options import at_step, check_active, check_num_objectives, check_positive, check_values
from mmjax.optim.promises import Promise
from mmjax.optim.record import WeightRecord, empty_record, recorded

LEAST_SMOOTHING = 1e-12
"""What a schedule that ends at 0 gets: below any difference of two float32 losses, so that the worst takes all."""


def smooth_maximum(losses: Array, smoothing: float | Array, active: Array | None = None) -> Array:
    """Return μ log((1/M) Σ_m exp(L_m/μ)), between max L − μ log M and max L. Centred, so safe at any L/μ.

    losses: [M], M >= 1; smoothing: μ > 0, in the units of the losses; active: bool[M], the losses that count.
    Source: MIMO (Fernando et al.); the formula is our reading (docs/methods.md).

    >>> round(float(smooth_maximum(jnp.array([1.0, 3.0]), 0.1)), 4)  # 3 - 0.1 log 2
    2.9307
    """
    losses = jnp.asarray(losses)
    active = jnp.ones(losses.shape, bool) if active is None else active
    smoothing = jnp.maximum(smoothing, LEAST_SMOOTHING)
    top = jnp.max(jnp.where(active, losses, -jnp.inf))
    exponents = jnp.where(active, (losses - top) / smoothing, -jnp.inf)
    return top + smoothing * (jax.nn.logsumexp(exponents) - jnp.log(jnp.sum(active)))


def mimo_weights(values: Array, penalty: float | Array, smoothing: float | Array, active: Array | None = None) -> Array:
    """Return the weights [K] of ∇Φ = g_0 + λ Σ_m π_m g_m, π = softmax(L_{1..M}/μ).

    values: float32 [K], the fusion loss first; penalty: λ; smoothing: μ; active: bool[K].
    With a non-finite loss among the active ones the weights are those of the plain sum, so that it reaches the update
    unhidden and never turns into a weight itself.
    Source: MIMO (Fernando et al.); the formula is our reading (docs/methods.md).

    >>> mimo_weights(jnp.array([0.3, 1.0, 1.0]), 2.0, 0.1).tolist()
    [1.0, 1.0, 1.0]
    """
    active = jnp.ones(values.shape, bool) if active is None else active
    here = active.astype(jnp.float32)
    losses, present = values[1:], active[1:]
    if losses.shape[0] == 0:
        return here
    smoothing = jnp.maximum(smoothing, LEAST_SMOOTHING)
    # Subtract the maximum before dividing: (L/μ - max L/μ) loses the difference in rounding when L/μ is large.
    top = jnp.max(jnp.where(present, losses, -jnp.inf))
    exponents = jnp.exp(jnp.where(present, (losses - top) / smoothing, -jnp.inf))
    exponents = jnp.where(present, exponents, 0.0)  # none present: top is -inf and the line above NaN
    total = jnp.sum(exponents)
    share = exponents / jnp.where(total > 0, total, 1.0)
    weights = jnp.concatenate([here[:1], penalty * share])
    return jnp.where(jnp.all(jnp.isfinite(values) | ~active), weights, here)


class MimoState(NamedTuple):
    """State of `mimo`: the step count (int32 scalar; schedules run on it) and the last weights.

    >>> import jax.numpy as jnp
    >>> from mmjax.optim import mimo
    >>> tx, params = mimo(penalty=2.0), {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.eye(2)}
    >>> _, state = tx.update(grads, tx.init(params), params, values=jnp.array([0.5, 0.25]))
    >>> state.weights.tolist()
    [1.0, 2.0]
    """

    count: Array  # type: ignore[assignment]  # hides tuple.count, as in Optax's own states
    record: WeightRecord

    @property
    def weights(self) -> Array:
        """The last weights used, [K]: 1, then λπ."""
        return self.record.weights


def mimo(
    penalty: optax.ScalarOrSchedule = 1.0,
    smoothing: optax.ScalarOrSchedule = 0.1,
    *,
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend Φ = L_0 + λ μ log((1/M) Σ_m exp(L_m/μ)): the worst modality gets the attention. One backward pass.

    penalty: λ > 0, the weight of the penalty (λ = M weighs equal losses as `uniform` does); a number or schedule.
    smoothing: μ > 0, in units of the loss; small: the worst modality takes all of λ; large: λ/M each; or a schedule.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `values` [K], the losses, required; `active` bool[K]: softmax and 1/M run over the
    active modalities.

    Raises:
      ValueError: penalty or smoothing not above 0, `values` missing or of the wrong length, gradients that are not one
        an objective.

    Source: MIMO (Fernando et al., "Mitigating Modality Imbalance in Multi-modal Learning via Multi-objective
    Optimization"); the formula is our reading of it (docs/methods.md).

    >>> tx = optax.chain(mimo(penalty=1.0, smoothing=0.1), optax.sgd(1.0))
    >>> params = {"w": jnp.zeros(1)}
    >>> grads = {"w": jnp.array([[1.0], [10.0], [100.0]])}
    >>> updates, state = tx.update(grads, tx.init(params), params, values=jnp.array([0.5, 0.2, 9.0]))
    >>> updates["w"].tolist(), state[0].weights.tolist()  # the second modality is the worst by far
    ([-101.0], [1.0, 0.0, 1.0])
    """
    check_positive("penalty", penalty)
    check_positive("smoothing", smoothing)
    check_num_objectives(num_objectives)

    def init(params: Any) -> MimoState:
        del params
        return MimoState(jnp.zeros((), jnp.int32), empty_record(num_objectives))

    def update(
        grads: Any,
        state: MimoState,
        params: Any = None,
        *,
        values: Any = None,
        active: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, MimoState]:
        del extra_args
        check_like_params(grads, params)
        k = count_objectives(grads)
        values = check_values(values, k, "mimo")
        active = check_active(active, k)
        weights = mimo_weights(values, at_step(penalty, state.count), at_step(smoothing, state.count), active)
        new_state = MimoState(optax.safe_increment(state.count), recorded(state.record, weights))
        return weighted_sum(grads, weights, active), new_state

    return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True, kw_only=True)
class MimoConfig(MethodConfig):
    """The fusion loss plus a smoothed penalty on the worst uni-modal loss.

    Example:
    >>> MimoConfig(penalty=2.0).penalty
    2.0
    """

    name: str = "mimo"
    penalty: float = 2.0
    """Weight λ of the penalty, > 0; with M modalities, M weighs equal losses as uniform does."""
    smoothing: float = 0.1
    """Temperature μ of the maximum, > 0, in units of the loss."""
    penalty_schedule: ScheduleConfig | None = None
    """Factor on the penalty over the run; None: constant."""
    smoothing_schedule: ScheduleConfig | None = None
    """Factor on the smoothing over the run; None: constant."""

    source: ClassVar[str] = "Fernando et al., Mitigating Modality Imbalance ... via Multi-objective Optimization"
    reading: ClassVar[Literal["paper", "our reading"]] = "our reading"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {
            Promise.IDENTITY_FOR_ONE,
            Promise.PERMUTATION_EQUIVARIANT,
            Promise.UNIFORM_WHEN_BALANCED,  # where penalty = M
            Promise.LINEAR_UNDER_SCALING,
        }
    )

    def validate(self) -> None:
        """Raise ValueError for a penalty or smoothing not above 0."""
        check_positive("method.penalty", self.penalty)
        check_positive("method.smoothing", self.smoothing)

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `mimo` for the context's objectives."""

        def scheduled(base: float, schedule: ScheduleConfig | None) -> optax.ScalarOrSchedule:
            return base if schedule is None else schedule.build(base, context.total_steps)

        return mimo(
            scheduled(self.penalty, self.penalty_schedule),
            scheduled(self.smoothing, self.smoothing_schedule),
            num_objectives=len(context.names),
        )
