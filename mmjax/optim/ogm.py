"""OGM and OGM-GE: the encoder of the modality that is ahead is slowed down; joint training otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mmjax.config import MethodConfig, MethodContext
from mmjax.lazy_gradients import ObjectiveGrads
from mmjax.optim.gradients import check_like_params, count_objectives, weighted_sum
from mmjax.optim.options import check_active, check_at_least, check_key, check_num_objectives, check_positive
from mmjax.optim.promises import Promise
from mmjax.optim.record import WeightRecord, check_room, empty_record, recorded

PyTree = Any


class OgmState(NamedTuple):
    """State of `ogm` and `ogm_ge`: steps taken (int32 scalar) and the last factors.

    >>> combiner = ogm(alpha=0.1)
    >>> params = {"a": jnp.zeros((1, 1)), "b": jnp.zeros((1, 1))}
    >>> logits = {"a": jnp.array([[9.0, 0.0]]), "b": jnp.array([[0.0, 0.0]])}  # a is right, b is at chance
    >>> _, state = combiner.update(
    ...     {m: jnp.ones((3, 1, 1)) for m in params}, combiner.init(params), params,
    ...     unimodal_logits=logits, labels=jnp.array([0]), groups={"a": "encoder/a", "b": "encoder/b"},
    ... )
    >>> [round(float(k), 3) for k in state.weights], int(state.count)  # a's encoder is slowed down
    ([1.0, 0.803, 1.0], 1)
    """

    count: Array  # type: ignore[assignment]  # hides tuple.count, as in Optax's own states
    record: WeightRecord

    @property
    def weights(self) -> Array:
        """The last factors, [K]: 1 for the fusion loss, then k_m of each modality's encoder."""
        return self.record.weights


def modulation(scores: Array, alpha: float | Array, active: Array | None = None) -> Array:
    """Return k [M]: 1 − tanh(α ρ_m) where ρ_m > 1, else 1; ρ_m is the mean of scores[m]/scores[j] over the others j.

    scores: [M], each modality's summed probability of the right classes; active: bool[M], the modalities that count.
    One modality, or one active, has nobody to be ahead of: 1. k jumps at ρ = 1, from 1 to 1 − tanh α.

    >>> [round(float(k), 4) for k in modulation(jnp.array([2.0, 1.0]), 0.1)]
    [0.8026, 1.0]
    """
    active = jnp.ones(scores.shape, bool) if active is None else active
    # Where no example gives a class any probability, a score is 0; its quotients are then huge or 1, and numbers.
    scores = jnp.where(active, jnp.maximum(scores, jnp.finfo(jnp.float32).tiny), 1.0)
    others = active[None, :] & ~jnp.eye(scores.shape[0], dtype=bool)
    total = jnp.sum(jnp.where(others, scores[:, None] / scores[None, :], 0.0), axis=1)
    ratio = total / jnp.maximum(jnp.sum(others, axis=1), 1)
    return jnp.where(active & (ratio > 1), 1 - jnp.tanh(alpha * ratio), 1.0)


