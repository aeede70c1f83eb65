"""STCH: a smooth maximum over all objectives, the fusion loss among them; MIMO's nearest relative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext, ScheduleConfig
from mmjax.optim.options import SCALES, Scale, at_step, by_objective, check_at_least, check_choice, check_positive
from mmjax.optim.promises import Promise
from mmjax.optim.weighing import Observed, masked_softmax, weighing_method


def stch(
    smoothing: optax.ScalarOrSchedule = 0.1,
    *,
    preference: Sequence[float] | Array | None = None,
    ideal: Sequence[float] | Array | None = None,
    scale: Scale = "mean",
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend μ log Σ_k exp(w_k (L_k − z_k)/μ), a smooth maximum of all K losses. One backward pass.

    The weights are w_k π_k, π = softmax(w (L − z)/μ), with the largest exponent subtracted before the division by μ.

    smoothing: μ > 0, in units of the loss; a number or schedule.
    preference: w [K] > 0, fusion first; None: 1 each. ideal: z [K], the losses that one could hope for; None: 0.
    scale: "sum" multiplies the weights by K, so that equal losses weigh as in `uniform`.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `values` [K], the losses, required; `active` bool[K].

    Raises:
      ValueError: an option out of range or, at the first update, of another length than K; `values` missing or of the
        wrong length; gradients that are not one an objective.

    Source: Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization" (2024); preference and
    ideal point as there, their defaults ours.

    >>> tx = stch(0.1)
    >>> params = {"w": jnp.zeros(1)}
    >>> grads = {"w": jnp.array([[1.0], [10.0], [100.0]])}
    >>> updates, state = tx.update(grads, tx.init(params), params, values=jnp.array([0.5, 0.2, 9.0]))
    >>> updates["w"].tolist(), [round(float(w), 6) for w in state.weights]  # the second modality is the worst by far
    ([100.0], [0.0, 0.0, 1.0])
    """
    check_positive("smoothing", smoothing)
    weight = None if preference is None else _numbers(preference)
    origin = None if ideal is None else _numbers(ideal)
    if weight is not None:
        check_positive("preference", weight)
    if origin is not None:
        check_at_least("ideal", origin, -float("inf"))

    def weigh(count: Array, observed: Observed) -> tuple[Array, Array]:
        (k,) = observed.values.shape
        w = _each("preference", weight, k, 1.0)
        exponents = w * (observed.values - _each("ideal", origin, k, 0.0))
        top = jnp.max(exponents, where=observed.active, initial=-jnp.inf)
        share = masked_softmax((exponents - top) / at_step(smoothing, count), observed.active)
        return w * share, optax.safe_increment(count)

    return weighing_method(
        "stch", weigh, remember=lambda room: jnp.zeros((), jnp.int32), scale=scale, num_objectives=num_objectives
    )


def _numbers(given: Any) -> Any:
    """Return concrete numbers as a NumPy array, whose range can be checked; traced ones as they are."""
    return given if isinstance(given, jax.Array) else np.asarray(given, np.float32)


def _each(name: str, given: Any, k: int, default: float) -> Array:
    if given is None:
        return jnp.full(k, default, jnp.float32)
    array = jnp.asarray(given, jnp.float32)
    if array.shape != (k,):
        raise ValueError(f"{name} must have shape ({k},), one number an objective; got {array.shape}")
    return array


@dataclass(frozen=True, kw_only=True)
class StchConfig(MethodConfig):
    """A smooth maximum over all losses, the fusion's among them: the worst objective gets the attention.

    Example:
    >>> StchConfig().name
    'stch'
    """

    name: str = "stch"
    smoothing: float = 0.1
    """Temperature μ of the maximum, > 0, in units of the loss."""
    smoothing_schedule: ScheduleConfig | None = None
    """Factor on the smoothing over the run; None: constant."""
    preference: dict[str, float] = field(default_factory=dict)
    """Weight w_k > 0 of an objective inside the maximum, by its name; 1 for those not named."""
    ideal: dict[str, float] = field(default_factory=dict)
    """Loss z_k that one could hope for, by the objective's name; 0 for those not named."""
    scale: Scale = "mean"
    """sum: weights sum to K, as in uniform; mean: to 1."""

    source: ClassVar[str] = "Lin et al., Smooth Tchebycheff Scalarization for Multi-Objective Optimization, 2024"
    promises: ClassVar[frozenset[Promise]] = frozenset(
        {
            Promise.IDENTITY_FOR_ONE,
            Promise.PERMUTATION_EQUIVARIANT,
            Promise.UNIFORM_WHEN_BALANCED,  # with scale="sum"
            Promise.LINEAR_UNDER_SCALING,
        }
    )

    def validate(self) -> None:
        """Raise ValueError for an option out of range."""
        check_positive("method.smoothing", self.smoothing)
        check_choice("method.scale", self.scale, SCALES)
        for name, weight in self.preference.items():
            check_positive(f"method.preference[{name!r}]", weight)
        for name, value in self.ideal.items():
            check_at_least(f"method.ideal[{name!r}]", value, -float("inf"))

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `stch` for the context's objectives. Raises ValueError for an objective that the data do not have."""
        schedule = self.smoothing_schedule
        return stch(
            self.smoothing if schedule is None else schedule.build(self.smoothing, context.total_steps),
            preference=by_objective("method.preference", self.preference, context.names, 1.0),
            ideal=by_objective("method.ideal", self.ideal, context.names, 0.0),
            scale=self.scale,
            num_objectives=len(context.names),
        )
