"""Gradients of K objectives, computed when asked for: what `objective_grads` hands to a combiner.

`ObjectiveGrads` are gradients of the parameters, `FeatureGrads` those of the features between encoders and heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmjax.touching import touched_leaves

PyTree = Any


class LeafGradients(dict[str, Array]):
    """{objective: gradient} of one parameter, for the objectives that reach it; a pytree, told apart by its type.

    `jax.tree.map(f, params, grads.pairs())` calls f(parameter, LeafGradients); without params at hand,
    `is_leaf=lambda x: isinstance(x, LeafGradients)`.
    """


def _flatten_leaf(leaf: LeafGradients) -> tuple[list[tuple[Any, Array]], tuple[str, ...]]:
    return [(jax.tree_util.DictKey(name), leaf[name]) for name in leaf], tuple(leaf)


jax.tree_util.register_pytree_with_keys(
    LeafGradients,
    _flatten_leaf,
    lambda names, gradients: LeafGradients(zip(names, gradients, strict=True)),
)


class LazyGradientsError(TypeError):
    """A lazy `ObjectiveGrads` met code that wants a tree of arrays.

    >>> from mmjax.objectives import objective_grads
    >>> _, grads = objective_grads(lambda p: {"fusion": p**2})(1.0)
    >>> jax.tree.map(lambda x: x, grads)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    mmjax.lazy_gradients.LazyGradientsError: ObjectiveGrads is lazy: ...
    """


def _not_a_tree(grads: Any) -> Any:
    raise LazyGradientsError(
        f"{type(grads).__name__} is lazy: it holds no arrays and lives only inside the trace that made it, so it cannot be "
        "returned from jit, carried by scan or cond, or clipped or mapped before a combiner has taken it. Put the combiner "
        "first in optax.chain (optax.MultiSteps, apply_if_finite and partition go behind it, inside the chain), or "
        "take .stacked(), a plain tree with a leading objective axis"
    )


@dataclasses.dataclass(frozen=True)
class Problem:
    """What `objective_grads` was asked to differentiate: functions of params alone, the batch closed over."""

    losses: Callable[[PyTree], tuple[dict[str, Array], Any]]
    """params -> ({name: scalar}, aux)"""
    params: PyTree
    names: tuple[str, ...]
    axis_name: str | None
    of_part: Callable[[int, int], Callable[[PyTree], dict[str, Array]]] | None
    """(part, parts) -> losses of that part of the batch"""

    def mean_over_devices(self, tree: PyTree) -> PyTree:
        """Return the mean over devices; without an axis of them, the tree itself."""
        return tree if self.axis_name is None else jax.lax.pmean(tree, self.axis_name)

    def gradients(self, losses: Callable[[PyTree], Mapping[str, Array]]) -> tuple[PyTree, ...]:
        """One separate `jax.grad` an objective: XLA then drops what it does not reach, and as a rule merges the forwards.

        (A vmap over one-hot cotangents, or a stacked loss vector, would pay K full backward passes.)
        """
        return tuple(jax.grad(lambda p, n=name: losses(p)[n])(self.params) for name in self.names)


class ObjectiveGrads:
    """Per-objective gradients, computed when asked for. Made by `objective_grads`; valid only inside its trace.

    names: the objectives in order. K = len(names). It is no pytree on purpose: returning it from jit or putting a
    transformation before the combiner raises `LazyGradientsError`.

    >>> from mmjax.objectives import objective_grads
    >>> _, grads = objective_grads(lambda p: {"fusion": p**2, "m": 3 * p})(1.0)
    >>> grads.names, len(grads), grads.stacked().tolist()
    (('fusion', 'm'), 2, [2.0, 3.0])
    """

    def __init__(
        self,
        problem: Problem,
        pull: Callable[[dict[str, Array]], PyTree],
        pull_selected: Callable[[dict[str, Array], dict[str, Array]], PyTree],
        rows: Callable[[np.ndarray], Sequence[PyTree]],
        losses: dict[str, Array],
        features: Callable[[], FeatureGrads] | None,
    ):
        self._problem = problem
        self._pull = pull
        self._pull_selected = pull_selected
        self._rows = rows
        self._losses = losses
        self._features = features
        self._touched: np.ndarray | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objectives, "fusion" first."""
        return self._problem.names

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"ObjectiveGrads(names={self.names}, features={self.has_features})"

    @property
    def axis_name(self) -> str | None:
        """The devices' axis that values and gradients are averaged over; None outside pmap and shard_map."""
        return self._problem.axis_name

    @property
    def has_features(self) -> bool:
        """Whether `.features()` can be asked for (`encode` was given)."""
        return self._features is not None

    def weighted(self, weights: Array | Sequence[float], active: Array | np.ndarray | None = None) -> PyTree:
        """Return the tree Σ_k weights[k] ∇L_k, like params, at the cost of one backward pass.

        weights: [K], constants of differentiation. active: bool[K]; a gradient of an objective that is not active is
        left out, also where it is NaN (0 · NaN would stay NaN). A NumPy `active` is static: what it leaves out costs
        nothing. With one that is not, the objectives part at the features: K head backwards and one encoder backward;
        without `encode` there is no such place, and the cost is that of `stacked`.

        Raises:
          ValueError: the length of `weights` or of `active` is not K.
        """
        weights = jax.lax.stop_gradient(self._one_each("weights", weights))
        cotangents = {n: _like(self._losses[n], weights[k]) for k, n in enumerate(self.names)}
        if active is None:
            return self._problem.mean_over_devices(self._pull(cotangents))
        flags = self._one_each("active", active).astype(bool)
        asked = [k for k in range(len(self)) if not isinstance(active, np.ndarray) or active[k]]
        if not asked:
            return self._problem.mean_over_devices(jax.tree.map(jnp.zeros_like, self._problem.params))
        chosen = {self.names[k]: flags[k] for k in asked}
        return self._problem.mean_over_devices(self._pull_selected({n: cotangents[n] for n in chosen}, chosen))

    def _one_each(self, what: str, given: Any) -> Array:
        array = jnp.asarray(given)
        if array.shape != (len(self),):
            raise ValueError(f"{what} must have shape ({len(self)},), one for each of {self.names}; got {array.shape}")
        return array

    def stacked(self) -> PyTree:
        """Return the tree of all K gradients: every leaf [K, ...], row k the gradient of objective k."""
        rows = self._rows(self._touching_rows())
        return self._problem.mean_over_devices(jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))

    @property
    def touching(self) -> PyTree:
        """A tree like params of bool[K] (NumPy, static): which objectives reach each leaf."""
        structure = jax.tree.structure(self._problem.params)
        return jax.tree.unflatten(structure, list(self._touching_rows().T))

    def pairs(self) -> PyTree:
        """Return a tree like params with, at each leaf, {objective: gradient} (`LeafGradients`) of those that reach it.

        With one encoder and one head a modality that is two gradients an encoder leaf and one elsewhere, whatever M.
        """
        rows = self._rows(self._touching_rows())
        return self._problem.mean_over_devices(self._by_leaf(rows))

    def parts(self, n: int) -> PyTree:
        """Return as `pairs`, with gradients [n, ...]: one for each of n equal, contiguous parts of the global batch.

        The losses of a part are those of `losses_fn` on that part alone. Needs `batch_argnums`. Under `axis_name` the
        parts are still those of the global batch (device order is batch order); what losses_fn itself reduces over that
        axis (batch statistics, the mass of unequal example weights) then mixes parts that different devices hold.

        Raises:
          ValueError: no `batch_argnums`, n < 1, or a batch that does not divide into n equal parts.
        """
        if self._problem.of_part is None:
            raise ValueError("parts(n) needs objective_grads(..., batch_argnums=...): which arguments hold the batch")
        if n < 1:
            raise ValueError(f"parts(n) needs n >= 1, got {n}")
        local = _parts_here(n, self._problem.axis_name)
        of_part = self._problem.of_part
        # Unrolled on purpose: vmap would turn convolutions into grouped ones, and a scan hides its cost from XLA's count.
        rows = [self._by_leaf(self._problem.gradients(of_part(i, local))) for i in range(local)]
        return _parts_everywhere(jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows), n, self._problem.axis_name)

    def features(self) -> FeatureGrads:
        """Return the gradients at the features. Raises ValueError unless `encode` was given to `objective_grads`."""
        if self._features is None:
            raise ValueError(
                "gradients at the features need objective_grads(losses_fn, encode=...), with losses_fn(params, features, "
                "*args) and encode(params, *args) -> {modality: features}"
            )
        return self._features()

    def _touching_rows(self) -> np.ndarray:
        if self._touched is None:
            problem = self._problem

            def gradient(params: PyTree) -> tuple[PyTree, ...]:
                local = dataclasses.replace(problem, params=params)
                return local.gradients(lambda p: problem.losses(p)[0])

            self._touched = touched_leaves(gradient, problem.params)
        return self._touched

    def _by_leaf(self, rows: Sequence[PyTree]) -> PyTree:
        touched = self._touching_rows()
        leaves = [jax.tree.leaves(row) for row in rows]
        pairs = [
            LeafGradients({name: leaves[k][i] for k, name in enumerate(self.names) if touched[k, i]})
            for i in range(touched.shape[1])
        ]
        return jax.tree.unflatten(jax.tree.structure(self._problem.params), pairs)


