"""The contract between objectives and combiners: named losses in, lazy per-objective gradients out.

A model has K objectives: the fusion loss and one loss a modality. `objective_grads` evaluates them once and hands out
`ObjectiveGrads`, from which a combiner takes what it needs and pays for no more: a weighted sum (one backward pass),
every gradient (`stacked`, `pairs`), or gradients at the features (`features`: K cheap head backwards and one encoder
backward). The order is by name: "fusion" first, the other names sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmjax.lazy_gradients import FeatureGrads, ObjectiveGrads, Problem, head_gradients

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
      An aux of losses_fn with a `last_layer` (attribute or key) serves `FeatureGrads.last_layer` and `from_last_layer`.
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

        problem = Problem(
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
                last_layer=lambda z: _last_layer(head(params, z, args)[1], names),
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


def _last_layer(aux: Any, names: Sequence[str]) -> dict[str, tuple[Array, Array, Array]]:
    last_layer = aux.get("last_layer") if isinstance(aux, Mapping) else getattr(aux, "last_layer", None)
    if last_layer is None or set(last_layer) != set(names):
        raise ValueError(
            "the last layers are known only with has_aux=True and a losses_fn whose aux has `last_layer` = {objective: "
            f"(inputs, kernel, bias)}} for each of {tuple(names)}"
        )
    return {name: tuple(last_layer[name]) for name in names}
