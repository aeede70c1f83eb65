"""The contract between objectives and combiners: named losses in, lazy per-objective gradients out.

A model has K objectives: the fusion loss and one loss a modality. `objective_grads` evaluates them once and hands out
`ObjectiveGrads`, from which a combiner takes what it needs and pays for no more: a weighted sum (one backward pass),
every gradient (`stacked`, `pairs`), or gradients at the features (`features`: K cheap head backwards and one encoder
backward). The order is by name: "fusion" first, the other names sorted.
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

FUSION = "fusion"
"""Name of objective 0."""


def objective_names(names: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
    """Return the canonical order of objectives: "fusion", then the others sorted.

    Raises:
      ValueError: "fusion" is not among them.

    >>> objective_names({"image": 1, "fusion": 2, "audio": 3})
    ('fusion', 'audio', 'image')
    """
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"losses_fn must name its losses by strings; it returned {list(names)}")
    if FUSION not in names:
        raise ValueError(f'losses_fn must return a loss named "fusion" (objective 0); it returned {sorted(names)}')
    return (FUSION, *sorted(name for name in names if name != FUSION))


def objective_of(features: str) -> str:
    """Return the objective whose encoder makes the features of this name: "inter.audio" are some of "inter"'s.

    >>> objective_of("image"), objective_of("inter.image")
    ('image', 'inter')
    """
    return features.partition(".")[0]


def modality_of(features: str) -> str:
    """Return the modality that the features of this name are of: "inter.audio" are audio's.

    >>> modality_of("image"), modality_of("inter.image")
    ('image', 'image')
    """
    return features.rpartition(".")[2]


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

    >>> _, grads = objective_grads(lambda p: {"fusion": p**2})(1.0)
    >>> jax.tree.map(lambda x: x, grads)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    mmjax.objectives.LazyGradientsError: ObjectiveGrads is lazy: ...
    """


def _not_a_tree(grads: Any) -> Any:
    raise LazyGradientsError(
        f"{type(grads).__name__} is lazy: it holds no arrays and lives only inside the trace that made it, so it cannot be "
        "returned from jit, carried by scan or cond, or clipped or mapped before a combiner has taken it. Put the combiner "
        "first in optax.chain (optax.MultiSteps, apply_if_finite and partition go behind it, inside the chain), or "
        "take .stacked(), a plain tree with a leading objective axis"
    )


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What `objective_grads` was asked to differentiate: functions of params alone, the batch closed over."""

    losses: Callable[[PyTree], tuple[dict[str, Array], Any]]
    """params -> ({name: scalar}, aux)"""
    params: PyTree
    names: tuple[str, ...]
    axis_name: str | None
    of_part: Callable[[int, int], Callable[[PyTree], dict[str, Array]]] | None
    """(part, parts) -> losses of that part of the batch"""

    def mean_over_devices(self, tree: PyTree) -> PyTree:
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

    >>> _, grads = objective_grads(lambda p: {"fusion": p**2, "m": 3 * p})(1.0)
    >>> grads.names, len(grads), grads.stacked().tolist()
    (('fusion', 'm'), 2, [2.0, 3.0])
    """

    def __init__(
        self,
        problem: _Problem,
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
        problem: _Problem,
        features: dict[str, Array],
        head_losses: Callable[[PyTree, dict[str, Array]], dict[str, Array]],
        encoder_pull: Callable[[dict[str, Array]], PyTree],
        last_layer_inputs: Callable[[dict[str, Array]], dict[str, Array]],
    ):
        self._problem = problem
        self.features = features
        self._head_losses = head_losses
        self._encoder_pull = encoder_pull
        self._last_layer_inputs = last_layer_inputs

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
            inputs, pull = jax.vjp(lambda z: self._last_layer_inputs(z)[name], self.features)
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