def ogm(
    alpha: float = 0.3,
    *,
    conv_only: bool = False,
    start: int = 0,
    stop: int | None = None,
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Slow down the encoder of the modality that is ahead: its kernels' gradients times k_m. One backward pass.

    s_m = Σ over the batch of softmax(head m's logits)[label], ρ_m = s_m/s_other (the mean over the others where there
    are several), k_m = 1 − tanh(α ρ_m) where ρ_m > 1, else 1. All else is Σ_k g_k, which with heads on
    stop_gradient(features), as the configuration makes them, is joint training with probes.

    alpha: α > 0, .1 to .8 in the paper. conv_only: modulate kernels of two-dimensional convolutions alone (four axes), as
      published, not all kernels (two axes or more).
    start, stop: the steps start <= t < stop are modulated; stop None: to the end.
    num_objectives: K, for a state of exactly K weights (needed above 16 objectives).
    Extra arguments of update: `unimodal_logits` {m: [B, C]}, `labels` int [B], `groups`, a tree like params of
      "encoder/m" and other labels, all required with a modality or more; `active` bool[K]: an absent modality is
      neither slowed down nor anybody's measure; `present` bool [B, M], columns by sorted modality: s_m is then the mean
      over the examples that have m. On several devices with lazy gradients logits and `present` are this device's share.

    Raises:
      ValueError: an option out of range; an extra argument missing or of the wrong form; gradients that are not one an
        objective.

    Source: Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation" (2022); the
    mean of ratios for more than two modalities, probe heads for the scores (the paper splits a linear fusion layer), and
    all kernels are our reading.

    >>> tx = ogm(alpha=0.1)
    >>> params = {"a": jnp.zeros((1, 1)), "b": jnp.zeros((1, 1))}
    >>> grads = {"a": jnp.ones((3, 1, 1)).at[1:].set(0), "b": jnp.ones((3, 1, 1)).at[1:].set(0)}
    >>> logits = {"a": jnp.array([[9.0, 0.0]]), "b": jnp.array([[0.0, 0.0]])}  # a is right, b is at chance
    >>> updates, state = tx.update(
    ...     grads, tx.init(params), params, unimodal_logits=logits, labels=jnp.array([0]),
    ...     groups={"a": "encoder/a", "b": "encoder/b"},
    ... )
    >>> [round(float(x.squeeze()), 3) for x in (updates["a"], updates["b"])]
    [0.803, 1.0]
    """
    return _modulating("ogm", alpha, False, conv_only, start, stop, num_objectives)


def ogm_ge(
    alpha: float = 0.3,
    *,
    conv_only: bool = False,
    start: int = 0,
    stop: int | None = None,
    num_objectives: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Modulate as `ogm`, and add noise to each kernel's gradient, N(0, std(g)²) of the unscaled g. One backward pass.

    The noise goes to the same kernels, those of modalities that are not slowed down among them, in the same steps; it is
    the same on all devices. One modality alone gets none.

    Options, extra arguments and errors: those of `ogm`, and `key`, required.

    Source: Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation" (2022)
    (generalization enhancement); that the standard deviation is over a tensor's entries is the authors' code.

    >>> tx = ogm_ge(alpha=0.1)
    >>> params = {"a": jnp.zeros((1, 2)), "b": jnp.zeros((1, 2))}
    >>> grads = {m: jnp.ones((3, 1, 2)) for m in params}
    >>> updates, state = tx.update(
    ...     grads, tx.init(params), params, unimodal_logits={m: jnp.zeros((1, 2)) for m in params},
    ...     labels=jnp.array([0]), groups={"a": "encoder/a", "b": "encoder/b"}, key=jax.random.key(0),
    ... )
    >>> updates["a"].tolist()  # nobody is ahead, and the entries of the gradient do not differ
    [[3.0, 3.0]]
    """
    return _modulating("ogm_ge", alpha, True, conv_only, start, stop, num_objectives)


def _modulating(
    method: str,
    alpha: float,
    noise: bool,
    conv_only: bool,
    start: int,
    stop: int | None,
    num_objectives: int | None,
) -> optax.GradientTransformationExtraArgs:
    check_positive("alpha", alpha)
    check_at_least("start", start, 0)
    check_at_least("stop", stop, 0)
    check_num_objectives(num_objectives)

    def init(params: Any) -> OgmState:
        del params
        return OgmState(jnp.zeros((), jnp.int32), empty_record(num_objectives))

    def update(
        grads: Any,
        state: OgmState,
        params: Any = None,
        *,
        unimodal_logits: Any = None,
        labels: Any = None,
        groups: Any = None,
        key: Any = None,
        active: Any = None,
        present: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, OgmState]:
        del extra_args
        check_like_params(grads, params)
        k = count_objectives(grads)
        check_room(state.record, k)
        active = check_active(active, k)
        here = jnp.ones(k, bool) if active is None else active
        # In float32 until the end: a sum rounded to bfloat16 and then scaled would have been rounded twice.
        wide = grads if isinstance(grads, ObjectiveGrads) else jax.tree.map(_widened, grads)
        updates = weighted_sum(wide, here.astype(jnp.float32), active)
        factors = jnp.ones(k, jnp.float32)
        if k > 1:
            _check_arguments(method, unimodal_logits, labels, groups, k)
            there = here[1:]
            in_window = (state.count >= start) & (True if stop is None else state.count < stop)
            axis_name = grads.axis_name if isinstance(grads, ObjectiveGrads) else None
            scores = _scores(unimodal_logits, labels, present, axis_name)
            found = modulation(scores, alpha, there)
            usable = in_window & ~jnp.isnan(found)  # a loss that is not finite shows in the update, never as a factor
            factors = factors.at[1:].set(jnp.where(usable, found, 1.0))
            stir = there & in_window & (jnp.sum(there) > 1)
            draw = check_key(key, method) if noise else None
            updates = _scaled(updates, groups, sorted(unimodal_logits), factors[1:], stir, draw, 4 if conv_only else 2)
        if not isinstance(grads, ObjectiveGrads):
            updates = jax.tree.map(lambda u, g: u.astype(g.dtype), updates, grads)
        new_state = OgmState(optax.safe_increment(state.count), recorded(state.record, jnp.where(here, factors, 0.0)))
        return updates, new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _widened(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _scores(unimodal_logits: Mapping[str, Array], labels: Array, present: Array | None, axis_name: str | None) -> Array:
    """Return [M], the sum of the right classes' probabilities; with `present`, their mean over who is there times B."""

    def right(logits: Array) -> Array:
        probabilities = jax.nn.softmax(_widened(logits))
        return jnp.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]

    each = jnp.stack([right(unimodal_logits[m]) for m in sorted(unimodal_logits)])
    if present is None:
        scores = jnp.sum(each, axis=1)
        return scores if axis_name is None else jax.lax.psum(scores, axis_name)
    scores, count = jnp.sum(jnp.where(present.T, each, 0), axis=1), jnp.sum(present, axis=0).astype(each.dtype)
    batch = each.shape[1]
    if axis_name is not None:
        scores, count = jax.lax.psum((scores, count), axis_name)
        batch = batch * jax.lax.axis_size(axis_name)
    return scores * (batch / jnp.maximum(count, 1))


def _scaled(
    updates: PyTree,
    groups: PyTree,
    modalities: list[str],
    factors: Array,
    stir: Array,
    key: Array | None,
    least_axes: int,
) -> PyTree:
    """Multiply the encoders' kernels by their modality's factor; with a key, add noise where `stir` bool[M]."""
    leaves, structure = jax.tree.flatten(updates)
    place = {f"encoder/{m}": i for i, m in enumerate(modalities)}
    changed = []
    for i, (g, group) in enumerate(zip(leaves, jax.tree.leaves(groups), strict=True)):
        m = place.get(group)
        if m is None or g.ndim < least_axes:
            changed.append(g)
            continue
        wide = _widened(g)
        new = wide * factors[m]
        if key is not None:
            noise = jax.random.normal(jax.random.fold_in(key, i), g.shape, wide.dtype) * jnp.std(wide)
            new = new + jnp.where(stir[m], noise, 0.0)
        changed.append(new.astype(g.dtype))
    return jax.tree.unflatten(structure, changed)


def _check_arguments(method: str, unimodal_logits: Any, labels: Any, groups: Any, k: int) -> None:
    given = {"unimodal_logits": unimodal_logits, "labels": labels, "groups": groups}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(f"{method} needs update(grads, state, params, {missing[0]}={missing[0]}); it was not given")
    if len(unimodal_logits) != k - 1:
        raise ValueError(
            f"unimodal_logits must hold one array for each of the {k - 1} modalities; got {sorted(unimodal_logits)}"
        )
    if jnp.ndim(labels) != 1 or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(
            f"{method} needs one class an example: labels must be integers [B]; got {jnp.result_type(labels)}"
            f"{list(jnp.shape(labels))}"
        )
    shapes = {m: tuple(jnp.shape(logits)) for m, logits in sorted(unimodal_logits.items())}
    (batch,) = jnp.shape(labels)
    if any(len(shape) != 2 or shape[0] != batch for shape in shapes.values()):
        raise ValueError(f"unimodal_logits must be [B, C] for labels [B], B = {batch} here; got {shapes}")
    labelled = set(jax.tree.leaves(groups))
    for m in sorted(unimodal_logits):
        if f"encoder/{m}" not in labelled:
            raise ValueError(
                f"groups must label the parameters of {m!r}'s encoder 'encoder/{m}'; got {sorted(labelled)}"
            )


@dataclass(frozen=True, kw_only=True)
class OgmConfig(MethodConfig):
    """Joint training that slows down the encoder of the modality that is ahead.

    Example:
    >>> OgmConfig().name
    'ogm'
    """

    name: str = "ogm"
    alpha: float = 0.3
    """Strength α > 0 of the modulation; .1 to .8 in the paper."""
    conv_only: bool = False
    """Modulate kernels of two-dimensional convolutions alone, as published, not all kernels."""
    start_epoch: float = 0.0
    """Epoch at which the modulation begins."""
    stop_epoch: float | None = None
    """Epoch at which it ends; None: never."""

    probe_heads: ClassVar[bool] = True
    kind: ClassVar[Literal["value", "gradient", "balance"]] = "balance"
    source: ClassVar[str] = "Peng et al., Balanced Multimodal Learning via On-the-fly Gradient Modulation, 2022"
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
        check_at_least("method.start_epoch", self.start_epoch, 0)
        check_at_least("method.stop_epoch", self.stop_epoch, self.start_epoch)

    def _options(self, context: MethodContext) -> dict[str, Any]:
        if context.task.kind != "classification":
            raise ValueError(f"method.name {self.name!r} compares class probabilities; the task is {context.task.kind}")

        def at_epoch(epoch: float) -> int:
            return math.ceil(epoch * context.steps_per_epoch)

        return {
            "conv_only": self.conv_only,
            "start": at_epoch(self.start_epoch),
            "stop": None if self.stop_epoch is None else at_epoch(self.stop_epoch),
            "num_objectives": len(context.names),
        }

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `ogm` for the context's objectives. Raises ValueError for a task other than classification."""
        return ogm(self.alpha, **self._options(context))


@dataclass(frozen=True, kw_only=True)
class OgmGeConfig(OgmConfig):
    """OGM with noise on the encoders' gradients, of their own spread.

    Example:
    >>> OgmGeConfig().name
    'ogm_ge'
    """

    name: str = "ogm_ge"

    promises: ClassVar[frozenset[Promise]] = frozenset({Promise.IDENTITY_FOR_ONE, Promise.PERMUTATION_EQUIVARIANT})

    def build(self, context: MethodContext) -> optax.GradientTransformationExtraArgs:
        """Make `ogm_ge` for the context's objectives. Raises ValueError for a task other than classification."""
        return ogm_ge(self.alpha, **self._options(context))
