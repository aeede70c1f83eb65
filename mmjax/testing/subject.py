"""The transformation under test, run on problems: one compiled program a shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec

from mmjax.testing.problems import Problem, join_leaves, last_layers, lazy

PyTree = Any
Form = Literal["lazy", "stacked"]
Make = Callable[[int], optax.GradientTransformation]
Extra = Callable[[Problem], Mapping[str, Any]]

_AXIS = "examples"


@dataclass(frozen=True)
class Outcome:
    """What an update gave. update: the tree; flat: the same as float64 [n]; weights: the state's [K], or None."""

    update: PyTree
    state: PyTree
    flat: np.ndarray
    weights: np.ndarray | None


class Subject:
    """A combiner, its options for testing, and the programs compiled for it."""

    def __init__(
        self,
        make: Make | optax.GradientTransformation,
        *,
        num_objectives: Sequence[int],
        forms: Sequence[Form],
        random: bool,
        extra: Extra | None,
        rtol: float,
        steps: int = 4,
    ):
        self._make = make
        self._transformations: dict[int, optax.GradientTransformationExtraArgs] = {}
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._initial: dict[Any, PyTree] = {}
        self._extra = extra
        self.traces: dict[Any, int] = {}
        self.num_objectives = tuple(sorted(num_objectives))
        self.forms, self.random, self.rtol, self.steps = tuple(forms), random, rtol, steps

    @property
    def form(self) -> Form:
        """The form that most properties are checked in: stacked where it is taken, for it compiles faster."""
        return "stacked" if "stacked" in self.forms else self.forms[0]

    @property
    def several(self) -> tuple[int, ...]:
        """The numbers of objectives above one."""
        return tuple(k for k in self.num_objectives if k > 1)

    def can_make(self, num_objectives: int) -> bool:
        """Whether the combiner can be had for this number: it is made by a function, or the number was listed."""
        return not isinstance(self._make, optax.GradientTransformation) or num_objectives in self.num_objectives

    def transformation(self, num_objectives: int) -> optax.GradientTransformationExtraArgs:
        """Return the combiner for K objectives."""
        if num_objectives not in self._transformations:
            made = self._make if isinstance(self._make, optax.GradientTransformation) else self._make(num_objectives)
            self._transformations[num_objectives] = optax.with_extra_args_support(made)
        return self._transformations[num_objectives]

    def initial(self, problem: Problem, dtype: Any = np.float32) -> PyTree:
        """Return the combiner's state before the first step."""
        key = (problem.num_objectives, problem.modalities, np.dtype(dtype).name)
        if key not in self._initial:
            params = jax.tree.map(jnp.asarray, problem.arrays(dtype)["params"])
            self._initial[key] = self.transformation(problem.num_objectives).init(params)
        return self._initial[key]

    def update(
        self,
        problem: Problem,
        form: Form | None = None,
        *,
        state: PyTree = None,
        dtype: Any = np.float32,
        tolerates: bool = False,
    ) -> Outcome:
        """Take one step on `problem`, from the initial state unless one is given.

        tolerates: pass an extra argument of an unknown name, too.
        """
        form = form or self.form
        shape = (problem.structure, problem.names, problem.modalities, problem.active is None)
        key = (*shape, form, np.dtype(dtype).name, tolerates)
        if key not in self._programs:
            self._programs[key] = jax.jit(partial(self._step, problem, form, tolerates, key))
        state = self.initial(problem, dtype) if state is None else state
        update, state = self._programs[key](self._arguments(problem, dtype), state)
        return self._outcome(problem, update, state)

    def update_on_devices(self, problem: Problem, devices: int, state: PyTree = None) -> Outcome:
        """Take one step with the examples spread over so many devices, from the initial state unless one is given."""
        arguments = self._arguments(problem, np.float32)
        key = (problem.structure, problem.names, problem.modalities, problem.active is None, "devices", devices)
        if key not in self._programs:
            mesh = jax.make_mesh((devices,), (_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
            sharded = {
                "batch": PartitionSpec(_AXIS),
                "labels": PartitionSpec(_AXIS),
                "unimodal_logits": PartitionSpec(_AXIS),
            }
            step = jax.shard_map(
                partial(self._step, problem, "lazy", False, key, axis_name=_AXIS),
                mesh=mesh,
                in_specs=({name: sharded.get(name, PartitionSpec()) for name in arguments}, PartitionSpec()),
                out_specs=PartitionSpec(),
            )
            self._programs[key] = jax.jit(step)
        state = self.initial(problem) if state is None else state
        return self._outcome(problem, *self._programs[key](arguments, state))

    def over_keys(self, problem: Problem, draws: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return flat updates [draws, n], and weights [draws, K] or None, at so many keys made from the problem's."""
        arguments = self._arguments(problem, np.float32)
        keys = jax.random.split(arguments["key"], draws)
        signature = (problem.structure, problem.names, problem.active is None, draws)
        if signature not in self._programs:

            def at_key(arguments: dict[str, Any], state: PyTree, key: Any) -> Any:
                return self._step(problem, self.form, False, signature, arguments | {"key": key}, state)

            self._programs[signature] = jax.jit(jax.vmap(at_key, in_axes=(None, None, 0)))
        update, state = self._programs[signature](arguments, self.initial(problem), keys)
        weights = getattr(state, "weights", None)
        flat = join_leaves(update)
        return flat, None if weights is None else np.asarray(weights, np.float64)[:, : problem.num_objectives]

    def _arguments(self, problem: Problem, dtype: Any) -> dict[str, Any]:
        arrays = problem.arrays(dtype)
        arrays["given"] = {} if self._extra is None else dict(self._extra(problem))
        return arrays

    def _step(
        self,
        problem: Problem,
        form: Form,
        tolerates: bool,
        signature: Any,
        arrays: dict[str, Any],
        state: PyTree,
        axis_name: str | None = None,
    ) -> tuple[PyTree, PyTree]:
        # Of `problem` only what is static is used: names, touching, groups.
        self.traces[signature] = self.traces.get(signature, 0) + 1
        extra = {
            "groups": problem.groups,
            "labels": arrays["labels"],
            "unimodal_logits": arrays["unimodal_logits"],
            "key": arrays["key"],
        }
        if form == "lazy":
            values, given, last_layer = lazy(problem.names, problem.touching, arrays, axis_name)
        else:
            values, given = arrays["values"], arrays["rows"]
            features = {m: arrays["batch"]["start"][m] for m in problem.modalities}
            last_layer = last_layers(problem.names, arrays, features)
            extra["touching"] = problem.touching
        extra |= {"values": values, "last_layer": last_layer}
        if arrays["active"] is not None:
            extra["active"] = arrays["active"]
        if tolerates:
            extra["an_argument_of_another_method"] = jnp.ones(())
        transformation = self.transformation(problem.num_objectives)
        return transformation.update(given, state, arrays["params"], **(extra | arrays["given"]))

    def _outcome(self, problem: Problem, update: PyTree, state: PyTree) -> Outcome:
        weights = getattr(state, "weights", None)
        fits = _structure(update) == _structure(problem.groups)
        flat = join_leaves(update) if fits else np.full(problem.matrix.shape[1], np.nan)
        return Outcome(update, state, flat, None if weights is None else np.asarray(weights, np.float64))


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree)