def objective_grads(
    losses_fn: Callable[..., Any],
    *,
    encode: Callable[..., Any] | None = None,
    has_aux: bool = False,
    batch_argnums: int | Sequence[int] | None = None,
    axis_name: str | None = None,
) -> Callable[..., Any]:
    """Make `(params, *args) -> (values, grads[, aux])`, the per-objective analogue of `jax.value_and_grad`.

    losses_fn: `losses_fn(params, *args) -> {name: scalar}`, one of them named "fusion".
    encode: `encode(params, *args) -> {modality: features}`; then `losses_fn(params, features, *args)`, and
      `grads.features()` is available.
    has_aux: losses_fn and encode return (result, aux); aux comes out once: losses_fn's, or (encode's, losses_fn's).
      An aux of losses_fn with a `last_layer` (attribute or key) serves `FeatureGrads.from_last_layer`.
    batch_argnums: positions in `(params, *args)` of the arguments whose leaves have the batch as first axis, for
      `grads.parts`.
    axis_name: inside `pmap` or `shard_map` with params replicated and the batch sharded: losses_fn returns the loss of
      its own share (a mean over it); values and gradients come out averaged over that axis, *before* any combining.

    Returns values float32 [K] and lazy `ObjectiveGrads`, in the order of `grads.names`: "fusion", then sorted names.

    Raises:
      ValueError: no "fusion" among the losses; a loss that is not a real scalar; features that are not a dict of
        floating-point arrays; params that are not floating point; no (result, aux) with has_aux.

    >>> import jax.numpy as jnp
    >>> def losses_fn(params, x):
    ...     return {"fusion": jnp.sum((params["a"] + params["b"] - x) ** 2), "a": jnp.sum((params["a"] - x) ** 2)}
    >>> values, grads = objective_grads(losses_fn)({"a": jnp.ones(2), "b": jnp.ones(2)}, 3.0)
    >>> grads.names, values.tolist()
    (('fusion', 'a'), [2.0, 8.0])
    >>> {k: v.tolist() for k, v in grads.weighted([1.0, 0.5]).items()}
    {'a': [-4.0, -4.0], 'b': [-2.0, -2.0]}
    >>> grads.touching
    {'a': array([ True,  True]), 'b': array([ True, False])}
    """
    argnums = (batch_argnums,) if isinstance(batch_argnums, int) else tuple(batch_argnums or ())
    if any(i < 1 for i in argnums):
        raise ValueError(f"batch_argnums count in (params, *args): params is 0, the batch at least 1; got {argnums}")

    def split(result: Any, what: str) -> tuple[Any, Any]:
        if not has_aux:
            return result, None
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(f"with has_aux, {what} must return (result, aux); it returned {type(result).__name__}")
        return result

    def compute(params: PyTree, *args: Any) -> Any:
        _check_floating(params)
        if any(i > len(args) for i in argnums):
            raise ValueError(f"batch_argnums {argnums}: there are only arguments 0 (params) to {len(args)}")
        if axis_name is not None:
            # Differentiate a per-device copy: gradients stay local until they are averaged here, whether or not
            # shard_map tracks replication (it would otherwise have summed them already).
            params = jax.tree.map(lambda x: jax.lax.pcast(x, axis_name, to="varying"), params)

        def head(p: PyTree, features: Any, call_args: tuple[Any, ...]) -> tuple[dict[str, Array], Any]:
            result = losses_fn(p, *call_args) if encode is None else losses_fn(p, features, *call_args)
            losses, aux = split(result, "losses_fn")
            return _checked(losses), aux

        def encoded(p: PyTree, call_args: tuple[Any, ...]) -> tuple[dict[str, Array], Any]:
            assert encode is not None
            features, aux = split(encode(p, *call_args), "encode")
            return _checked_features(features), aux

        def whole(p: PyTree, call_args: tuple[Any, ...]) -> tuple[dict[str, Array], Any]:
            if encode is None:
                return head(p, None, call_args)
            features, encode_aux = encoded(p, call_args)
            losses, aux = head(p, features, call_args)
            return losses, (encode_aux, aux)

        if encode is None:
            losses, pull, aux = jax.vjp(lambda p: whole(p, args), params, has_aux=True)
            pull_losses = lambda cotangents: pull(cotangents)[0]  # noqa: E731

            def pull_selected(cotangents: dict[str, Array], active: dict[str, Array]) -> PyTree:
                def row(name: str) -> PyTree:
                    return jax.vjp(lambda p: whole(p, args)[0][name], params)[1](cotangents[name])[0]

                return _sum_selected({name: row(name) for name in cotangents}, active)

            def rows(touched: np.ndarray) -> Sequence[PyTree]:
                return problem.gradients(lambda p: whole(p, args)[0])

        else:
            features, encoder_pull, encode_aux = jax.vjp(lambda p: encoded(p, args), params, has_aux=True)
            losses, head_pull, head_aux = jax.vjp(lambda p, z: head(p, z, args), params, features, has_aux=True)
            aux = (encode_aux, head_aux)

            def through_encoders(at_heads: tuple[PyTree, dict[str, Array]]) -> PyTree:
                direct, at_features = at_heads
                return jax.tree.map(jnp.add, encoder_pull(at_features)[0], direct)

            def pull_losses(cotangents: dict[str, Array]) -> PyTree:
                return through_encoders(head_pull(cotangents))

            def pull_selected(cotangents: dict[str, Array], active: dict[str, Array]) -> PyTree:
                def row(name: str) -> tuple[PyTree, dict[str, Array]]:
                    return jax.vjp(lambda p, z: head(p, z, args)[0][name], params, features)[1](cotangents[name])

                return through_encoders(_sum_selected({name: row(name) for name in cotangents}, active))

            def rows(touched: np.ndarray) -> Sequence[PyTree]:
                heads = head_gradients(params, features, lambda p, z: head(p, z, args)[0], names)
                return _through_shared_encoders(heads, lambda z: encoder_pull(z)[0], touched)

        names = objective_names(losses)

        def of_part(part: int, parts: int) -> Callable[[PyTree], dict[str, Array]]:
            return lambda p: whole(p, _part_of(args, argnums, part, parts))[0]

        problem = _Problem(
            losses=lambda p: whole(p, args),
            params=params,
            names=names,
            axis_name=axis_name,
            of_part=of_part if argnums else None,
        )

        def make_features() -> FeatureGrads:
            return FeatureGrads(
                problem,
                features,
                head_losses=lambda p, z: head(p, z, args)[0],
                encoder_pull=lambda cotangents: encoder_pull(cotangents)[0],
                last_layer_inputs=lambda z: _last_layer_inputs(head(params, z, args)[1], names),
            )

        values = problem.mean_over_devices(jnp.stack([losses[n].astype(jnp.float32) for n in names]))
        grads = ObjectiveGrads(
            problem, pull_losses, pull_selected, rows, losses, None if encode is None else make_features
        )
        return (values, grads, aux) if has_aux else (values, grads)

    return compute


