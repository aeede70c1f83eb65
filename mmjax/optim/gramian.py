"""Methods that weigh the objectives by the inner products of their gradients, written once on the K x K Gramian."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.optim.gradients import check_like_params, count_objectives
from mmjax.optim.options import SCALES, Scale, check_active, check_choice, check_num_objectives
from mmjax.optim.record import WeightRecord, empty_record, recorded
from mmjax.optim.rows import LEVELS, GradientRows, Level, combine_rows, gradient_rows

PyTree = Any

Scope = Literal["shared", "all"]
SCOPES = ("shared", "all")

_RUN = 4096
"""Longest run of products summed one after the other: float32 then keeps the Gramian to a few units in the last place."""

_VARIADIC = 8
"""Most rows whose products are summed in one pass; above, their number would make compilation slow."""


class Gramian(NamedTuple):
    """Inner products of the objectives' gradients.

    matrix: [K, K], G / trace, zeros in the rows and columns of objectives that are not active; zeros if every gradient is
    zero. trace: the trace of G, Σ_k ‖g_k‖². active: bool[K].
    """

    matrix: Array
    trace: Array
    active: Array

    @property
    def norms(self) -> Array:
        """[K], ‖g_k‖ / √trace."""
        return jnp.sqrt(jnp.diagonal(self.matrix))

    @property
    def num_active(self) -> Array:
        """The number of active objectives, float scalar."""
        return jnp.sum(self.active).astype(self.matrix.dtype)

    @property
    def mean(self) -> Array:
        """[K], weights of the mean: 1/K, K the number of active objectives; 0 for the others."""
        return self.active / jnp.maximum(self.num_active, 1)

    @property
    def cosines(self) -> Array:
        """[K, K], cosines between the gradients; rows and columns of zero gradients are zero."""
        norms = self.norms
        inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
        # One factor after the other: their product may overflow where neither entry does.
        cosines = jnp.clip(self.matrix * inverse[:, None] * inverse[None, :], -1, 1)
        return jnp.where(jnp.eye(len(norms), dtype=bool), norms > 0, cosines)


def inner_products(rows: Sequence[Array]) -> list[Array]:
    """Return [⟨r_i, r_j⟩ for i <= j], in float32 (float64 for float64 rows), reading each row once.

    rows: arrays of one shape. Nothing is flattened or stacked, so sharded leaves stay where they are.

    >>> [float(x) for x in inner_products([jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])])]
    [5.0, 1.0, 10.0]
    """
    shape = rows[0].shape
    pairs = [(i, j) for i in range(len(rows)) for j in range(i, len(rows))]
    wide = [r.astype(jnp.promote_types(r.dtype, jnp.float32)) for r in rows]
    if not shape:
        return [wide[i] * wide[j] for i, j in pairs]
    if len(rows) > _VARIADIC:
        block = jnp.stack(wide)
        axes = tuple(range(1, block.ndim))
        gram = jnp.tensordot(block, block, axes=(axes, axes), precision=jax.lax.Precision.HIGHEST)
        return [gram[i, j] for i, j in pairs]
    size = shape[-1]
    if size > _RUN:
        cut = size - size % _RUN
        head = inner_products([r[..., :cut].reshape(*shape[:-1], -1, _RUN) for r in wide])
        if cut == size:
            return head
        return [a + b for a, b in zip(head, inner_products([r[..., cut:] for r in wide]), strict=True)]
    first = len(shape) - 1
    while first > 0 and math.prod(shape[first - 1 :]) <= _RUN:
        first -= 1
    products = tuple(wide[i] * wide[j] for i, j in pairs)
    zeros = tuple(jnp.zeros((), p.dtype) for p in products)
    # One reduction of all products at once: XLA then reads each gradient once. Then the sums of the runs.
    runs = jax.lax.reduce(
        products, zeros, lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)), tuple(range(first, len(shape)))
    )
    return [jnp.sum(r) for r in runs]


def in_scope(leaf: dict[int, Array], scope: Scope, active: Array | None) -> bool | Array:
    """Say whether a method acts on this leaf: with "shared", where two or more (active) objectives reach it.

    A Python bool where it is static: without `active`, or where `active` cannot change it.
    """
    if scope == "all":
        return True
    if len(leaf) < 2:
        return False
    if active is None:
        return True
    return jnp.sum(jnp.stack([active[k] for k in leaf])) >= 2


def gramian(rows: GradientRows, *, scope: Scope = "shared", active: Array | None = None) -> Gramian:
    """Return the Gramian over the leaves in scope, in float32.

    scope "shared": the leaves that two or more active objectives reach; "all": every leaf. active: bool[K].
    """
    k = rows.num_objectives
    totals: tuple[dict[tuple[int, int], Array], ...] = ({}, {})  # of the features, of the parameters
    for index, leaf in enumerate(rows.leaves):
        here = in_scope(leaf, scope, active)
        if here is False:
            continue
        total = totals[0 if index < len(rows.modalities) else 1]
        objectives = list(leaf)
        pairs = [(i, j) for n, i in enumerate(objectives) for j in objectives[n:]]
        for (i, j), product in zip(pairs, inner_products(list(leaf.values())), strict=True):
            entry = (min(i, j), max(i, j))
            product = product if here is True else jnp.where(here, product, 0)
            total[entry] = total[entry] + product if entry in total else product
    matrix = rows.over_devices(_matrix(totals[0], k), _matrix(totals[1], k))
    flags = jnp.ones(k, bool) if active is None else active
    matrix = jnp.where(flags[:, None] & flags[None, :], matrix, 0)
    trace = jnp.trace(matrix)
    return Gramian(matrix / jnp.where(trace > 0, trace, 1), trace, flags)


def _matrix(entries: dict[tuple[int, int], Array], k: int) -> Array:
    zero = jnp.zeros((), jnp.float32)
    return jnp.stack([jnp.stack([entries.get((min(i, j), max(i, j)), zero) for j in range(k)]) for i in range(k)])


class GramState(NamedTuple):
    """State of a Gram-based method: the weights that it used last.

    >>> import jax.numpy as jnp
    >>> from mmjax.optim import mgda
    >>> tx, params = mgda(), {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.eye(2)}
    >>> _, state = tx.update(grads, tx.init(params), params, values=jnp.array([0.5, 0.25]))
    >>> state.weights.tolist()
    [0.5, 0.5]
    """

    record: WeightRecord

    @property
    def weights(self) -> Array:
        """The last weights used on the leaves in scope, [K]."""
        return self.record.weights


def gram_method(
    weigh: Callable[[Gramian, Array | None], Array],
    *,
    scope: Scope = "shared",
    scale: Scale = "mean",
    level: Level = "parameters",
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Make a combiner of a rule that turns the Gramian into weights: Σ_k w_k g_k on the leaves in scope, else Σ_k g_k.

    weigh: (Gramian, the update's `key` or None) -> weights [K]; it is asked about active objectives only (the others'
      rows are zero) and its answer for the others is ignored.
    scope: "shared": leaves that two or more active objectives reach; "all": every leaf.
    scale: "sum" multiplies the weights by the number of active objectives, for a rule whose weights sum to 1.
    level: "parameters", or "features": the Gramian is that of the gradients at the features (and at parameters after them),
      the weights act there, and one encoder backward follows.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `active` bool[K], `touching` (which objectives reach each leaf of a stacked tree), `key`.

    If an active gradient is not finite, all weights are 1, so that it reaches the update unhidden and never turns into a
    weight.

    Raises:
      ValueError: an unknown scope, scale or level; gradients that are not one an objective, `active` of the wrong length,
        level "features" without lazy gradients that know their features.

    >>> from mmjax.optim.rows import gradient_rows
    >>> shorter_first = gram_method(lambda gram, key: gram.norms == jnp.min(gram.norms))  # only the shortest gradient
    >>> params = {"w": jnp.zeros(2)}
    >>> grads = {"w": jnp.array([[1.0, 0.0], [0.0, 2.0]])}
    >>> shorter_first.update(grads, shorter_first.init(params), params)[0]["w"].tolist()
    [1.0, 0.0]
    """
    check_choice("scope", scope, SCOPES)
    check_choice("scale", scale, SCALES)
    check_choice("level", level, LEVELS)
    check_num_objectives(num_objectives)
    weigh = jax.jit(weigh)  # for those who call update outside jit: one program, not one an operation

    def init(params: Any) -> GramState:
        del params
        return GramState(empty_record(num_objectives))

    def update(
        grads: Any,
        state: GramState,
        params: Any = None,
        *,
        active: Any = None,
        touching: Any = None,
        key: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, GramState]:
        del extra_args
        check_like_params(grads, params)
        k = count_objectives(grads)
        active = check_active(active, k)
        rows = gradient_rows(grads, k, level=level, touching=touching)
        gram = gramian(rows, scope=scope, active=active)
        finite = jnp.isfinite(gram.trace)
        safe = gram._replace(matrix=jnp.where(finite, gram.matrix, 0))
        weights = weigh(safe, key)
        if scale == "sum":
            weights = weights * gram.num_active
        plain = gram.active.astype(weights.dtype)
        weights = jnp.where(finite & gram.active, weights, plain)
        scopes = [in_scope(leaf, scope, active) for leaf in rows.leaves]
        by_leaf = [jnp.where(here, weights, plain) for here in scopes]
        return combine_rows(rows, by_leaf, active), GramState(recorded(state.record, weights))

    return optax.GradientTransformationExtraArgs(init, update)


