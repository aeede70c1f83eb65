"""DWA: the loss that has lately fallen the least gets the most weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.optim.options import check_at_least, check_positive
from mmjax.optim.promises import Promise
from mmjax.optim.weighing import Observed, RunningMean, masked_softmax, nothing_seen, weighing_method


class DwaMemory(NamedTuple):
    """What `dwa` remembers: steps taken in this window and their mean losses, those of the last two windows.

    steps: int32 scalar; current: of this window; last, before: float32 [K], means of the window before this one and of
    the one before that; windows: int32 [K], how many of these two there are.
    """

    steps: Array
    current: RunningMean
    last: Array
    before: Array
    windows: Array


def dwa(
    window: int, temperature: float = 2.0, *, num_objectives: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Weigh by how little each loss has fallen: w = K softmax(r/T), r_k = L̄_k(t−1)/L̄_k(t−2). One backward pass.

    L̄ are mean losses over windows of `window` steps. r is 1 as long as an objective has not been through two windows,
    and where its loss was 0 two windows ago: two windows of uniform weights to begin with.

    window: steps whose mean is one entry of the comparison, >= 1 (an epoch, in the paper). temperature: T > 0; large:
      towards `uniform`.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `values` [K], the losses, required; `active` bool[K]: an objective's means are over the
      steps in which it was there, K is the number active.

    Raises:
      ValueError: an option out of range, `values` missing or of the wrong length, gradients that are not one an
        objective.

    Source: Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention" (2019), dynamic weight average.

    >>> tx = dwa(window=1, temperature=1.0)
    >>> params = {"w": jnp.zeros(1)}
    >>> grads = {"w": jnp.array([[1.0], [10.0]])}
    >>> state = tx.init(params)
    >>> for values in ([1.0, 1.0], [1.0, 0.5], [1.0, 0.5]):
    ...     _, state = tx.update(grads, state, params, values=jnp.array(values))
    ...     print([round(float(w), 4) for w in state.weights])
    [1.0, 1.0]
    [1.0, 1.0]
    [1.2449, 0.7551]
    """
    check_at_least("window", window, 1)
    check_positive("temperature", temperature)

    def remember(room: int) -> DwaMemory:
        last, before = jnp.zeros((2, room), jnp.float32)  # two arrays: one cannot be donated twice
        return DwaMemory(jnp.zeros((), jnp.int32), nothing_seen(room), last, before, jnp.zeros(room, jnp.int32))

    def weigh(memory: DwaMemory, observed: Observed) -> tuple[Array, DwaMemory]:
        comparable = (memory.windows >= 2) & (memory.before > 0)
        ratio = jnp.where(comparable, memory.last / jnp.where(comparable, memory.before, 1.0), 1.0)
        ratio = jnp.minimum(
            ratio, jnp.finfo(jnp.float32).max
        )  # from almost 0 upwards: infinite, and no number if two are
        share = masked_softmax(ratio / temperature, observed.active)
        current = memory.current.with_values(observed)
        steps = memory.steps + 1
        full = steps >= window
        moves = full & (current.count > 0)  # an objective that was never there keeps what it had
        return share * jnp.sum(observed.active), DwaMemory(
            steps=jnp.where(full, 0, steps),
            current=current.cleared(full),
            last=jnp.where(moves, current.mean, memory.last),
            before=jnp.where(moves, memory.last, memory.before),
            windows=jnp.minimum(memory.windows + moves, 2),
        )

    return weighing_method("dwa", weigh, remember=remember, num_objectives=num_objectives)


@dataclass(frozen=True, kw_only=True)
class DwaConfig(MethodConfig):
    """The loss that has fallen least over the last two epochs gets the most weight.

    Example:
    >>> DwaConfig().name
    'dwa'
    """

    name: str = "dwa"
    temperature: float = 2.0
    """T > 0 of the softmax; large: towards uniform."""
    window: int | None = None
    """Steps whose mean loss is compared with the window before; None: one epoch."""

    source: ClassVar[str] = "Liu et al., End-to-End Multi-Task Learning with Attention, 2019"
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
        check_positive("method.temperature", self.temperature)
        check_at_least("method.window", self.window, 1)

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `dwa` for the context's objectives."""
        window = context.steps_per_epoch if self.window is None else self.window
        return dwa(window, self.temperature, num_objectives=len(context.names))