def _checked(losses: Any) -> dict[str, Array]:
    if not isinstance(losses, Mapping):
        raise ValueError(f"losses_fn must return a dict {{objective: scalar}}, got {type(losses).__name__}")
    objective_names(losses)
    losses = {name: jnp.asarray(loss) for name, loss in losses.items()}
    for name, loss in losses.items():
        if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ValueError(
                f"loss {name!r} must be a real scalar, got shape {loss.shape} and dtype {loss.dtype}: take a mean"
            )
    return losses


def _check_floating(params: PyTree) -> None:
    for path, leaf in jax.tree.leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}: params must be real floating-point "
                "arrays; pass everything else among the other arguments"
            )


def _checked_features(features: Any) -> dict[str, Array]:
    """As a plain dict, whatever mapping `encode` returned: cotangents must come back in the structure that went out."""
    if not isinstance(features, Mapping):
        raise ValueError(f"encode must return a dict {{modality: features}}, got {type(features).__name__}")
    for name, z in features.items():
        if not hasattr(z, "dtype") or not jnp.issubdtype(z.dtype, jnp.floating):
            raise ValueError(
                f"features {name!r} must be a floating-point array, got {getattr(z, 'dtype', type(z).__name__)}: what is no "
                "feature (a mask, an index) goes to losses_fn among the other arguments"
            )
    return dict(features)


