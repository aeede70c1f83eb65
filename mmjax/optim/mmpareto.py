"""MMPareto: in each encoder, the fusion's and the modality's gradient without conflict, and their step size restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.lazy_gradients import ObjectiveGrads
from mmjax.objectives import FUSION, objective_of
from mmjax.optim.gradients import check_like_params, count_objectives
from mmjax.optim.gramian import GramState, inner_products
from mmjax.optim.options import check_active, check_choice, check_num_objectives, check_positive
from mmjax.optim.promises import Promise
from mmjax.optim.record import empty_record, recorded
from mmjax.optim.rows import LEVELS, GradientRows, Level, combine_rows, gradient_rows

_ENCODER, _HEAD = "encoder/", "head/"


def mmpareto_weights(squares: Array, product: Array) -> Array:
    """Return the weights (w_0, w_m), summing to 1, of one encoder's two gradients.

    squares: [2], ‖g_0‖² and ‖g_m‖²; product: g_0·g_m. Halves where the gradients do not conflict, else the min-norm pair.

    >>> mmpareto_weights(jnp.array([1.0, 4.0]), jnp.array(-1.5)).tolist()
    [0.6875, 0.3125]
    """
    conflict = product < 0
    distance = jnp.where(conflict, squares[0] + squares[1] - 2 * product, 1)
    first = jnp.where(conflict, (squares[1] - product) / distance, 0.5)
    return jnp.stack([first, 1 - first])


def mmpareto(
    gamma: float | Array = 1.5,
    *,
    max_scale: float | Array | None = None,
    level: Level = "parameters",
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """In each encoder m, balance the fusion's gradient g_0 and the modality's own g_m; elsewhere keep the plain sum.

    All the encoder's parameters together: (w_0, w_m) = (1/2, 1/2) if g_0·g_m >= 0, else the min-norm pair. The direction is
    g = 2 (w_0 g_0 + w_m g_m); the update is g · max(1, ‖g_0 + g_m‖ / ‖g‖) · γ, and 0 where ‖g‖ <= 1e-6 (‖g_0‖ + ‖g_m‖).

    gamma: γ > 0. max_scale: bound on the factor max(1, ...) γ, > 0, which grows without bound where the two gradients
      nearly cancel; None: none.
    level: "features": the same on the gradients at each modality's features, one encoder backward pass (exact in the weights
      only if the encoder's Jacobian preserves angles). It needs lazy gradients made with `encode`.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `groups`, a tree like params of labels "encoder/m" (static; as `parameter_groups` makes it for
      a `MultiModal`); without it, encoder m is what exactly the objectives {0, m} reach, from lazy gradients or `touching`.
      `active` bool[K]: an encoder with only one of its two objectives keeps that one's gradient.

    The state's weights: of each modality, its factor in its encoder; of the fusion, the mean of its factors.

    Raises:
      ValueError: gamma or max_scale not above 0, an unknown level; stacked gradients without `groups` and `touching`, or
        whose groups name another number of modalities; no features at level "features".

    Source: Wei and Hu, "MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance" (2024).

    >>> tx = mmpareto(gamma=1.0)
    >>> params = {"encoder": jnp.zeros(2), "head": jnp.zeros(1)}
    >>> grads = {"encoder": jnp.array([[1.0, 0.0], [-1.0, 2.0]]), "head": jnp.array([[0.0], [3.0]])}
    >>> groups = {"encoder": "encoder/image", "head": "head/image"}
    >>> updates, _ = tx.update(grads, tx.init(params), params, groups=groups)
    >>> {name: [round(float(x), 4) for x in u] for name, u in updates.items()}  # g = (1, 1), stretched to ‖(0, 2)‖
    {'encoder': [1.4142, 1.4142], 'head': [3.0]}
    """
    check_positive("gamma", gamma)
    if max_scale is not None:
        check_positive("max_scale", max_scale)
    check_choice("level", level, LEVELS)
    check_num_objectives(num_objectives)

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
        groups: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, GramState]:
        del extra_args
        check_like_params(grads, params)
        k = count_objectives(grads)
        active = check_active(active, k)
        rows = gradient_rows(grads, k, level=level, touching=touching)
        known = k == 1 or groups is not None or touching is not None or isinstance(grads, ObjectiveGrads)
        if not known:
            raise ValueError(
                'mmpareto works encoder by encoder: give update(..., groups=...), labels "encoder/m" like params, or '
                "touching=..., which objectives reach each leaf"
            )
        plain = jnp.ones(k, jnp.float32) if active is None else active.astype(jnp.float32)
        by_leaf = [plain] * len(rows.leaves)
        record, fusion, acting = plain, jnp.zeros(()), jnp.zeros(())
        for m, leaves in _encoders(rows, groups).items():
            pair, acts = _pair_factors(rows, m, leaves, gamma, max_scale, active)
            factors = jnp.where(acts, plain.at[0].set(pair[0]).at[m].set(pair[1]), plain)
            for leaf in leaves:
                by_leaf[leaf] = factors
            record = record.at[m].set(factors[m])
            fusion, acting = fusion + jnp.where(acts, pair[0], 0), acting + acts
        record = record.at[0].set(jnp.where(acting > 0, fusion / jnp.maximum(acting, 1), plain[0]))
        return combine_rows(rows, by_leaf, active), GramState(recorded(state.record, record))

    return optax.GradientTransformationExtraArgs(init, update)


def _pair_factors(
    rows: GradientRows, m: int, leaves: list[int], gamma: float | Array, max_scale: Any, active: Array | None
) -> tuple[Array, Array]:
    """Return the factors (of g_0, of g_m) in encoder m, and whether the method acts there (bool)."""

    def total(entries: dict[int, list[Array]]) -> list[Array]:
        """Sum over leaves, and over devices what are features."""
        zero = [jnp.zeros(())] * len(next(iter(entries.values())))
        local, rest = zero, zero
        for leaf, values in entries.items():
            if leaf < len(rows.modalities):
                local = [a + b for a, b in zip(local, values, strict=True)]
            else:
                rest = [a + b for a, b in zip(rest, values, strict=True)]
        return list(rows.over_devices(local, rest))

    pairs = {leaf: _pair(rows.leaves[leaf], m) for leaf in leaves}
    own, product, other = total({leaf: inner_products(pair) for leaf, pair in pairs.items()})
    finite = jnp.isfinite(own + other + product)
    w = mmpareto_weights(jnp.stack([own, other]), jnp.where(finite, product, 0))
    # From the vectors, not from the Gramian: where the two nearly cancel, ‖g‖² is lost in the rounding of ‖g_0‖².
    lengths = {
        leaf: [inner_products([2 * (w[0] * a + w[1] * b)])[0], inner_products([a + b])[0]]
        for leaf, (a, b) in pairs.items()
    }
    combined, summed = (jnp.sqrt(x) for x in total(lengths))
    vanishes = combined <= 1e-6 * (jnp.sqrt(own) + jnp.sqrt(other))
    factor = jnp.maximum(1, summed / jnp.where(vanishes, 1, combined)) * gamma
    if max_scale is not None:
        factor = jnp.minimum(factor, max_scale)
    acts = finite if active is None else finite & active[0] & active[m]
    return jnp.where(vanishes, 0, 2 * factor * w), acts


def _pair(leaf: dict[int, Array], m: int) -> tuple[Array, Array]:
    """Return (g_0, g_m) of a leaf in float32, zeros for what does not reach it."""
    some = next(iter(leaf.values()))
    wide = jnp.promote_types(some.dtype, jnp.float32)
    a, b = (leaf[i].astype(wide) if i in leaf else jnp.zeros(some.shape, wide) for i in (0, m))
    return a, b


def _encoders(rows: GradientRows, groups: Any) -> Mapping[int, list[int]]:
    """Return {objective m: the leaves of its encoder}; empty for one objective."""
    k = rows.num_objectives
    if k == 1:
        return {}
    found: dict[int, list[int]] = {}
    if rows.modalities:  # at the features
        index = {name: i for i, name in enumerate(rows.names or ())}
        for leaf, features in enumerate(rows.modalities):
            m = objective_of(features)
            if m in index and m != FUSION:
                found.setdefault(index[m], []).append(leaf)
        return found
    if groups is None:
        for leaf, gradients in enumerate(rows.leaves):
            if len(gradients) == 2 and 0 in gradients:
                found.setdefault(max(gradients), []).append(leaf)
        return found
    labels = jax.tree.leaves(groups)
    if len(labels) != len(rows.leaves):
        raise ValueError(f"groups must be a tree like params: {len(rows.leaves)} leaves; it has {len(labels)}")
    names = rows.names
    if names is None:
        modalities = sorted({label.split("/", 1)[1] for label in labels if label.startswith((_ENCODER, _HEAD))})
        if len(modalities) != k - 1:
            raise ValueError(
                f"groups name the modalities {modalities}; {k} objectives are the fusion and {k - 1} of them"
            )
        names = (FUSION, *modalities)
    return {
        i: leaves
        for i, name in enumerate(names)
        if i and (leaves := [leaf for leaf, label in enumerate(labels) if label == _ENCODER + name])
    }


@dataclass(frozen=True, kw_only=True)
class MMParetoConfig(MethodConfig):
    """In each encoder, the fusion's and the modality's gradient without conflict, the step size restored.

    Example:
    >>> MMParetoConfig(gamma=1.2).gamma
    1.2
    """

    name: str = "mmpareto"
    gamma: float = 1.5
    """Factor γ on the step in the encoders, > 0."""
    max_scale: float | None = None
    """Bound on the whole factor on that step, > 0; None: none."""
    level: Level = "parameters"
    """Where the gradients are compared: parameters, or features (one encoder backward pass)."""

    kind: ClassVar[Literal["value", "gradient", "balance"]] = "gradient"
    backward_passes: ClassVar[str] = "2 (features: 1)"
    source: ClassVar[str] = "Wei and Hu, MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance, 2024"
    reading: ClassVar[Literal["paper", "our reading"]] = "our reading"
    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.IDENTITY_FOR_ONE, Promise.PERMUTATION_EQUIVARIANT})

    def validate(self) -> None:
        """Raise ValueError for gamma or max_scale not above 0, or an unknown level."""
        check_positive("method.gamma", self.gamma)
        if self.max_scale is not None:
            check_positive("method.max_scale", self.max_scale)
        check_choice("method.level", self.level, LEVELS)

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `mmpareto` for the context's objectives."""
        return mmpareto(self.gamma, max_scale=self.max_scale, level=self.level, num_objectives=len(context.names))