class FeatureGrads:
    """Gradients at the features z_m, and the way back to the parameters. Made by `ObjectiveGrads.features()`.

    names: objectives in order (K); features: {m: [B, ..., D]}, the features themselves.

    >>> from mmjax.objectives import objective_grads
    >>> def encode(params, x):
    ...     return {"m": params["a"] * x}
    >>> def losses_fn(params, features, x):
    ...     return {"fusion": params["b"] * features["m"].sum(), "m": features["m"].sum()}
    >>> params, x = {"a": 1.0, "b": 2.0}, jnp.array([[5.0]])
    >>> features = objective_grads(losses_fn, encode=encode)(params, x)[1].features()
    >>> features.cotangents["m"].tolist(), features.direct["b"].tolist()
    ([[[2.0]], [[1.0]]], [5.0, 0.0])
    """

    def __init__(
        self,
        problem: Problem,
        features: dict[str, Array],
        head_losses: Callable[[PyTree, dict[str, Array]], dict[str, Array]],
        encoder_pull: Callable[[dict[str, Array]], PyTree],
        last_layer: Callable[[dict[str, Array]], dict[str, tuple[Array, Array, Array]]],
    ):
        self._problem = problem
        self.features = features
        self._head_losses = head_losses
        self._encoder_pull = encoder_pull
        self._last_layer = last_layer

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objectives, "fusion" first."""
        return self._problem.names

    @property
    def axis_name(self) -> str | None:
        """The axis over whose devices the examples are spread; None: all of them are here."""
        return self._problem.axis_name

    def _rows(self) -> list[tuple[PyTree, dict[str, Array]]]:
        return head_gradients(self._problem.params, self.features, self._head_losses, self.names)

    @property
    def cotangents(self) -> dict[str, Array]:
        """{m: [K, B, ..., D]}, row k is ∂L_k/∂z_m; zeros where objective k does not reach modality m.

        Under `axis_name`, each device holds its own examples, scaled as in the loss over the whole batch.
        """
        rows = [z for _, z in self._rows()]
        return self._as_of_the_whole_batch(jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))

    def _as_of_the_whole_batch(self, cotangents: PyTree) -> PyTree:
        """Turn gradients of this device's loss into those of the mean over devices."""
        if self.axis_name is None:
            return cotangents
        return jax.tree.map(lambda x: x / jax.lax.axis_size(self.axis_name), cotangents)

    def mean_over_examples(self, x: Array, axis: int) -> Array:
        """Return the mean of x over its axis of examples, those on other devices included."""
        return self._problem.mean_over_devices(jnp.mean(x, axis=axis))

    def parts(self, n: int) -> dict[str, Array]:
        """Return the means of `cotangents` over n equal, contiguous parts of the global batch, {m: [n, K, ..., D]}.

        The same parts whatever the number of devices (device order is batch order), and the same on each of them.

        Raises:
          ValueError: n < 1, or a batch that does not divide into n equal parts.
        """
        if n < 1:
            raise ValueError(f"parts(n) needs n >= 1, got {n}")
        local = _parts_here(n, self._problem.axis_name)

        def means(x: Array) -> Array:
            if x.shape[1] % local:
                raise ValueError(f"a batch of {x.shape[1]} does not divide into {local} equal parts")
            split = x.reshape(x.shape[0], local, x.shape[1] // local, *x.shape[2:])
            return jnp.moveaxis(jnp.mean(split, axis=2), 1, 0)

        return _parts_everywhere(jax.tree.map(means, self.cotangents), n, self._problem.axis_name)

    @property
    def direct(self) -> PyTree:
        """Gradients with the features held fixed: a tree like params, leaves [K, ...]; zeros in the encoders."""
        rows = [p for p, _ in self._rows()]
        return self._problem.mean_over_devices(jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))

    @property
    def touching(self) -> dict[str, np.ndarray]:
        """{m: bool[K]} (static): which objectives reach modality m's features."""

        def gradient(features: dict[str, Array]) -> list[dict[str, Array]]:
            return [
                jax.grad(lambda z, n=name: self._head_losses(self._problem.params, z)[n])(features)
                for name in self.names
            ]

        touched = touched_leaves(gradient, self.features)
        return jax.tree.unflatten(jax.tree.structure(self.features), list(touched.T))

    @property
    def direct_touching(self) -> PyTree:
        """A tree like params of bool[K] (static): which objectives reach each leaf with the features held fixed."""

        def gradient(params: PyTree) -> list[PyTree]:
            return [jax.grad(lambda p, n=name: self._head_losses(p, self.features)[n])(params) for name in self.names]

        touched = touched_leaves(gradient, self._problem.params)
        return jax.tree.unflatten(jax.tree.structure(self._problem.params), list(touched.T))

    @property
    def last_layer(self) -> dict[str, tuple[Array, Array, Array]]:
        """{objective: (inputs [B, D'], kernel [D', C], bias [C])}, as the aux of losses_fn names them.

        Raises:
          ValueError: it names none, or not one for each objective.
        """
        return self._last_layer(self.features)

    def from_last_layer(self, cotangents: Mapping[str, Array]) -> dict[str, Array]:
        """Pull samples of gradients at the last layer's input back to the features.

        cotangents: {objective: [S, B, D']} for every objective, with respect to the inputs that the losses_fn's aux
        names as its `last_layer` ({objective: (inputs [B, D'], kernel, bias)}); under `axis_name` they are gradients of
        this device's own loss.
        Returns {m: [S, K, B, ..., D]}, scaled as `.cotangents`; what lies between is the model's own, so each sample is
        pulled back exactly (the variance of pulled-back samples is not the pulled-back variance).

        Raises:
          ValueError: an objective is missing or unknown, or a shape does not fit.
        """
        given, wanted = set(cotangents), set(self.names)
        if given != wanted:
            raise ValueError(f"from_last_layer needs one array for each of {self.names}; got {sorted(given)}")

        samples_each = {jnp.shape(samples)[:1] for samples in cotangents.values()}
        if len(samples_each) > 1:
            raise ValueError(f"from_last_layer needs as many samples S of each objective; got {sorted(samples_each)}")

        def pull_one(name: str) -> dict[str, Array]:
            inputs, pull = jax.vjp(lambda z: self._last_layer(z)[name][0], self.features)
            samples = jnp.asarray(cotangents[name])
            if samples.shape[1:] != inputs.shape:
                raise ValueError(
                    f"from_last_layer: {name!r} has shape {samples.shape}; "
                    f"expected [S, {', '.join(map(str, inputs.shape))}]"
                )
            return jax.vmap(lambda c: pull(c.astype(inputs.dtype))[0])(samples)

        rows = [pull_one(name) for name in self.names]
        return self._as_of_the_whole_batch(jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *rows))

    def pull_back(self, cotangents: Mapping[str, Array], direct: PyTree) -> PyTree:
        """Return the parameter gradient: one encoder backward of `cotangents` {m: [B, ..., D]}, plus `direct`.

        direct: a tree like params (the combined `.direct`, without the objective axis).
        Raises ValueError if a modality is missing or a shape differs from the features'.
        """
        if set(cotangents) != set(self.features):
            raise ValueError(f"pull_back needs cotangents for {sorted(self.features)}; got {sorted(cotangents)}")
        for m, z in self.features.items():
            if cotangents[m].shape != z.shape:
                raise ValueError(
                    f"pull_back: {m!r} has shape {cotangents[m].shape}; expected {z.shape} (no objective axis)"
                )
        pulled = self._encoder_pull({m: _like(z, cotangents[m]) for m, z in self.features.items()})
        if self._problem.axis_name is not None:
            pulled = jax.lax.psum(pulled, self._problem.axis_name)  # the cotangents carry the 1/devices already
        return jax.tree.map(jnp.add, pulled, direct)