def head_gradients(
    params: PyTree,
    features: dict[str, Array],
    losses: Callable[[PyTree, Any], Mapping[str, Array]],
    names: Sequence[str],
) -> list[tuple[PyTree, dict[str, Array]]]:
    """Return, for each objective, its gradients with respect to the parameters at fixed features and to the features."""
    return [jax.grad(lambda p, z, n=name: losses(p, z)[n], argnums=(0, 1))(params, features) for name in names]


def _through_shared_encoders(
    heads: Sequence[tuple[PyTree, dict[str, Array]]], encoder_pull: Callable[[Any], PyTree], touched: np.ndarray
) -> list[PyTree]:
    """Return the K gradients, with one encoder backward for all objectives that meet in no parameter.

    With an encoder a modality that is two: the fusion loss, and all uni-modal losses together. It also differentiates
    one and the same forward pass: XLA does not reliably merge the forwards of separate `jax.grad` calls (not with batch
    norm, where that cost a LeNet step a quarter more).
    """
    groups: list[list[int]] = []
    for k in range(len(heads)):
        free = (g for g in groups if not any((touched[k] & touched[j]).any() for j in g))
        group = next(free, None)
        if group is None:
            groups.append([k])
        else:
            group.append(k)
    rows: list[PyTree] = [None] * len(heads)
    for group in groups:
        together = jax.tree.map(lambda *z: sum(z[1:], z[0]), *(heads[k][1] for k in group))
        pulled, structure = jax.tree.flatten(encoder_pull(together))
        for k in group:
            direct = jax.tree.leaves(heads[k][0])
            own = zip(direct, pulled, touched[k], strict=True)
            rows[k] = jax.tree.unflatten(structure, [d + p if reached else d for d, p, reached in own])
    return rows


def _sum_selected(rows: dict[str, PyTree], active: dict[str, Array]) -> PyTree:
    """Sum the rows of the active objectives; select, not multiply: an inactive one may hold NaN."""
    kept = [jax.tree.map(lambda g, on=active[name]: jnp.where(on, g, 0), row) for name, row in rows.items()]
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *kept)


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


def _part_of(args: tuple[Any, ...], argnums: Sequence[int], part: int, parts: int) -> tuple[Any, ...]:
    def cut(leaf: Array) -> Array:
        if jnp.ndim(leaf) == 0:
            raise ValueError(
                "an argument named by batch_argnums holds a scalar: all its leaves need the batch as first axis"
            )
        size, rest = divmod(leaf.shape[0], parts)
        if rest:
            raise ValueError(f"a batch of {leaf.shape[0]} does not divide into {parts} equal parts")
        return leaf[part * size : (part + 1) * size]

    return tuple(jax.tree.map(cut, arg) if i + 1 in argnums else arg for i, arg in enumerate(args))


def _last_layer_inputs(aux: Any, names: Sequence[str]) -> dict[str, Array]:
    last_layer = aux.get("last_layer") if isinstance(aux, Mapping) else getattr(aux, "last_layer", None)
    if last_layer is None or set(last_layer) != set(names):
        raise ValueError(
            "from_last_layer needs has_aux=True and a losses_fn whose aux has `last_layer` = {objective: (inputs, kernel, "
            f"bias)}} for each of {tuple(names)}"
        )
    return {name: last_layer[name][0] for name in names}
