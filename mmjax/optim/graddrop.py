"""GradDrop: at each entry of the gradient one sign is drawn, and gradients of the other sign are dropped."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.optim.gradients import check_like_params, count_objectives
from mmjax.optim.options import check_active, check_key, check_num_objectives
from mmjax.optim.promises import Promise
from mmjax.optim.record import WeightRecord, check_room, empty_record, recorded
from mmjax.optim.rows import gradient_rows
from mmjax.reductions import sums


class GradDropState(NamedTuple):
    """State of `graddrop`.

    >>> import jax, jax.numpy as jnp
    >>> from mmjax.optim import graddrop
    >>> tx, params = graddrop(), {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.eye(2)}
    >>> _, state = tx.update(grads, tx.init(params), params, key=jax.random.key(0))
    >>> state.weights.tolist()
    [1.0, 1.0]
    """

    record: WeightRecord

    @property
    def weights(self) -> Array:
        """What came through of each gradient, [K]: the share of its entries' absolute sum."""
        return self.record.weights


def drop_signs(rows: Sequence[Array], key: Array) -> list[Array]:
    """Return `rows`, gradients of one shape, with one sign dropped at every entry.

    The positive one stays with probability P = ½ (1 + Σ g / Σ|g|), else the negative one; independently an entry.

    >>> kept = drop_signs([jnp.array([1.0, -2.0]), jnp.array([3.0, -1.0])], jax.random.key(0))  # no conflict
    >>> [row.tolist() for row in kept]
    [[1.0, -2.0], [3.0, -1.0]]
    """
    # Sums over rows, not over an axis of a stacked array, and no division: all of this then is one pass over the rows.
    size = functools.reduce(jnp.add, [jnp.abs(row) for row in rows])
    # U is in (0, 1): with U < P for one sign and not for the other, an entry of one sign only always stays.
    keeps_positive = uniform_16(key, rows[0].shape) * size < 0.5 * size + 0.5 * functools.reduce(jnp.add, rows)
    # What is not finite stays, whatever its sign, so that the update shows it.
    return [jnp.where(jnp.where(keeps_positive, row > 0, row < 0) | ~jnp.isfinite(size), row, 0.0) for row in rows]


def uniform_16(key: Array, shape: tuple[int, ...]) -> Array:
    """Return float32 draws from {½, 1½, ..., 65535½}/65536, two from one 32-bit number: half of the cost of `uniform`.

    U < P comes out with P rounded to a multiple of 2^-16; U and 1 − U have one distribution.

    >>> draws = uniform_16(jax.random.key(0), (3, 333))
    >>> draws.shape, bool((draws > 0).all() and (draws < 1).all()), round(float(draws.mean()), 1)
    ((3, 333), True, 0.5)
    """
    count = math.prod(shape)
    bits = jax.random.bits(key, ((count + 1) // 2,), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(bits, jnp.uint16).reshape(-1)[:count].reshape(shape)
    return (halves.astype(jnp.float32) + 0.5) * 2.0**-16


def graddrop(*, num_objectives: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Sum the gradients after dropping, at each entry, all of one sign drawn at random. Two encoder backward passes.

    P = ½ (1 + Σ_k g_k / Σ_k |g_k|) at an entry, U ~ U(0, 1) in steps of 2^-16: g_k > 0 stays where U < P, g_k < 0 where
    not. Where all objectives agree, or one alone reaches, nothing is dropped. The expected update is not Σ_k g_k but, an
    entry, P Σ g⁺ + (1 − P) Σ g⁻.

    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `key`, required (each leaf and entry has its own draw; on several devices the same);
      `touching`, a tree like params of bool[K]; `active` bool[K].

    Raises:
      ValueError: `key` missing, gradients that are not one an objective, or `active` of the wrong length.

    Source: Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout" (2020), without
    leakage and on the parameters' gradients (there: on those of a shared activation).

    >>> tx = graddrop()
    >>> params = {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.array([[1.0, 3.0], [2.0, -1.0]])}
    >>> updates, _ = tx.update(grads, tx.init(params), params, key=jax.random.key(0))
    >>> float(updates["w"][0]), float(updates["w"][1]) in (3.0, -1.0)
    (3.0, True)
    """
    check_num_objectives(num_objectives)

    def init(params: Any) -> GradDropState:
        del params
        return GradDropState(empty_record(num_objectives))

    def update(
        grads: Any,
        state: GradDropState,
        params: Any = None,
        *,
        key: Any = None,
        touching: Any = None,
        active: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, GradDropState]:
        del extra_args
        key = check_key(key, "graddrop")
        check_like_params(grads, params)
        k = count_objectives(grads)
        check_room(state.record, k)
        active = check_active(active, k)
        rows = gradient_rows(grads, k, touching=touching)
        came = whole = jnp.zeros(k, jnp.float32)
        updates = []
        for i, leaf in enumerate(rows.leaves):
            dtype = next(iter(leaf.values())).dtype
            wide = [row.astype(jnp.promote_types(dtype, jnp.float32)) for row in leaf.values()]
            if active is not None:
                wide = [jnp.where(active[objective], row, 0) for objective, row in zip(leaf, wide, strict=True)]
            kept = drop_signs(wide, jax.random.fold_in(key, i)) if len(leaf) > 1 else wide
            updates.append(functools.reduce(jnp.add, kept).astype(dtype))
            objectives = np.array(list(leaf))
            of_kept, of_whole = jnp.split(sums([jnp.abs(row) for row in (*kept, *wide)]), 2)
            came, whole = came.at[objectives].add(of_kept), whole.at[objectives].add(of_whole)
        here = jnp.ones(k, bool) if active is None else active
        weights = jnp.where(here, jnp.where(whole > 0, came / jnp.where(whole > 0, whole, 1.0), 1.0), 0.0)
        return rows.assemble(updates), GradDropState(recorded(state.record, weights))

    return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True, kw_only=True)
class GradDropConfig(MethodConfig):
    """At each entry of the gradient one sign is drawn, and what has the other one is dropped.

    Example:
    >>> GradDropConfig().name
    'graddrop'
    """

    name: str = "graddrop"

    kind: ClassVar[Literal["value", "gradient", "balance"]] = "gradient"
    backward_passes: ClassVar[str] = "2"
    reading: ClassVar[Literal["paper", "our reading"]] = "our reading"
    source: ClassVar[str] = "Chen et al., Just Pick a Sign: ... Gradient Sign Dropout, 2020"
    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.IDENTITY_FOR_ONE, Promise.PERMUTATION_EQUIVARIANT})

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `graddrop` for the context's objectives."""
        return graddrop(num_objectives=len(context.names))