for _lazy in (ObjectiveGrads, FeatureGrads):
    jax.tree_util.register_pytree_node(_lazy, _not_a_tree, lambda aux, children: None)


def head_gradients(
    params: PyTree,
    features: dict[str, Array],
    losses: Callable[[PyTree, Any], Mapping[str, Array]],
    names: Sequence[str],
) -> list[tuple[PyTree, dict[str, Array]]]:
    """Return, for each objective, its gradients with respect to the parameters at fixed features and to the features."""
    return [jax.grad(lambda p, z, n=name: losses(p, z)[n], argnums=(0, 1))(params, features) for name in names]


def _like(primal: Array, cotangent: Array) -> Array:
    """Give `cotangent` the dtype of `primal`, and its device-varying type inside shard_map; XLA removes the select."""
    cotangent = cotangent.astype(primal.dtype)
    return jnp.where(primal == primal, cotangent, cotangent)


def _parts_here(n: int, axis: str | None) -> int:
    """Return how many of n parts of the global batch one device computes."""
    devices = 1 if axis is None else jax.lax.axis_size(axis)
    if n % devices and devices % n:
        raise ValueError(f"parts(n={n}) needs n to divide the number of devices ({devices}) or the reverse")
    return max(n // devices, 1)


def _parts_everywhere(tree: PyTree, n: int, axis: str | None) -> PyTree:
    """Put together what devices have of n parts, leaves [parts here, ...] -> [n, ...]; several share one part's mean."""
    if axis is None:
        return tree
    devices = jax.lax.axis_size(axis)
    share = max(devices // n, 1)  # devices that hold one part together
    first = jax.lax.axis_index(axis) * max(n // devices, 1) // share

    def place(leaf: Array) -> Array:
        buffer = jnp.zeros((n, *leaf.shape[1:]), leaf.dtype)
        return jax.lax.psum(jax.lax.dynamic_update_slice_in_dim(buffer, leaf / share, first, axis=0), axis)

    return jax.tree.map(place, tree)
