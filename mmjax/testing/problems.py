"""Small problems whose per-objective gradients are known exactly: chosen first, and losses built to have them.

A problem is given to a combiner in two forms: stacked (a tree with a leading objective axis) and lazy (`ObjectiveGrads`
of a little multi-modal model, linear in its parameters, with encoders, features, heads and a batch).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmjax.lazy_gradients import ObjectiveGrads
from mmjax.objectives import FUSION, objective_grads

PyTree = Any
Structure = Literal["dense", "encoders"]

EXAMPLES, WIDTH, FUSED, CLASSES = 8, 2, 3, 3
"""Batch size, features a modality, parameters of the fusion head, classes."""
NAMES = ("audio", "gaze", "image", "text", "touch", "video")
"""Modalities; "audio" sorts before "fusion", so that the order of a dict and the order of objectives differ."""


class LastLayer(NamedTuple):
    """A head's last layer: logits = inputs @ kernel + bias."""

    inputs: Array
    kernel: Array
    bias: Array


@dataclass(frozen=True, eq=False)
class Problem:
    """K objectives of M = K − 1 modalities, their losses and gradients, and all that a combiner may be given besides.

    kind: how the gradients came about. structure: "dense" (every objective reaches every parameter) or "encoders"
    (encoder m is reached by the fusion loss and by m's; the fusion head and each uni-modal head by its own loss).
    names: objectives, "fusion" first. matrix: float32 [K, n], the gradients, flat. values: float32 [K]. logits: float32
    [M, B, C], labels int32 [B]: of the uni-modal heads. active: bool [K] or None. seed: of the key.

    >>> problem = Problem(
    ...     "mine", "dense", ("fusion", "audio"), matrix=np.ones((2, 21), np.float32),
    ...     values=np.array([0.5, 2.0], np.float32), logits=np.zeros((1, 8, 3), np.float32),
    ...     labels=np.arange(8, dtype=np.int32) % 3,
    ... )
    >>> problem.num_objectives, problem.modalities, jax.tree.map(np.shape, problem.rows)["encoder"]
    (2, ('audio',), {'audio': {'kernel': (2, 8, 2)}})
    """

    kind: str
    structure: Structure
    names: tuple[str, ...]
    matrix: np.ndarray
    values: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    active: np.ndarray | None = None
    seed: int = 0

    @property
    def num_objectives(self) -> int:
        """K, the number of objectives."""
        return len(self.names)

    @property
    def touching(self) -> PyTree:
        """A tree like params of bool[K]: which objectives reach each leaf."""
        own = {name: np.arange(len(self.names)) == k for k, name in enumerate(self.names)}
        everyone, nobody = np.ones(len(self.names), bool), np.zeros(len(self.names), bool)
        if self.structure == "dense":
            return _tree(self.modalities, fusion=everyone, encoder=lambda m: everyone, head=lambda m: everyone)
        return _tree(
            self.modalities,
            fusion=own[FUSION],
            encoder=lambda m: own[FUSION] | own.get(m, nobody),
            head=lambda m: own.get(m, nobody),
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that have parameters: as many as the gradients are long, also where one has no objective."""
        count = (self.matrix.shape[1] - FUSED) // ((EXAMPLES + 1) * WIDTH)
        return NAMES[:count] if count <= len(NAMES) else tuple(f"m{i:02d}" for i in range(count))

    @property
    def groups(self) -> PyTree:
        """A tree like params of labels "encoder/m", "head/m", "fusion"; "other" where a modality has no objective."""

        def label(part: str) -> Callable[[str], str]:
            return lambda m: f"{part}/{m}" if m in self.names else "other"

        return _tree(self.modalities, fusion=FUSION, encoder=label("encoder"), head=label("head"))

    @property
    def rows(self) -> PyTree:
        """The gradients as a tree like params, leaves [K, ...]."""
        return split_leaves(self.matrix, self.modalities)

    @property
    def norm(self) -> float:
        """Length of the longest gradient, among active objectives."""
        rows = self.matrix if self.active is None else self.matrix[self.active]
        return float(np.max(np.linalg.norm(rows.astype(np.float64), axis=1), initial=0.0))

    def arrays(self, dtype: Any = np.float32) -> dict[str, Any]:
        """Return what a compiled program takes: rows, params, values, active, key and the other extra arguments."""
        modal = [m for m in self.names if m != FUSION]
        rng = np.random.default_rng(7)
        arrays = {
            "rows": jax.tree.map(lambda x: x.astype(dtype), self.rows),
            "params": jax.tree.map(lambda x: x.astype(dtype), parameters(self.modalities)),
            "values": self.values,
            "active": self.active,
            "key": _key(self.seed),
            "labels": self.labels,
            "unimodal_logits": {m: self.logits[i] for i, m in enumerate(modal)},
            "kernels": {m: rng.normal(size=(WIDTH, CLASSES)).astype(np.float32) for m in self.modalities},
        }
        return arrays | {"batch": _batch(arrays)}

    def __str__(self) -> str:
        inactive = "" if self.active is None else f", active {self.active.astype(int).tolist()}"
        rows = [np.array2string(row, precision=4, separator=", ", max_line_width=100_000) for row in self.matrix]
        lines = [f"  {name}: loss {value:.4g}, gradient {row}" for name, value, row in self._lines(rows)]
        head = f"problem {self.kind!r} ({self.structure}), K = {self.num_objectives}, key({self.seed}){inactive}"
        return "\n".join([head, *lines])

    def _lines(self, rows: Sequence[str]) -> Iterator[tuple[str, float, str]]:
        return zip(self.names, self.values.tolist(), rows, strict=True)


def parameters(modalities: Sequence[str]) -> PyTree:
    """Return the parameters of a problem, always the same for its modalities, float32."""
    size = FUSED + len(modalities) * (EXAMPLES + 1) * WIDTH
    return split_leaves(np.random.default_rng(1).normal(size=size).astype(np.float32), modalities)


def split_leaves(matrix: np.ndarray, modalities: Sequence[str]) -> PyTree:
    """Return [..., n] as a tree like params with [..., *shape of the leaf] at the leaves."""
    ends = np.cumsum([EXAMPLES * WIDTH] * len(modalities) + [FUSED] + [WIDTH] * len(modalities))
    parts = iter(np.split(matrix, ends[:-1], axis=-1))
    encoder = {m: next(parts).reshape(*matrix.shape[:-1], EXAMPLES, WIDTH) for m in modalities}
    fusion = next(parts)
    head = {m: next(parts) for m in modalities}
    return _tree(modalities, fusion=fusion, encoder=encoder.__getitem__, head=head.__getitem__)


def join_leaves(tree: PyTree) -> np.ndarray:
    """Return a tree like params (or with leading axes) as float64 [..., n]; inverse of `split_leaves`."""
    lead = np.ndim(tree["fusion"]["kernel"]) - 1
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*leaf.shape[:lead], -1) for leaf in leaves], axis=-1)


def _tree(modalities: Sequence[str], *, fusion: Any, encoder: Callable[[str], Any], head: Callable[[str], Any]) -> Any:
    return {
        "encoder": {m: {"kernel": encoder(m)} for m in modalities},
        "fusion": {"kernel": fusion},
        "head": {m: {"kernel": head(m)} for m in modalities},
    }


# ---- the lazy form -----------------------------------------------------------------------------------------------------

_ORDER = np.array([2, 0, 3, 1, 6, 4, 7, 5])
"""Example b sees row _ORDER[b] of an encoder's kernel: features are no mere copy of parameters."""


def lazy(
    names: tuple[str, ...], touching: PyTree, arrays: Mapping[str, Any], axis_name: str | None = None
) -> tuple[Array, ObjectiveGrads, dict[str, LastLayer]]:
    """Return (values, grads, last_layer) of losses whose gradients at `arrays["params"]` are `arrays["rows"]`.

    The features of example b are a row of the encoder's kernel, and each loss is a mean over examples of something linear
    in them, plus something linear in the heads. Under `axis_name` the arrays of the batch hold a device's own examples.
    """
    rows, start, batch = arrays["rows"], arrays["params"], arrays["batch"]
    modalities = tuple(rows["encoder"])

    def encode(params: PyTree, batch: Any) -> tuple[dict[str, Array], None]:
        return {m: batch["inputs"] @ params["encoder"][m]["kernel"] for m in modalities}, None

    def losses_fn(params: PyTree, features: dict[str, Array], batch: Any) -> tuple[dict[str, Array], Any]:
        losses = {}
        for k, name in enumerate(names):
            loss = arrays["values"][k]
            for m in modalities:
                if touching["encoder"][m]["kernel"][k]:
                    moved = features[m] - batch["start"][m]
                    loss += jnp.mean(jnp.sum(batch["slopes"][m][:, k] * moved, axis=-1)).astype(loss.dtype)
                if touching["head"][m]["kernel"][k]:
                    moved = params["head"][m]["kernel"] - start["head"][m]["kernel"]
                    loss += jnp.vdot(rows["head"][m]["kernel"][k], moved).astype(loss.dtype)
            if touching["fusion"]["kernel"][k]:
                moved = params["fusion"]["kernel"] - start["fusion"]["kernel"]
                loss += jnp.vdot(rows["fusion"]["kernel"][k], moved).astype(loss.dtype)
            losses[name] = loss
        return losses, {"last_layer": last_layers(names, arrays, features)}

    compute = objective_grads(losses_fn, encode=encode, has_aux=True, batch_argnums=1, axis_name=axis_name)
    values, grads, (_, aux) = compute(start, batch)
    return values, grads, aux["last_layer"]


def last_layers(
    names: tuple[str, ...], arrays: Mapping[str, Any], features: Mapping[str, Array]
) -> dict[str, LastLayer]:
    """Return each objective's last layer on these features."""
    kernels, bias = arrays["kernels"], jnp.zeros(CLASSES)
    table = {m: LastLayer(z, kernels[m], bias) for m, z in features.items()}
    if features:
        joined = jnp.concatenate(list(features.values()), axis=-1)
        table[FUSION] = LastLayer(joined, jnp.concatenate([kernels[m] for m in features]), bias)
    else:
        table[FUSION] = LastLayer(arrays["batch"]["inputs"][:, :WIDTH], jnp.ones((WIDTH, CLASSES)), bias)
    return {name: table[name] for name in names}


@lru_cache
def _key(seed: int) -> Array:
    return jax.random.key(seed)


def _batch(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch of the lazy form, every leaf [B, ...]: inputs, features at the start, slopes [B, K, D]."""
    return {
        "inputs": np.eye(EXAMPLES, dtype=arrays["params"]["fusion"]["kernel"].dtype)[_ORDER],
        "start": {m: leaf["kernel"][_ORDER] for m, leaf in arrays["params"]["encoder"].items()},
        "slopes": {
            m: EXAMPLES * np.swapaxes(leaf["kernel"][:, _ORDER], 0, 1) for m, leaf in arrays["rows"]["encoder"].items()
        },
    }


# ---- kinds of problems -------------------------------------------------------------------------------------------------


def _blank(num_objectives: int, structure: Structure, seed: int) -> Problem:
    modal = num_objectives - 1
    rng = np.random.default_rng(1000 * seed + num_objectives)
    size = FUSED + modal * (EXAMPLES + 1) * WIDTH
    blank = Problem(
        kind="random",
        structure=structure,
        names=(FUSION,),
        matrix=rng.normal(size=(num_objectives, size)).astype(np.float32),
        values=rng.uniform(0.3, 2.5, num_objectives).astype(np.float32),
        logits=(2 * rng.normal(size=(modal, EXAMPLES, CLASSES))).astype(np.float32),
        labels=rng.integers(0, CLASSES, EXAMPLES).astype(np.int32),
        seed=seed,
    )
    return dataclasses.replace(blank, names=(FUSION, *blank.modalities))


def _reached(problem: Problem) -> np.ndarray:
    """Return bool [K, n]: which entries of the flat gradients are no structural zeros."""
    leaves = zip(jax.tree.leaves(problem.touching), jax.tree.leaves(parameters(problem.modalities)), strict=True)
    return np.concatenate([np.repeat(reach[:, None], leaf.size, axis=1) for reach, leaf in leaves], axis=1)


def shared(problem: Problem) -> np.ndarray:
    """Return bool [n]: which parameters two or more objectives reach."""
    return _reached(problem).sum(axis=0) >= 2


def random(num_objectives: int, structure: Structure = "dense", seed: int = 0) -> Problem:
    """Independent normal gradients and different losses."""
    problem = _blank(num_objectives, structure, seed)
    return dataclasses.replace(problem, matrix=problem.matrix * _reached(problem))


def conflicting(num_objectives: int, structure: Structure = "dense", seed: int = 0) -> Problem:
    """Every modality's gradient points against the fusion's, more or less."""
    problem = _blank(num_objectives, structure, seed + 1)
    strength = np.random.default_rng(seed).uniform(0.4, 1.5, num_objectives)[:, None]
    matrix = 0.6 * problem.matrix - strength * problem.matrix[:1]
    matrix[0] = problem.matrix[0]
    return dataclasses.replace(
        problem, kind="conflicting", matrix=(matrix * _reached(problem)).astype(np.float32), seed=seed
    )


def unequal(num_objectives: int, structure: Structure = "dense", seed: int = 0) -> Problem:
    """Random gradients of lengths from 1e-3 to 1e3."""
    problem = random(num_objectives, structure, seed + 2)
    lengths = np.logspace(3, -3, num_objectives)[:, None] if num_objectives > 1 else np.ones((1, 1))
    return dataclasses.replace(problem, kind="unequal", matrix=(problem.matrix * lengths).astype(np.float32), seed=seed)


def balanced(num_objectives: int, structure: Structure = "dense", seed: int = 0) -> Problem:
    """Equal losses and logits; gradients orthogonal and of one length, on all parameters and on the shared ones."""
    problem = _blank(num_objectives, structure, seed + 3)
    rng = np.random.default_rng(seed)
    matrix = np.zeros(problem.matrix.shape)
    if structure == "dense":
        matrix[:] = 2.0 * np.linalg.qr(rng.normal(size=matrix.shape[::-1]))[0].T
    else:
        start = 0
        modal = num_objectives - 1
        for reach, leaf in zip(
            jax.tree.leaves(problem.touching), jax.tree.leaves(parameters(problem.modalities)), strict=True
        ):
            basis = np.linalg.qr(rng.normal(size=(leaf.size, reach.sum())))[0].T
            # The fusion's gradient spreads over all encoders, and is as long there as each modality's in its own.
            lengths = np.where(np.flatnonzero(reach) == 0, 1 / np.sqrt(modal or 1), 1.0) if reach.sum() > 1 else 1.0
            matrix[reach, start : start + leaf.size] = 2.0 * basis * np.reshape(lengths, (-1, 1))
            start += leaf.size
    return dataclasses.replace(
        problem,
        kind="balanced",
        matrix=matrix.astype(np.float32),
        values=np.full(num_objectives, 1.1, np.float32),
        logits=np.repeat(problem.logits[:1], num_objectives - 1, axis=0),
        seed=seed,
    )


def stationary(num_objectives: int, structure: Structure = "dense", seed: int = 0) -> Problem:
    """On the shared parameters Σ_k α_k g_k = 0 with all α_k > 0; needs K >= 2."""
    problem = random(num_objectives, structure, seed + 4)
    alpha = np.random.default_rng(seed).uniform(0.5, 1.5, num_objectives)
    matrix = problem.matrix.astype(np.float64)
    here = shared(problem)
    matrix[0, here] = -(alpha[1:] @ matrix[1:, here]) / alpha[0]
    return dataclasses.replace(problem, kind="stationary", matrix=matrix.astype(np.float32), seed=seed)


def degenerate(num_objectives: int, structure: Structure = "dense") -> tuple[Problem, ...]:
    """Zero, equal, opposite and collinear gradients."""
    base = random(num_objectives, structure, 5)
    reached = _reached(base)

    def variant(kind: str, change: Callable[[np.ndarray], np.ndarray]) -> Problem:
        matrix = (change(base.matrix.copy()) * reached).astype(np.float32)
        return dataclasses.replace(base, kind=kind, matrix=matrix, seed=0)

    def with_row(matrix: np.ndarray, k: int, row: np.ndarray | float) -> np.ndarray:
        matrix[k] = row
        return matrix

    found = [variant("all gradients zero", np.zeros_like), variant("fusion zero", lambda x: with_row(x, 0, 0.0))]
    if num_objectives > 1:
        found += [
            variant("a modality zero", lambda x: with_row(x, -1, 0.0)),
            variant("all gradients equal", lambda x: np.broadcast_to(x[:1], x.shape)),
            variant("a modality against the fusion", lambda x: with_row(x, 1, -x[0])),
            variant("all on one line", lambda x: np.linspace(-1, 1.5, num_objectives)[:, None] * x[:1]),
        ]
    return tuple(found)


def at_step(problem: Problem, step: int) -> Problem:
    """Say that a problem comes at this step of a run, counted from 0; other kinds of problems build on it."""
    return problem if step == 0 else dataclasses.replace(problem, kind=f"{problem.kind}, at step {step + 1} of a run")


def scaled(problem: Problem, factor: float) -> Problem:
    """One factor on all losses: on their values and their gradients."""
    if factor == 1.0:
        return problem
    return dataclasses.replace(
        problem,
        kind=f"{problem.kind}, times {factor:g}",
        matrix=(problem.matrix * np.float32(factor)),
        values=(problem.values * np.float32(factor)),
    )


def reweighted(problem: Problem, factors: np.ndarray) -> Problem:
    """Return diag(factors) J: the gradients scaled one by one, the losses as they are."""
    kind = f"{problem.kind}, gradients times {np.round(factors, 3).tolist()}"
    return dataclasses.replace(
        problem, kind=kind, matrix=(problem.matrix * np.asarray(factors)[:, None]).astype(np.float32)
    )


def permuted(problem: Problem, order: Sequence[int] | np.ndarray) -> Problem:
    """Let modality i be what modality order[i] was: its loss, its gradient, its parameters, its logits.

    order: a permutation of 0..M-1.
    """
    order = np.array(order)
    rows = problem.rows
    moved = {
        part: {m: rows[part][problem.modalities[order[i]]] for i, m in enumerate(problem.modalities)}
        for part in ("encoder", "head")
    }
    flat = join_leaves({**moved, "fusion": rows["fusion"]}).astype(np.float32)
    objectives = np.concatenate([[0], 1 + order])
    return dataclasses.replace(
        problem,
        kind=f"{problem.kind}, modalities in the order {order.tolist()}",
        matrix=flat[objectives],
        values=problem.values[objectives],
        logits=problem.logits[order],
    )


def permute_back(update: np.ndarray, problem: Problem, order: Sequence[int]) -> np.ndarray:
    """Return a flat update [..., n] of `permuted(problem, order)` in the parameters of `problem`."""
    tree = split_leaves(update, problem.modalities)
    inverse = np.argsort(order)
    moved = {
        part: {m: tree[part][problem.modalities[inverse[i]]] for i, m in enumerate(problem.modalities)}
        for part in ("encoder", "head")
    }
    return join_leaves({**moved, "fusion": tree["fusion"]})


def absent(problem: Problem, objective: int, fill: float = np.nan) -> Problem:
    """Mark an objective as inactive, and put `fill` in place of its loss and gradient."""
    active = np.ones(problem.num_objectives, bool) if problem.active is None else problem.active.copy()
    active[objective] = False
    matrix, values = problem.matrix.copy(), problem.values.copy()
    reached = _reached(problem)[objective]
    matrix[objective, reached] = fill
    values[objective] = fill
    kind = f"{problem.kind}, {problem.names[objective]} absent (holding {fill})"
    return dataclasses.replace(problem, kind=kind, active=active, matrix=matrix, values=values)


def without(problem: Problem, objective: int) -> Problem:
    """Remove an objective, not its modality's parameters. objective: 1..M."""
    keep = np.arange(problem.num_objectives) != objective
    return dataclasses.replace(
        problem,
        kind=f"{problem.kind}, without {problem.names[objective]}",
        names=tuple(n for n, kept in zip(problem.names, keep, strict=True) if kept),
        matrix=problem.matrix[keep],
        values=problem.values[keep],
        logits=problem.logits[keep[1:]],
        active=None if problem.active is None else problem.active[keep],
    )