class GramOptions(TypedDict):
    """What every Gram-based constructor takes."""

    scope: Scope
    level: Level
    num_objectives: int


class MeanOptions(GramOptions):
    """The same for a method whose weights average."""

    scale: Scale


@dataclass(frozen=True, kw_only=True)
class GramConfig(MethodConfig):
    """Options that the Gram-based methods share."""

    scope: Scope = "shared"
    """Where the method acts: shared: on parameters that two or more objectives reach, the others get the plain sum; all."""
    level: Level = "parameters"
    """Where the gradients are compared: parameters, or features (one encoder backward pass; an upper bound)."""

    kind: ClassVar[Literal["value", "gradient", "balance"]] = "gradient"
    backward_passes: ClassVar[str] = "2 (features: 1)"

    def validate(self) -> None:
        """Raise ValueError for an unknown choice."""
        check_choice("method.scope", self.scope, SCOPES)
        check_choice("method.level", self.level, LEVELS)

    def options(self, context: MethodContext) -> GramOptions:
        """Return the shared options of the constructor."""
        return {"scope": self.scope, "level": self.level, "num_objectives": len(context.names)}


@dataclass(frozen=True, kw_only=True)
class MeanGramConfig(GramConfig):
    """Options of the Gram-based methods whose weights average."""

    scale: Scale = "mean"
    """mean: as published; sum: K times that, so that learning rates compare with those of uniform."""

    def validate(self) -> None:
        """Raise ValueError for an unknown choice."""
        super().validate()
        check_choice("method.scale", self.scale, SCALES)

    def options(self, context: MethodContext) -> MeanOptions:
        """Return the shared options of the constructor."""
        return {**super().options(context), "scale": self.scale}
