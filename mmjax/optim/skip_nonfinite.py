"""A combiner that sits out the steps at which an objective's gradient is not finite."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.lazy_gradients import LeafGradients, ObjectiveGrads
from mmjax.optim.gradients import count_objectives
from mmjax.optim.options import check_active, check_num_objectives
from mmjax.optim.record import CAPACITY

PyTree = Any


class SkipNonfiniteState(NamedTuple):
    """State of `skip_nonfinite`. inner: the combiner's; skipped: int32 scalar, steps sat out.

    nonfinite: int32 [K], at how many steps each objective's gradient was not finite ([16], zero-padded, where
    `num_objectives` was not given).

    >>> import jax.numpy as jnp
    >>> from mmjax.optim import skip_nonfinite, uniform
    >>> tx, params = skip_nonfinite(uniform()), {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.eye(2)}
    >>> _, state = tx.update(grads, tx.init(params), params, values=jnp.array([0.5, 0.25]))
    >>> int(state.skipped), state.nonfinite[:2].tolist()
    (0, [0, 0])
    """

    inner: PyTree
    skipped: Array
    nonfinite: Array

    @property
    def weights(self) -> Array:
        """The combiner's last weights: those of the last step that was not skipped."""
        return self.inner.weights

    @property
    def diagnostics(self) -> dict[str, Array]:
        """The combiner's own, of that step, {name: scalar}; empty for one that has none."""
        return getattr(self.inner, "diagnostics", {})


def skip_nonfinite(
    combiner: optax.GradientTransformation, *, num_objectives: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Where an active objective's gradient is not finite: update 0, the combiner's state unchanged, the objective counted.

    One objective may explode for a step; a combiner's running state would stay poisoned, and which objective it was is
    lost in the combined update. What comes behind in the chain sees a gradient of 0 (momentum moves on by itself).
    The trainer needs no such wrapper: at such a step nothing moves, neither parameters nor optimizer nor statistics, and
    `TrainConfig.skip_nonfinite` says how many it skips.

    combiner: any, lazy or stacked, with extra arguments or without. num_objectives: K, for counters of exactly K (needed
    above 16 objectives). Extra arguments of update: the combiner's; `active` is used here, too.
    Cost with lazy gradients: a backward pass of the plain sum, which is finite exactly where all are; the objectives are
    told apart only where it is not. A sum of finite gradients that overflows counts as not finite, with no objective to
    blame.

    Raises:
      ValueError: `num_objectives` out of range, or gradients that are not one an objective.

    >>> from mmjax.optim import uniform
    >>> tx = skip_nonfinite(uniform(), num_objectives=2)
    >>> params = {"w": jnp.zeros(2)}
    >>> updates, state = tx.update({"w": jnp.array([[1.0, 2.0], [jnp.inf, 0.0]])}, tx.init(params), params)
    >>> updates["w"].tolist(), int(state.skipped), state.nonfinite.tolist()
    ([0.0, 0.0], 1, [0, 1])
    """
    check_num_objectives(num_objectives)
    inner = optax.with_extra_args_support(combiner)
    size = CAPACITY if num_objectives is None else num_objectives

    def init(params: PyTree) -> SkipNonfiniteState:
        return SkipNonfiniteState(inner.init(params), jnp.zeros((), jnp.int32), jnp.zeros(size, jnp.int32))

    def update(
        grads: Any, state: SkipNonfiniteState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, SkipNonfiniteState]:
        k = count_objectives(grads)
        if k > size or (num_objectives is not None and k != size):
            raise ValueError(
                f"{k} objectives came, but the state was made for {size}: give skip_nonfinite num_objectives={k}"
            )
        active = check_active(extra_args.get("active"), k)
        sound, bad = _soundness(grads, active, k)
        updates, new = inner.update(grads, state.inner, params, **extra_args)
        updates = jax.tree.map(lambda u: jnp.where(sound, u, jnp.zeros_like(u)), updates)
        kept = jax.tree.map(lambda then, now: jnp.where(sound, now, then), state.inner, new)
        return updates, SkipNonfiniteState(
            inner=kept,
            skipped=jnp.where(sound, state.skipped, optax.safe_increment(state.skipped)),
            nonfinite=state.nonfinite + jnp.pad(bad.astype(jnp.int32), (0, size - k)),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _soundness(grads: ObjectiveGrads | PyTree, active: Array | None, k: int) -> tuple[Array, Array]:
    """Return whether all active gradients are finite, and bool [K], which of them are not."""
    here = jnp.ones(k, bool) if active is None else active
    if not isinstance(grads, ObjectiveGrads):
        finite = [jnp.all(jnp.isfinite(leaf.reshape(k, -1)), axis=1) for leaf in jax.tree.leaves(grads)]
        bad = here & ~jnp.all(jnp.stack(finite), axis=0)
        return ~jnp.any(bad), bad
    # NaN and infinity survive any sum, so one backward pass tells whether there are any.
    total = grads.weighted(here.astype(jnp.float32), active)
    sound = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(total)]))
    names = grads.names

    def apart() -> Array:
        pairs = jax.tree.leaves(grads.pairs(), is_leaf=lambda x: isinstance(x, LeafGradients))
        whole = {name: [jnp.all(jnp.isfinite(pair[name])) for pair in pairs if name in pair] for name in names}
        return jnp.stack([~jnp.all(jnp.stack(whole[name])) if whole[name] else jnp.array(False) for name in names])

    return sound, here & jax.lax.cond(sound, lambda: jnp.zeros(k, bool), apart)
